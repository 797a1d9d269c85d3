"The package as a user installs it: a wheel in a new environment, no clone near it, called in any folder."
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
import numpy as np
import pytest
from helpers import PACKAGES, ROOT, fresh_clone, new_environment, without_home

# Packages that the extra [report] brings, and folders that need them:
REPORT = ('matplotlib', 'seaborn', 'papermill', 'ipykernel', 'jupyterlab', 'ipywidgets')
NEED_IT = ('reports', 'bench')
COMMANDS = 'render doctor weights finetune extract train report store manifest predict export'.split()
PIP = (sys.executable, '-m', 'pip')
OFFLINE = ('--quiet', '--no-deps', '--no-index')

@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> Path:
    "The wheel, built without a network."
    source = fresh_clone(tmp_path_factory.mktemp('source')/'hcms')
    out = tmp_path_factory.mktemp('wheel')
    words = [*PIP, 'wheel', *OFFLINE, '--no-build-isolation', '-w', out, source]
    subprocess.run(words, check=True, env=without_home())
    shutil.rmtree(source)
    return next(out.glob('hcms-*.whl'))

def install(wheel, folder, packages=PACKAGES) -> Path:
    "A new environment with the wheel; the path of its folder of commands."
    new_environment(folder, packages)
    words = [*PIP, '--python', folder/'bin'/'python', 'install', *OFFLINE, '--no-warn-script-location', wheel]
    subprocess.run(words, check=True, env=without_home())
    return folder/'bin'

@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory) -> Path:
    return install(wheel, tmp_path_factory.mktemp('env')/'whole')

@pytest.fixture(scope='module')
def bare(wheel, tmp_path_factory) -> Path:
    "An environment without the extra [report]: links to all other packages."
    folder = tmp_path_factory.mktemp('bare')
    (folder/'packages').mkdir()
    for o in PACKAGES.iterdir():
        left_out = o.name.lower().startswith(('hcms', '__editable__', '__pycache__', *REPORT))
        if not left_out:
            (folder/'packages'/o.name).symlink_to(o)
    return install(wheel, folder/'env', folder/'packages')

@pytest.fixture
def somewhere(tmp_path) -> Path:
    "A folder like any other, with a video."
    from hcms.media.files import write_video
    (tmp_path/'here').mkdir()
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (20, 64, 64, 3), dtype=np.uint8)
    write_video(tmp_path/'here'/'video.mp4', frames, 10, rng.normal(0, .1, 32_000).astype(np.float32), 16_000)
    return tmp_path/'here'

def call(bin, cwd, *words, check=True, **env):
    "A command of an environment, called in a folder; the platform's folder for data is beside it."
    home = cwd.parent
    env = without_home(PATH=f'{bin}:/usr/bin:/bin', HOME=str(home), XDG_DATA_HOME=str(home/'share'), **env)
    words = [bin/words[0], *map(str, words[1:])]
    r = subprocess.run(words, cwd=cwd, env=env, capture_output=True, encoding='utf-8')
    if check:
        assert r.returncode==0, r.stdout[-2000:]+r.stderr[-3000:]
    return r

def test_the_wheel_has_its_data(wheel):
    "Everything that lies in hcms/ of a clone is in the wheel, and no notebook."
    there = {o for o in zipfile.ZipFile(wheel).namelist() if '.dist-info/' not in o}
    clone = {o for o in (ROOT/'hcms').rglob('*') if o.is_file() and '__pycache__' not in o.parts}
    assert there=={o.relative_to(ROOT).as_posix() for o in clone}
    assert 'hcms/resources/demo/recognizer.json' in there and 'hcms/resources/table1.csv' in there

def test_the_wheel_predicts_in_any_folder(installed, somewhere):
    assert 'Usage' in call(installed, somewhere, 'hcms', '--help').stdout
    used = call(installed, somewhere, 'python', '-c', 'import hcms; print(hcms.__file__)').stdout
    assert Path(used.strip()).is_relative_to(installed.parent)
    said = call(installed, somewhere, 'hcms', 'predict', 'video.mp4')
    assert '%' in said.stdout and 'GFLOPs' in said.stdout
    assert [o.name for o in somewhere.iterdir()]==['video.mp4'] and not (somewhere.parent/'share').exists()

@pytest.mark.full
def test_the_wheel_explains_itself_and_draws(installed, somewhere):
    for name in COMMANDS:
        assert 'Usage' in call(installed, somewhere, 'hcms', name, '--help').stdout
    call(installed, somewhere, 'hcms', 'predict', 'video.mp4', '--plot', 't.png')
    assert (somewhere/'t.png').read_bytes()[:4]==b'\x89PNG'
    said = call(installed, somewhere, 'hcms', 'doctor').stdout
    assert f'below {somewhere.parent}/share/hcms (this platform' in said
    said = call(installed, somewhere, 'hcms', 'doctor', HCMS_HOME='~/mine').stdout
    assert f'below {somewhere.parent}/mine (HCMS_HOME)' in said
    assert not (somewhere.parent/'share').exists()

@pytest.mark.full
def test_the_wheel_is_the_library_of_the_readme(installed, somewhere):
    "Every Python block of the README, in order, in one process."
    shutil.copy(somewhere/'video.mp4', somewhere/'my_video.mp4')
    blocks = re.findall(r'```python\n(.*?)```', (ROOT/'README.md').read_text(encoding='utf-8'), re.S)
    assert len(blocks)>=4
    code = '\n'.join([*blocks, 'print(said.top()[0], out.logits.shape)'])
    (somewhere/'lines.py').write_text(code, encoding='utf-8')
    assert 'torch.Size([2, 200])' in call(installed, somewhere, 'python', 'lines.py').stdout

@pytest.mark.full
def test_the_wheel_trains_and_reads_where_the_platform_keeps_data(installed, somewhere, tiny_home):
    "Features, training, a store, an export; and a manifest from a relative HCMS_DATA."
    home = somewhere.parent/'share'/'hcms'
    shutil.copytree(tiny_home/'data', home/'data', ignore=shutil.ignore_patterns('runs'))
    assert '64 already there' in call(installed, somewhere, 'hcms', 'extract', 'demo').stdout
    said = call(installed, somewhere, 'hcms', 'train', 'demo', '--seeds', 1, '--epochs', 1).stdout
    assert str(home/'data'/'demo'/'runs') in said
    said = call(installed, somewhere, 'hcms', 'store', 'verify', home/'data'/'demo'/'features').stdout
    assert 'all files are intact' in said
    call(installed, somewhere, 'hcms', 'export', 'programs')
    assert (somewhere/'programs'/'program.json').is_file()
    tree = dict(database=dict(aaa=dict(subset='training', annotations=[dict(label='x')])))
    (somewhere/'a.json').write_text(json.dumps(tree), encoding='utf-8')
    words = ('hcms', 'manifest', 'activitynet', '--annotations', 'a.json')
    call(installed, somewhere, *words, HCMS_DATA='mydata')
    assert (somewhere/'mydata'/'activitynet'/'manifest.csv').is_file()

@pytest.mark.full
def test_what_needs_notebooks_says_so_first(installed, somewhere):
    r = call(installed, somewhere, 'hcms', 'report', check=False)
    assert r.returncode==2 and 'git clone https://' in r.stderr and 'Traceback' not in r.stderr
    assert not (somewhere.parent/'share').exists()
    clone = fresh_clone(somewhere.parent/'clone')
    for cwd,env in ((clone/'nbs', {}), (somewhere, dict(HCMS_HOME=str(clone)))):
        r = call(installed, cwd, 'hcms', 'report', '--only', 'nosuch', check=False, **env)
        assert r.returncode==2 and 'no such report notebook' in r.stderr   # it gets as far as the names

@pytest.mark.full
def test_without_the_report_extra_all_but_pictures_works(bare, somewhere):
    "What is missing is named with the command that brings it, before any work."
    assert 'Usage' in call(bare, somewhere, 'hcms', '--help').stdout
    assert '%' in call(bare, somewhere, 'hcms', 'predict', 'video.mp4').stdout
    call(bare, somewhere, 'hcms', 'doctor')
    for words in (('predict', 'video.mp4', '--plot', 't.png'), ('predict', 'absent.mp4', '--plot', 'new/')):
        r = call(bare, somewhere, 'hcms', *words, check=False)
        assert r.returncode==2 and r.stdout=='', r.stderr
        assert "pip install 'hcms[report]'" in r.stderr and 'matplotlib' in r.stderr
        assert r.stderr.count('\n')==1 and '\x1b' not in r.stderr
    assert sorted(o.name for o in somewhere.iterdir())==['video.mp4']
    r = call(bare, fresh_clone(somewhere.parent/'clone'), 'hcms', 'report', check=False)
    assert r.returncode==2 and "pip install 'hcms[report]'" in r.stderr and 'papermill' in r.stderr
    modules = {o.relative_to(ROOT).with_suffix('') for o in (ROOT/'hcms').rglob('[!_]*.py')}
    rest = {'.'.join(o.parts) for o in modules if o.parts[1] not in NEED_IT}
    call(bare, somewhere, 'python', '-c', ';'.join(f'import {o}' for o in sorted(rest)))
