"Every report notebook as a reader runs it: in one kernel, with other parameters, on data that are not real."
import json
import os
import re
import subprocess
import sys
import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient
from helpers import BIN, ROOT, once

OTHER = 'seeds=1,epochs=1'   # where `hcms report demo --seeds 1 --epochs 1` writes, below reports/demo

# a kernel that runs many notebooks

SETUP = """
import json, os
import torch
torch.set_num_threads(1)
from hcms.experiments import datasets, policies, runs
from hcms.reports import tables
asked = []
def noted(dataset, configs, check=runs.check_configs, folder=runs.run_folder, asked=asked):
    asked.extend((dataset.fingerprint, folder(dataset, c).name) for c in configs)
    check(dataset, configs)
runs.check_configs = noted
class Here:
    "A pool without processes: small runs are trained sooner than a process starts."
    def __init__(self, workers, start=None, args=(), doing=None): start and start(*args)
    def __enter__(self): return self
    def __exit__(self, *error): pass
    def map(self, f, jobs, chunksize=1): return map(f, jobs)
runs.worker_pool = policies.worker_pool = Here
"""

STANDIN = SETUP + """
def tiny(name, workers=2, make=datasets.SimulatedDataset):
    return make(name, training=40, selection=20, evaluated=30, steps=12)
datasets.open_dataset = tables.open_dataset = tiny
"""

def cells_of(name, **parameters) -> list:   # of (code, is it the parameters' cell?)
    "The code of a notebook's cells, as it is after someone changed the values in the first of them."
    out = []
    for c in nbformat.read(ROOT/'nbs'/f'{name}.ipynb', 4).cells:
        if c.cell_type!='code':
            continue
        if 'parameters' in c.metadata.get('tags', ()):
            for k,v in parameters.items():
                changed = re.sub(rf'^({k}: \w+ = )[^#\n]*', lambda m: f'{m[1]}{v!r} ', c.source, flags=re.M)
                if re.search(rf'^{k}:', c.source, re.M):
                    assert f'{k}: ' in changed and repr(v) in changed
                c.source = changed
        out.append(c.source)
    return out

def run_cells(cells, home, cwd=ROOT/'nbs', **env) -> list:
    "Run cells one after the other in a fresh kernel of this Python; each with its outputs."
    from hcms.reports.driver import this_python
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(o) for o in cells])
    kernel = dict(kernel_name='python3', kernel_manager_class=this_python())
    client = NotebookClient(nb, timeout=600, resources=dict(metadata=dict(path=str(cwd))), **kernel)
    client.execute(env=os.environ | dict(HCMS_HOME=str(home), HCMS_DATA='', OMP_NUM_THREADS='1') | env)
    return nb.cells

def texts(cell) -> str:
    "All that a cell shows, as text."
    said = [o.get('text', '') for o in cell.outputs]
    said += [str(v) for o in cell.outputs for k,v in o.get('data', {}).items() if k.startswith('text/')]
    return '\n'.join(filter(None, said))

def shows(cell) -> bool:
    "Does a cell show numbers or pictures?"
    data = [o.get('data', {}) for o in cell.outputs]
    return any('image/png' in o or re.search(r'\d', o.get('text/plain', '')) for o in data)

KINDS = re.compile(r'(table|fig)\d+$|claims$|rivals$|calibration$')   # of a stand-in
REPORT = sorted(p.stem for p in (ROOT/'nbs').glob('*.ipynb') if KINDS.match(p.stem))

FOREIGN = """
import numpy as np
seed, dataste, budget, view = 7, "mine", [1], None   # names like those of parameters
"""

def own_policy(folder) -> dict:   # environment
    "The policy of the README in a module of its own, and what makes every process import it."
    blocks = re.findall(r'```python\n(.*?)```', (ROOT/'README.md').read_text(encoding='utf-8'), re.S)
    code, = (o for o in blocks if '@register_policy' in o)
    folder.mkdir(exist_ok=True)
    (folder/'first_steps.py').write_text(code, encoding='utf-8')
    return dict(HCMS_EXTENSIONS='first_steps', PYTHONPATH=str(folder))

@pytest.fixture(scope='session')
def executed(tmp_path_factory):
    """Each report notebook on a tiny stand-in, twice in one kernel: 'NAME TURN' -> its cells and runs.

    A policy of a user's own is among those that are compared."""
    def note(c):
        first = dict(c.outputs[0].get('data', {})) if c.outputs else {}
        return dict(source=c.source, text=texts(c), shows=shows(c), first=first)
    def run(folder):
        cells = [STANDIN]
        at = {}
        for name in REPORT:
            for turn,seeds in enumerate((1, 2)):
                own = cells_of(name, dataset='activitynet', epochs=1, seeds=seeds)
                if turn:
                    own[1:1] = [FOREIGN]   # between the parameters and their check
                at[f'{name} {turn}'] = len(cells),len(own)
                cells += [*own, 'print(json.dumps(asked)); asked.clear()']
        done = run_cells(cells, folder, **own_policy(folder/'own'))
        out = {}
        for k,(i,n) in at.items():
            out[k] = dict(cells=[note(c) for c in done[i:i+n]], asked=json.loads(done[i+n].outputs[0].text))
        (folder/'executed.json').write_text(json.dumps(out))
    home = once(tmp_path_factory, 'executed', run)
    return json.loads((home/'executed.json').read_text()),home

def test_every_report_notebook_runs_again_with_other_parameters(executed):
    "In one kernel, with a user's own cells and names; the second pass leaves the results of the first."
    done,home = executed
    for name in REPORT:
        first,second = (done[f'{name} {turn}']['cells'][-1]['text'] for turn in (0, 1))
        assert '/seeds=1,epochs=1:' in first and '/seeds=2,epochs=1:' in second
        assert second.endswith(first.split(':')[-1])
    reports = home/'reports'/'activitynet-simulated'
    folders = sorted(p.name for p in reports.iterdir())
    assert folders==['seeds=1,epochs=1', 'seeds=2,epochs=1'], 'default parameters would write here'
    for folder,seeds in zip(sorted(reports.iterdir()), (1, 2)):
        assert {json.loads(p.read_text())['parameters']['seeds'] for p in folder.glob('*.json')}=={seeds}

def test_every_notebook_says_what_it_wrote(executed):
    done,home = executed
    said = [done[f'{name} 0']['cells'][-1]['text'].strip().splitlines()[-1] for name in REPORT]
    assert all(o.startswith('written to reports/activitynet-simulated/seeds=1,epochs=1: ') for o in said)
    files = {f for o in said for f in o.split(': ')[1].split(', ')}
    assert files=={p.name for p in (home/'reports'/'activitynet-simulated'/'seeds=1,epochs=1').iterdir()}

def test_what_is_simulated_says_so_in_every_cell(executed):
    done,_ = executed
    for name,o in done.items():
        opened = next(c for c in o['cells'] if c['source'].startswith('data = open_'))
        first = opened['first']
        assert 'background:#B2182B' in first['text/html'], name
        assert first['text/plain'].startswith('SIMULATED FEATURES'), name
        for c in o['cells']:
            assert not c['shows'] or 'SIMULATED FEATURES' in c['text'], f"{name}: {c['source']}"
        assert sum(c['shows'] for c in o['cells'])>=2, name
        pictures = [c for c in o['cells'] if re.match(r'show_(fig|rivals)', c['source'])]
        assert all(c['shows'] for c in pictures), f'{name}: a picture is not shown'
    trains = ''.join(c['text'] for o in done.values() for c in o['cells'] if 'get_runs(' in c['source'])
    assert 'train, activitynet-simulated [SIMULATED FEATURES]' in trains

def test_the_driver_trains_what_each_notebook_would(executed):
    """`hcms report activitynet --only NAME` trains the runs that NAME alone would train, and no other.

    A policy that still rises is asked what twice the epochs bring, and in the ledger the next seed comes in
    the place of a training that learned nothing; both are known only then."""
    from hcms.experiments.datasets import SimulatedDataset
    from hcms.reports.driver import MEASURED, needed
    from hcms.experiments.runs import longer, run_folder
    done,_ = executed
    data = SimulatedDataset('activitynet', training=40, selection=20, evaluated=30, steps=12)
    for name in REPORT:
        for turn,seeds in enumerate((1, 2)):
            asked = done[f'{name} {turn}']['asked']
            own = {key for of,key in asked if of==data.fingerprint}   # calibration trains trials on others
            configs = needed(data, [name], seeds, 1)
            ours = {run_folder(data, c).name for c in configs}
            twice = {run_folder(data, longer(c, 2)).name for c in configs}
            next_seeds = [c.model_copy(update=dict(seed=c.seed+1)) for c in configs]
            spare = {run_folder(data, c).name for c in next_seeds}
            later = dict.fromkeys(MEASURED, twice) | dict(claims=twice | spare)
            assert ours<=own and own-ours<=later.get(name, set()), name

def test_a_policy_of_ones_own_is_in_every_comparison(executed):
    _,home = executed
    out = home/'reports'/'activitynet-simulated'/OTHER
    for name in ('rivals', 'rivals_admission', 'table3_measured', 'learning_curves'):
        assert 'First steps' in set(pd.read_csv(out/f'{name}.csv').policy), name
    own = pd.read_csv(out/'rivals.csv').query('policy=="First steps"')
    assert (own.use_audio==1).all() and own.gflops.is_monotonic_increasing

def test_a_policy_of_ones_own_reaches_the_workers(tmp_path, monkeypatch):
    from hcms.core import worker_pool
    from hcms.experiments.policies import policy_changes
    here = policy_changes()
    for k,v in own_policy(tmp_path/'own').items():
        monkeypatch.setenv(k, v)
    monkeypatch.syspath_prepend(tmp_path/'own')   # as PYTHONPATH does where a process starts
    with worker_pool(1) as pool:
        there = pool.submit(policy_changes).result()
    assert there==[*here, dict(model='reader')]

IN_A_NOTEBOOK = '''
from hcms.core import InputError
from hcms.experiments.policies import Random, measured, register_policy
@register_policy
def mine(): return Random('Mine', 'no learning', [dict(model='reader')], (.5,))
try:
    measured(tiny('activitynet'), 1, 1)
except InputError as e:
    print(e)
'''

def test_a_policy_that_workers_cannot_see_is_refused(tmp_path):
    said = texts(run_cells([STANDIN, IN_A_NOTEBOOK], tmp_path)[-1])
    assert 'Mine: is registered in a notebook' in said and 'HCMS_EXTENSIONS' in said
    assert not list(tmp_path.rglob('run.json'))

def test_demo_notebooks_run_again(tiny_reports, tmp_path):
    "Those that only the demo has, and those that show its videos, from stored runs."
    cells = [SETUP]
    for name in ('ablations', 'fig5', 'table1'):
        for turn in 'ab':
            cells += [FOREIGN, *cells_of(name, seeds=1, epochs=1, out_dir=str(tmp_path/turn))]
    done = run_cells(cells, tiny_reports)
    assert not any('SIMULATED' in texts(c) for c in done)
    for turn in 'ab':
        files = {p.name for p in (tmp_path/turn).iterdir()}
        assert {'ablations.csv', 'fig5.png', 'table1_families.md'}<=files
    driver = tiny_reports/'reports'/'demo'/OTHER
    for p in (tmp_path/'a').iterdir():
        if p.suffix=='.json':   # says how many workers
            continue
        assert p.read_bytes()==(tmp_path/'b'/p.name).read_bytes()==(driver/p.name).read_bytes()

# real data

def write_features(root, steps, random_weights=False, classes=('a', 'b'), n=24):
    "HCMS_DATA with an ActivityNet of a few videos whose features are noise, put straight into the store."
    import numpy as np
    import torch
    from hcms.networks.backbones import load_backbones, weights_path
    from hcms.core import MODALITIES, fingerprint
    from hcms.extraction.extract import open_views
    from hcms.data.store import FeatureStore
    d = root/'activitynet'
    finetuned = d/'backbones'/'finetuned'
    finetuned.mkdir(parents=True)
    ids = [f'v{i:02d}' for i in range(n+8)]
    rows = []
    for i,id in enumerate(ids):
        split = 'training' if i<n else 'validation'
        rows.append(f'{id},videos/{id}.mp4,{split},{classes[i%len(classes)]}')
    (d/'manifest.csv').write_text('\n'.join(['id,path,split,labels', *rows, '']))
    (d/'dataset.json').write_text(json.dumps(dict(steps=steps)))
    if random_weights:
        pretrained = d/'backbones'/'pretrained'
        pretrained.mkdir()
        note = {m: dict(what='RANDOM WEIGHTS') for m in MODALITIES}
        (pretrained/'weights.json').write_text(json.dumps(note))
    for m in MODALITIES:
        weights_path(finetuned, m).write_bytes(m.encode())
    views = open_views(FeatureStore(d/'features'), load_backbones('paper', finetuned, lazy=True, steps=steps))
    of = fingerprint(sorted((m, v.fp) for m,v in views.items()))
    prices = dict(of=of, gflops=dict(audio=.07, appearance=1.8, motion=66.))
    (d/'backbones'/'prices.json').write_text(json.dumps(prices))
    rng = np.random.default_rng(0)
    for id in ids:
        for m,size in dict(audio=1024, appearance=1536, motion=2304).items():
            x = torch.from_numpy(rng.standard_normal((steps, size)).astype('f4'))
            views[m].put(id, x, np.ones(steps, bool) if m=='audio' else None, {}, dtype=torch.float16)

def test_random_weights_say_so_in_every_cell(tmp_path):
    write_features(tmp_path, 4, random_weights=True)
    # the paper's sizes would take minutes
    small = "\ndatasets.plan_of = lambda preset, of=datasets.plan_of: of('demo')"
    cells = []
    for n in ('table2', 'fig4', 'fig2'):
        cells += cells_of(n, dataset='activitynet', seeds=1, epochs=1)
    done = run_cells([SETUP+small, *cells], tmp_path, HCMS_DATA=str(tmp_path))
    for c in done[1:]:
        assert not shows(c) or 'RANDOM WEIGHTS' in texts(c), c.source
    opened = [c for c in done if c.source.startswith('data = open_')]
    assert len(opened)==3 and all('background:#B2182B' in c.outputs[0].data['text/html'] for c in opened)

def refusal(*args, **kw) -> str:
    "The `InputError` of `make_reports`, as text."
    from hcms.core import InputError
    from hcms.reports.driver import make_reports
    with pytest.raises(InputError) as e:
        make_reports(*args, **kw)
    return str(e.value)

def test_what_cannot_be_made_is_refused_before_training(tmp_path, monkeypatch):
    "More views than time steps, videos that are gone, another kind of data, values that are none."
    from hcms.core import InputError
    from hcms.experiments.datasets import Dataset
    from hcms.reports.driver import CONFIGS, needed
    write_features(tmp_path, 4)
    monkeypatch.setenv('HCMS_DATA', str(tmp_path))
    monkeypatch.setenv('HCMS_HOME', str(tmp_path))
    data = Dataset('activitynet')
    said = {}
    for name in CONFIGS:
        try:
            needed(data, [name], 1, 1)
        except InputError as e:
            said[name] = str(e)
    views = {'table1', 'claims', 'rivals', 'fig3', 'table3', 'beyond'}
    assert set(said)=={*views, 'fig1', 'fig5', 'calibration'}
    assert '4 time steps' in said['table1'] and 'activitynet has 4' in said['rivals']
    assert 'v24.mp4: no such file' in said['fig5'] and 'nothing to calibrate' in said['calibration']
    a_file = str(tmp_path/'activitynet'/'manifest.csv')
    for wrong,says in (
        (dict(), 'the others can be had: --only'),
        (dict(only=['table1']), 'time steps'),
        (dict(only=['speed']), 'is measured on the demo'),
        (dict(only=['tabel1']), "did you mean 'table1'"),
        (dict(seeds=0), 'seeds: must be above 0'),
        (dict(epochs=-1), 'epochs: must be 0 or more'),
        (dict(workers=0), 'workers: must be above 0'),
        (dict(out_dir=a_file), 'is a file'),
    ):
        message = refusal('activitynet', **dict(seeds=1, epochs=1) | wrong)
        assert says in message, message
    for only,says in ((['calibration'], 'nothing to calibrate'), (['ablations', 'tabel1'], 'did you mean')):
        assert says in refusal('demo', 1, 1, only=only)
    monkeypatch.setenv('HCMS_DATA', '')
    assert 'cannot be learned' in refusal('activitynet', 1, 1, only=['ablations'])
    assert not list(tmp_path.rglob('run.json')) and not (tmp_path/'reports').exists()
    assert not (tmp_path/'data'/'demo').exists()

def lose_a_feature(d):
    next((d/'features').rglob('motion/**/v03*.safetensors')).unlink()

def lose_a_split(d):
    rows = (d/'manifest.csv').read_text().splitlines()
    (d/'manifest.csv').write_text('\n'.join([o for o in rows if 'validation' not in o]+['']))

def lose_a_class(d):
    text = (d/'manifest.csv').read_text()
    (d/'manifest.csv').write_text(text.replace(',b\n', ',a\n'))

@pytest.mark.parametrize('harm, says', [
    (lose_a_feature, 'have no features (v03'), (lose_a_split, "has no video in split 'validation'"),
    (lose_a_class, 'validation split: has videos of one class')])
def test_a_data_set_that_lacks_something_is_refused_before_training(tmp_path, monkeypatch, harm, says):
    write_features(tmp_path, 12)
    harm(tmp_path/'activitynet')
    monkeypatch.setenv('HCMS_DATA', str(tmp_path))
    monkeypatch.setenv('HCMS_HOME', str(tmp_path))
    assert says in refusal('activitynet', 1, 1, only=['claims'])
    assert not list(tmp_path.rglob('run.json'))

# the kernel

def test_a_kernel_of_another_python_says_so(tmp_path):
    "papermill by hand takes what calls itself python3; `reports/07_driver` does not, as its own tests show."
    spec = tmp_path/'jupyter'/'kernels'/'python3'
    spec.mkdir(parents=True)
    elsewhere = ("import sys; sys.prefix = '/elsewhere'; "
                 'from ipykernel import kernelapp; kernelapp.launch_new_instance()')
    argv = [sys.executable, '-c', elsewhere, '-f', '{connection_file}']
    (spec/'kernel.json').write_text(json.dumps(dict(argv=argv, display_name='Python 3', language='python')))
    command = [BIN/'papermill', 'nbs/table2.ipynb', tmp_path/'out.ipynb', '-p', 'seeds', '0']
    for env,says in ((dict(JUPYTER_PATH=str(tmp_path/'jupyter')), True), (dict(JUPYTER_PATH=''), False)):
        env = os.environ | dict(HCMS_HOME=str(tmp_path), HCMS_DATA='') | env
        r = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        assert r.returncode!=0 and 'seeds: must be above 0' in r.stderr
        assert ('note: this is the Python in /elsewhere' in (tmp_path/'out.ipynb').read_text())==says
