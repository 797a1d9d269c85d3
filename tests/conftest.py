"A tiny demo corpus, prepared once for all tests that need the whole path from files to tables; and a tally of attacks."
import os, shutil, subprocess, sys, sysconfig
from pathlib import Path
import pytest
from filelock import FileLock
import attacks

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent

def hcms(*args, home, check=True, cwd=ROOT, **kw):
    "Run the `hcms` command with HCMS_HOME set."
    out = subprocess.run([BIN/'hcms', *map(str, args)], cwd=cwd, env=dict(os.environ, HCMS_HOME=str(home), HCMS_DATA=''), capture_output=True, text=True, **kw)
    if check: assert out.returncode==0, out.stderr[-3000:]
    return out

def once(tmp_path_factory, name, make) -> Path:
    "A folder that the first test process to ask for it makes, for all of them."
    root = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ: root = root.parent
    folder,done = root/name,root/f'{name}.done'
    with FileLock(root/f'{name}.lock'):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True); folder.mkdir()
            make(folder); done.touch()
    return folder

def copy_home(tiny_home, to, *parts):
    "A home that shares nothing with the tiny one; `parts` of data/demo are left out."
    shutil.copytree(tiny_home/'data', to/'data', ignore=shutil.ignore_patterns('runs', *parts))
    return to

def run_code(code, home):
    (home/'go.py').write_text(code)
    r = subprocess.run([sys.executable, home/'go.py'], env=dict(os.environ, HCMS_HOME=str(home), HCMS_DATA=''), capture_output=True, text=True)
    assert r.returncode==0, r.stderr[-3000:]

@pytest.fixture(scope='session')
def tiny_home(tmp_path_factory):
    "HCMS_HOME with 64 rendered videos, trained demo backbones and all features."
    return once(tmp_path_factory, 'tiny', lambda home: run_code("""
from hcms import datasets
from hcms.rendered import Recipe
datasets.PRETRAINING['recipe'] |= dict(per_class=4, training=2, seconds=2)
datasets.PRETRAINING['config'] = datasets.FINETUNING['demo'] = dict(epochs=1)
if __name__ == '__main__': datasets.prepare_demo(Recipe(per_class=4, training=2, selection=1))
""", home))

def fresh_clone(to) -> Path:
    "What `git clone` would give of the working tree as it stands."
    listed = subprocess.run(['git', 'ls-files', '-z', '-c', '-o', '--exclude-standard'], cwd=ROOT, capture_output=True)
    if listed.returncode:   # no repository here
        made = shutil.ignore_patterns('.git', '.venv', '__pycache__', '*.egg-info', 'build', 'checkpoints')
        return Path(shutil.copytree(ROOT, to, ignore=made))
    for o in map(os.fsdecode, filter(None, listed.stdout.split(b'\0'))):
        if not (ROOT/o).is_file(): continue
        (to/o).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT/o, to/o)
    return to

PACKAGES = Path(sysconfig.get_paths()['purelib'])   # of the environment that runs the tests

def new_environment(folder, packages=PACKAGES) -> Path:
    "An environment that takes its packages from a folder: nothing is downloaded. An editable hcms there is not seen."
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', folder], check=True)
    ask = [folder/'bin'/'python', '-c', "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
    where = subprocess.run(ask, check=True, capture_output=True, encoding='utf-8').stdout.strip()
    (Path(where)/'others.pth').write_text(f'{packages}\n', encoding='utf-8')   # its own .pth files are not read
    return folder

OURS = ('HCMS_HOME', 'HCMS_DATA', 'HCMS_LINKS_OUT', 'PYTHONPATH', 'PYTHONHOME', 'VIRTUAL_ENV')

def without_home(**env) -> dict:
    "The environment variables of somebody who set none of ours."
    return {k: v for k,v in os.environ.items() if k not in OURS} | env

SOME = ('audio_rising', 'appearance_checkered', 'motion_upward', 'pair_bell_shaking')

@pytest.fixture(scope='session')
def some_home(tmp_path_factory, tiny_home, full):
    "The tiny home for what extracts all of it again; in the short form the 16 videos of four classes only (too few to train on: `hcms train` would make the others)."
    def few(home):
        from hcms.manifests import read_manifest, write_manifest
        demo = copy_home(tiny_home, home)/'data'/'demo'
        m = read_manifest(demo/'manifest.csv')
        write_manifest(m.select([i for i in m.ids if i.startswith(SOME)]), demo/'manifest.csv')
        for o in (demo/'features').rglob('*.safetensors'):
            if not o.name.startswith(SOME): o.unlink()
    return tiny_home if full else once(tmp_path_factory, 'some', few)

def count_videos(home) -> int: return len((home/'data'/'demo'/'manifest.csv').read_text().splitlines())-1

@pytest.fixture(scope='session')
def tiny_reports(tmp_path_factory, tiny_home):
    "A home like the tiny one in which `hcms report` ran: every table and figure, one epoch, one seed."
    return once(tmp_path_factory, 'reported', lambda home: hcms('report', 'demo', '--seeds', 1, '--epochs', 1, home=copy_home(tiny_home, home)))

@pytest.fixture(scope='session')
def trained_home(tmp_path_factory, tiny_home):
    "A home like the tiny one with a recognizer in checkpoints/demo, and said.npz: what evaluation on stored features says of the test split."
    return once(tmp_path_factory, 'trained', lambda home: run_code("""
import numpy as np, torch
from hcms.core import home
from hcms.datasets import Dataset
from hcms.runs import config_for, get_runs
from hcms.driver import _keep
from hcms.train import predict_split
if __name__=='__main__':
    torch.set_num_threads(1)
    data = Dataset('demo')
    run = get_runs(data, [config_for(data, epochs=12, seed=5)], 1)[0]
    _keep(data, run)
    test = data.split(data.evaluated)
    logits,gates = predict_split(run.model, run.config, test)
    np.savez(home()/'said.npz', p=logits.softmax(-1).numpy(), gates=gates.numpy(), paths=[str(data.manifest.path_of(i)) for i in test.ids])
""", copy_home(tiny_home, home)))

@pytest.fixture(scope='session')
def trained(trained_home):
    "The recognizer, and what is to be said of the test split."
    from hcms.recognizer import Recognizer
    import numpy as np, torch
    torch.set_num_threads(1)
    return Recognizer.from_pretrained(trained_home/'checkpoints'/'demo'),np.load(trained_home/'said.npz')

@pytest.fixture(autouse=True)
def usual_priority():
    "No test leaves its process a real-time one, as some encoder would: all that runs beside it would starve."
    policy = getattr(os, 'sched_getscheduler', lambda _: None)
    was = policy(0)
    yield
    assert policy(0)==was

# attacks

def is_full(config): return 'not full' not in config.getoption('markexpr')

@pytest.fixture(scope='session')
def full(request):
    "Is this the long form (make test-full)? Attacks are then many times as many."
    return is_full(request.config)

@pytest.fixture
def tally(request):
    "Note attacks and how they ended: tally(part, what, how, n)."
    def note(part, what, how, n=1): request.node.user_properties.append(('attack', [part, what, how, int(n)]))
    return note

@pytest.fixture
def ends(tally):
    "How reading a file ends: its `Steps`, or the `MediaError`, which names the file; tallied under a kind."
    import numpy as np
    from hcms.media import MediaError, read_steps
    def read(kind, path, spec, *args):
        try: s = read_steps(path, spec, *args)
        except MediaError as e:
            assert str(path) in str(e)
            tally('media', kind, 'refused'); return e
        assert len(s)==spec.steps and (s.patches is None or np.isfinite(s.patches).all()) and s.info.duration>0
        tally('media', kind, s.info.status)
        return s
    return read

def pytest_runtest_logreport(report):
    if report.when=='call' and report.passed: attacks.seen += [o for k,o in report.user_properties if k=='attack']

def pytest_terminal_summary(terminalreporter, exitstatus, config):
    if not attacks.seen or hasattr(config, 'workerinput'): return
    terminalreporter.section('attacks that ended well')
    terminalreporter.write_line(attacks.summary())
    whole = not config.option.markexpr and not config.option.keyword and set(attacks.table().part)==set(attacks.PARTS)   # as make test-full asks
    if whole and exitstatus==0: terminalreporter.write_line(f'written: {attacks.write(ROOT/"reports"/"demo")}')
