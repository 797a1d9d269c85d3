"Ctrl-C, as a terminal sends it: to every process at once. Once lets the work in progress end, twice ends it."
import json
import os
import signal
import subprocess
import sys
import time
import pandas as pd
import psutil
import pytest
from helpers import BIN, ROOT, SHORT, copy_home
from test_notebooks import OTHER

TINY = SHORT + """
import sys
from hcms.cli import main
if __name__=='__main__': main()
"""

class Running:
    "A command, in a process group of its own as in a terminal; its words go to a file."
    def __init__(self, args, home, program=(BIN/'hcms', 'report', 'demo')):
        self.said = home/'said.txt'
        env = dict(os.environ, HCMS_HOME=str(home), HCMS_DATA='')
        with open(self.said, 'w') as f:
            options = dict(cwd=ROOT, env=env, stdout=f, stderr=f, start_new_session=True)
            self.p = subprocess.Popen([*program, *args], **options)
    def wait_for(self, ready, seconds=400):
        end = time.time()+seconds
        while not ready():
            assert self.p.poll() is None, f'ended before Ctrl-C: {self.said.read_text()[-2000:]}'
            assert time.time()<end, 'the moment never came'
            time.sleep(.02)
    def family(self) -> list:
        return psutil.Process(self.p.pid).children(recursive=True)
    def press(self):
        os.killpg(self.p.pid, signal.SIGINT)
    def interrupt(self, times, at_most) -> float:   # seconds from the last press to the end
        "Press Ctrl-C so often; the first is answered at once, and nobody is left in the end."
        family = self.family()
        self.press()
        end = time.time()+1
        while 'hcms: stop' not in self.said.read_text():
            assert time.time()<end, 'no answer within a second'
            time.sleep(.02)
        if times>1:
            family = [*family, *self.family()]
            self.press()
        since = time.time()
        self.p.wait(at_most)
        took = time.time()-since
        text = self.said.read_text()
        assert self.p.returncode==130 and 'Traceback' not in text, text[-3000:]
        while any(map(lives, family)):
            assert time.time()-since<max(at_most, 3), 'someone is left'
            time.sleep(.02)
        return took

def lives(p) -> bool:
    "Is a process there, and not only its number because nobody waited for its end?"
    try:
        return p.status()!=psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

def is_kernel(p) -> bool:
    try:
        return 'ipykernel_launcher' in ' '.join(p.cmdline())
    except psutil.Error:
        return False

def test_ctrl_c_in_training(tiny_home, tmp_path):
    "Once: the runs in progress are finished, none is begun. Twice: it ends at once, and can be continued."
    home = copy_home(tiny_home, tmp_path)
    runs = home/'data'/'demo'/'runs'
    def count(name):
        return len(list(runs.glob(f'*/{name}')))
    r = Running(['--only', 'table6', '--seeds', '2', '--epochs', '8'], home)
    r.wait_for(lambda: count('state.pt'))
    before = count('run.json')
    r.interrupt(1, 100)
    says = 'the runs in training, at most 2, will be finished. Press Ctrl-C again to stop at once'
    assert says in r.said.read_text()
    assert before+1<=count('run.json')<=before+2 and not count('state.pt')
    r = Running(['--seeds', '2', '--epochs', '400'], home, (BIN/'hcms', 'train', 'demo'))   # as every command
    r.wait_for(lambda: count('state.pt'))
    r.interrupt(2, 3)
    assert count('state.pt')   # what the next run goes on from

def test_ctrl_c_ends_the_kernels_of_notebooks(tiny_reports, tmp_path):
    import shutil
    shutil.copytree(tiny_reports/'data', tmp_path/'data')
    r = Running(['--only', 'fig5', '--only', 'fig4', '--seeds', '1', '--epochs', '1'], tmp_path)
    r.wait_for(lambda: any(map(is_kernel, r.family())))
    r.interrupt(2, 3)
    assert not list((tmp_path/'reports').rglob('*.png'))

def check_whole(home):
    "Nothing that is there is half written."
    from hcms.core import check_seal
    from hcms.method.saved import SEAL
    for o in (home/'data').rglob(SEAL):
        check_seal(o)
    for o in (home/'reports').rglob('*.json'):
        json.loads(o.read_text())
    for o in (home/'reports').rglob('*.csv'):
        assert len(pd.read_csv(o))
    features = home/'data'/'demo'/'features'
    if (features/'STORE.json').exists():
        r = subprocess.run([BIN/'hcms', 'store', 'verify', features], capture_output=True, text=True)
        assert r.returncode==0, r.stdout

@pytest.mark.full
@pytest.mark.parametrize('times', [1, 2])
def test_ctrl_c_at_five_moments(tiny_reports, tmp_path, times, tally):
    "One report from nothing, stopped in each of its parts; it has the bytes of one never stopped."
    from dataclasses import asdict
    from hcms.data.rendered import Recipe
    demo = tmp_path/'data'/'demo'
    demo.mkdir(parents=True)
    recipe = Recipe(per_class=4, training=2, selection=1)
    (demo/'recipe.json').write_text(json.dumps(asdict(recipe)))
    (tmp_path/'go.py').write_text(TINY)
    program = (sys.executable, tmp_path/'go.py', 'report', 'demo')
    out = tmp_path/'reports'/'demo'/OTHER
    def start() -> Running:
        return Running(['--seeds', '1', '--epochs', '1'], tmp_path, program)
    def many(folder, pattern, n):
        return len(list(folder.glob(pattern)))>=n
    moments = dict(
        rendering=lambda: many(demo/'videos', '*.mp4', 5),
        extraction=lambda: many(demo/'features', '**/*.safetensors', 9),
        training=lambda: many(demo/'runs', '*/run.json', 3),
        policies=lambda: many(demo/'policies', '*', 1),
        notebooks=lambda: many(out, '*.json', 1),
    )
    for name,ready in moments.items():
        r = start()
        r.wait_for(ready, 900)
        took = r.interrupt(times, 3 if times==2 else 300)
        print(f'{name}: pressed {times} times, ended after {took:.1f} s')
        check_whole(tmp_path)
    r = start()
    assert r.p.wait(1200)==0, r.said.read_text()[-3000:]
    undisturbed = tiny_reports/'reports'/'demo'/OTHER
    assert {p.name for p in out.iterdir() if p.name[0]!='.'}=={p.name for p in undisturbed.iterdir()}
    for p in undisturbed.iterdir():
        assert p.read_bytes()==(out/p.name).read_bytes(), p.name
    ends = 'what is in work is finished, or all ends within 3 s; the next run ends with the same bytes'
    tally('faults', f'Ctrl-C, pressed {times} times, in each of five parts of a report', ends, 5)
