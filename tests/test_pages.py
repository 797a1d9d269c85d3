"""Every command line that README, the guide and the page on data sets print, run in a fresh clone, in order.

The environment takes its packages from the one that runs the tests instead of the internet; videos and the
owners' files are small ones of the real formats. INSTEAD replaces what takes hours, a GPU or a network."""
import importlib.metadata
import json
import re
import shlex
import shutil
import subprocess
import numpy as np
import pytest
from hcms.core import sha256
from helpers import ROOT, fresh_clone, new_environment, without_home

COMMANDS = 'hcms|make|papermill|pip|source|export|sbatch|accelerate|jupyter|git|python'

def lines_of(text:str) -> list:
    "The command lines of a page: those of its plain fenced blocks, and those in its sentences."
    out = []
    fence = None
    for line in text.splitlines():
        if line.startswith('```'):
            fence = line[3:] if fence is None else None
            continue
        if fence=='' and re.match(rf'({COMMANDS}|\.venv/bin/\w+)\b', line):
            out.append(line)
        if fence is None:
            out += re.findall(rf'`((?:{COMMANDS}) [^`]*)`', line)
    return [re.sub(r'\s+#.*', '', o).strip() for o in out]

def page(*path) -> str:
    return ROOT.joinpath(*path).read_text(encoding='utf-8')

def markdown(name) -> str:
    cells = json.loads(page('nbs', f'{name}.ipynb'))['cells']
    return '\n'.join(''.join(c['source']) for c in cells if c['cell_type']=='markdown')

PAGES = dict(README=page('README.md'), full_size=markdown('full_size'))
PAGES['data_manifests'] = page('data_manifests', 'README.md')
ALL = [(page, line) for page,text in PAGES.items() for line in lines_of(text)]

# How a command that was understood ends without a GPU, or before finetuning:
NO_GPU = r"\nhcms: .*(torch finds no .* on this machine|it should hold the weights of the \w+ network)"
# (line, page or '', what runs, how it may end, a pattern of what it must say)
TABLE = 'papermill --help-notebook nbs/table1.ipynb'
ARRAY = 'SLURM_ARRAY_TASK_ID=0 SLURM_ARRAY_TASK_COUNT=1 bash'
TOGETHER = 'accelerate launch --help && python -m'
INSTEAD = [
    # half an hour; tests/test_pipeline.py runs `hcms report`
    (r'make (reports|test|notebooks)\b.*', '', 'make -n {rest}', (0,), '.venv/bin/'),
    # tests/test_wheel.py installs the package
    (r'pip install .*', '', 'true', (0,), ''),
    # named in a sentence, without its arguments
    (r'hcms (render|report|extract|weights|evaluate|manifest folder)', '', '{line} --help', (0,), 'Usage'),
    (r'hcms (finetune --train nothing|extract --device cuda)', '', '{line} --help', (0,), 'Usage'),
    # on a corpus of 64 videos
    (r'papermill .* -p dataset demo', '', '{line} -p seeds 1 -p epochs 1', (0,), ''),
    # tests/test_notebooks.py runs it on simulated features
    (r'export HCMS_EXTENSIONS=.*', '', 'true', (0,), ''),
    (r'hcms report demo --only rivals', '', 'hcms report --help', (0,), 'Usage'),
    # tests/test_full_size.py runs it on features
    (r'papermill nbs/table1.ipynb .*', 'full_size', TABLE, (0,), 'dataset'),
    # on simulated features
    (r'papermill .* -p dataset activitynet', '', 'HCMS_DATA= {line} -p seeds 1 -p epochs 1', (0,), ''),
    # it names what is missing, and ends with 1 for that
    (r'hcms doctor activitynet', '', '{line}', (0, 1), 'activitynet: manifest'),
    (r'export HCMS_DATA=.*', '', 'export HCMS_DATA="$STAND_IN"', (0,), ''),
    # a folder of the reader's; tests/test_own_dataset.py and nbs/reports/08_learn.ipynb have one
    (r'(hcms (?:learn|extract|manifest folder|manifest csv)) /where/.*', '', '{1} --help', (0,), 'Usage'),
    (r'papermill .* -p dataset /where/.*', '', TABLE, (0,), 'dataset'),
    # the internet
    (r'hcms weights activitynet', '', '{line} --weights random', (0,), 'pretrained/motion'),
    # a day without a GPU
    (r'hcms (finetune|extract) activitynet', '', '{line} --help', (0,), 'Usage'),
    (r'hcms (finetune|train|extract) .*--device cuda.*', '', '{line}', (2,), NO_GPU),
    # a Slurm cluster
    (r'sbatch --array=0-15 (.*)', '', ARRAY+' {1}', (2,), NO_GPU),
    # several GPUs; tests/test_pipeline.py trains in two processes
    (r'accelerate launch .* -m (hcms.cli .*)', '', TOGETHER+' {1} --help', (0,), '--multi_gpu'),
]

def what_runs(page, line) -> tuple:   # (command, exit codes, what it must say)
    for pattern,where,command,codes,says in INSTEAD:
        m = re.fullmatch(pattern, line)
        if m and where in ('', page):
            rest = line.partition(' ')[2]
            return command.format(line, *m.groups(), line=line, rest=rest),codes,says
    return line,(0,),''

def test_pages_print_commands():
    assert {p for p,_ in ALL}==set(PAGES) and len(ALL)>30
    for pattern,where,*_ in INSTEAD:
        replaced = [line for page,line in ALL if re.fullmatch(pattern, line) and where in ('', page)]
        assert replaced, f'{pattern} replaces nothing'
    assert 'papermill nbs/table2.ipynb out.ipynb -p dataset activitynet' in [line for _,line in ALL]

@pytest.mark.parametrize('page', PAGES)
def test_the_environment_is_activated_before_its_commands(page):
    "Nothing of .venv is found before a line says how."
    first = re.search(r'^(hcms|papermill|accelerate) ', PAGES[page], re.M).start()
    assert 0<PAGES[page].find('source .venv/bin/activate')<first

@pytest.mark.parametrize('page,line', ALL)
def test_each_line_names_what_there_is(page, line):
    "Commands and options of hcms, notebooks and their parameters, targets of the Makefile, files."
    words = shlex.split(line)
    if '-m' in words and words[0]=='accelerate':
        words = ['hcms', *words[words.index('hcms.cli')+1:]]
    if words[0]=='make':
        targets = re.findall(r'^([a-z -]+):', (ROOT/'Makefile').read_text(encoding='utf-8'), re.M)
        assert words[1] in ' '.join(targets).split()
    if words[0]=='papermill':
        cells = json.loads((ROOT/words[1]).read_text(encoding='utf-8'))['cells']
        known = next(''.join(c['source']) for c in cells if c['metadata'].get('tags')==['parameters'])
        for name in words[words.index('-p')+1::3]:
            assert re.search(rf'^{name}\b', known, re.M), name
    if words[0]=='sbatch':
        assert (ROOT/words[2]).is_file()
    if words[0]=='hcms':
        from typer.main import get_command
        from hcms.cli import app
        command = get_command(app)
        rest = words[1:]
        while hasattr(command, 'commands'):
            command = command.commands[rest.pop(0)]
        known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
        assert {w for w in rest if w.startswith('--')}<=known

# in a fresh clone

@pytest.fixture
def clone(tmp_path):
    "A clone as `make install` leaves it, and a video."
    from hcms.media.files import write_video
    root = fresh_clone(tmp_path/'clone')
    bin = new_environment(root/'.venv')/'bin'
    site = next((root/'.venv'/'lib').glob('python*/site-packages'))
    (site/'clone.pth').write_text(f'{root}\n', encoding='utf-8')
    scripts = {o.name: o.value for o in importlib.metadata.entry_points(group='console_scripts')}
    scripts['hcms'] = 'hcms.cli:main'
    for name in ('hcms', 'papermill', 'accelerate', 'jupyter'):
        module,call = scripts[name].split(':')
        code = f'#!{bin}/python\nimport sys\nfrom {module} import {call}\nsys.exit({call}())\n'
        (bin/name).write_text(code, encoding='utf-8')
        (bin/name).chmod(0o755)
    (root/'.venv'/'ready').touch()
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (20, 64, 64, 3), dtype=np.uint8)
    write_video(root/'my_video.mp4', frames, 10, rng.normal(0, .1, 32_000).astype(np.float32), 16_000)
    return root

def run_page(page, root, **env):
    "All lines of a page in one shell, started by somebody who has set nothing."
    marked = [(line, *what_runs(page, line)) for line in lines_of(PAGES[page])]
    commands = [command for _,command,*_ in marked]
    script = '\n'.join(f'echo "<<<{n}"\n{o}\necho ">>>$? $SECONDS"' for n,o in enumerate(commands))
    env = without_home(PATH='/usr/local/bin:/usr/bin:/bin', CUDA_VISIBLE_DEVICES='', **env)
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding='utf-8')
    said = subprocess.run(['bash'], input=script, cwd=root, env=env, **pipes).stdout
    parts = re.findall(r'<<<(\d+)\n(.*?)>>>(\d+) (\d+)', said, re.S)
    assert len(parts)==len(marked), said[-3000:]
    for (line,command,codes,says),(_,text,code,seconds) in zip(marked, parts):
        print(f'{seconds} s: {command}')
        well = int(code) in codes and re.search(says, '\n'+text) and 'Traceback' not in text
        assert well, f'{page}: {line}\n(as {command}) ended with {code}:\n{text[-3000:]}'

@pytest.mark.full
def test_lines_of_the_readme(clone, tiny_home):
    shutil.copytree(tiny_home/'data', clone/'data', ignore=shutil.ignore_patterns('runs'))
    run_page('README', clone)
    assert (clone/'timeline.png').is_file() and (clone/'out.ipynb').is_file()
    assert (clone/'reports'/'activitynet-simulated').is_dir()

def owners_files(data, clone):
    "A miniature of ActivityNet, FCVID's two lists and YAMNet's weights, as their owners publish them."
    from test_full_size import write_miniature
    from test_weights import random_yamnet, write_keras
    write_miniature(data)
    shutil.copy(data/'activity_net.v1-3.min.json', clone)
    split = 'a/v1.mp4\ttrain\nb/v2.flv\ttest\n'
    (clone/'FCVID_VideoName_TrainTestSplit.txt').write_text(split, encoding='utf-8')
    (clone/'FCVID_Label.txt').write_text('0 1 0\n1 0 1\n', encoding='utf-8')
    write_keras(random_yamnet(1.), clone/'yamnet.h5')

@pytest.mark.full
def test_lines_of_the_guide(clone, tmp_path):
    owners_files(tmp_path/'data', clone)
    words = ['manifest', 'activitynet', '--annotations', 'activity_net.v1-3.min.json']
    words.insert(0, clone/'.venv'/'bin'/'hcms')
    subprocess.run(words, cwd=clone, env=without_home(HCMS_DATA=str(tmp_path/'data')), check=True)
    run_page('full_size', clone, STAND_IN=str(tmp_path/'data'))

@pytest.mark.full
def test_lines_of_the_page_on_data_sets(clone, tmp_path):
    owners_files(tmp_path/'data', clone)
    run_page('data_manifests', clone, STAND_IN=str(tmp_path/'data'))
    assert (tmp_path/'data'/'fcvid'/'manifest.csv').is_file()

def test_the_demo_was_measured_with_the_networks_that_ship():
    "The committed results and a new run on any machine then begin with the same features, but for rounding."
    shipped = ROOT/'hcms'/'resources'/'demo'/'backbones'
    measured = json.loads(page('reports', 'demo', 'table1.json'))['backbones']
    for modality,network in measured.items():
        assert network['weights']==f"sha256:{sha256(shipped/f'{modality}.safetensors')}"
