"""What tests share: the command, copies of homes, clones and environments.

Worker processes import it, which conftest is not for."""
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from filelock import FileLock

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
SHORT = """
from hcms.experiments import datasets
whole = datasets.described
def short(name):
    "As described, but the demo's networks are trained for an epoch on a few short clips."
    said = whole(name)
    if not said.rendered:
        return said
    recipe = said.pretraining['recipe'] | dict(per_class=4, training=2, seconds=2)
    once = said.finetuning | dict(epochs=1, steps=8, lr=4e-3, head_lr=4e-3)
    return said.model_copy(update=dict(pretraining=dict(recipe=recipe, config=once), finetuning=once))
datasets.described = short
"""

def hcms(*args, home, check=True, cwd=ROOT, **kw):
    "Run the `hcms` command with HCMS_HOME set."
    env = dict(os.environ, HCMS_HOME=str(home), HCMS_DATA='')
    command = [BIN/'hcms', *map(str, args)]
    out = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, **kw)
    if check:
        assert out.returncode==0, out.stderr[-3000:]
    return out

def once(tmp_path_factory, name, make) -> Path:
    "A folder that the first test process to ask for it makes, for all of them."
    root = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:
        root = root.parent
    folder = root/name
    done = root/f'{name}.done'
    with FileLock(root/f'{name}.lock'):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder

def copy_home(tiny_home, to, *parts):
    "A home that shares nothing with the tiny one; `parts` of data/demo are left out."
    shutil.copytree(tiny_home/'data', to/'data', ignore=shutil.ignore_patterns('runs', *parts))
    return to

def run_code(code, home):
    (home/'go.py').write_text(code)
    env = dict(os.environ, HCMS_HOME=str(home), HCMS_DATA='')
    r = subprocess.run([sys.executable, home/'go.py'], env=env, capture_output=True, text=True)
    assert r.returncode==0, r.stderr[-3000:]
    return r

def fresh_clone(to) -> Path:
    "What `git clone` would give of the working tree as it stands."
    command = ['git', 'ls-files', '-z', '-c', '-o', '--exclude-standard']
    listed = subprocess.run(command, cwd=ROOT, capture_output=True)
    if listed.returncode:   # no repository here
        made = shutil.ignore_patterns('.git', '.venv', '__pycache__', '*.egg-info', 'build', 'checkpoints')
        return Path(shutil.copytree(ROOT, to, ignore=made))
    for o in map(os.fsdecode, filter(None, listed.stdout.split(b'\0'))):
        if not (ROOT/o).is_file():
            continue
        (to/o).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT/o, to/o)
    return to

PACKAGES = Path(sysconfig.get_paths()['purelib'])   # of the environment that runs the tests

def new_environment(folder, packages=PACKAGES) -> Path:
    "An environment that takes its packages from a folder, except an editable hcms: nothing is downloaded."
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', folder], check=True)
    ask = [folder/'bin'/'python', '-c', "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
    where = subprocess.run(ask, check=True, capture_output=True, encoding='utf-8').stdout.strip()
    # the .pth files of that folder are not read
    (Path(where)/'others.pth').write_text(f'{packages}\n', encoding='utf-8')
    return folder

OURS = ('HCMS_HOME', 'HCMS_DATA', 'HCMS_LINKS_OUT', 'PYTHONPATH', 'PYTHONHOME', 'VIRTUAL_ENV')

def without_home(**env) -> dict:
    "The environment variables of somebody who set none of ours."
    return {k: v for k,v in os.environ.items() if k not in OURS} | env

def count_videos(home) -> int:
    return len((home/'data'/'demo'/'manifest.csv').read_text().splitlines())-1
