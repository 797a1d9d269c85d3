"A data set of one's own: a folder with a manifest and a `dataset.toml`, by its path or below $HCMS_DATA."
import json
import shutil
import subprocess
import pandas as pd
import pytest
from helpers import BIN, ROOT, copy_home, hcms
from hcms.core import InputError

OWN = """
evaluated = "testing"
preset = "demo"
title = "shapes"

[training]
epochs = 2
min_epochs = 1
skip_targets = [0.55, 0.9]
"""

@pytest.fixture
def mine(tiny_home, tmp_path):
    "The tiny demo's videos, networks and features as somebody's own data set, and an empty home."
    demo = copy_home(tiny_home, tmp_path/'was')/'data'/'demo'
    folder = tmp_path/'collections'/'shapes'
    folder.parent.mkdir()
    shutil.move(demo, folder)
    shutil.rmtree(folder/'runs', ignore_errors=True)
    (folder/'dataset.toml').write_text(OWN)
    (tmp_path/'home').mkdir()
    return folder,tmp_path/'home'

def test_it_is_found_by_path_and_by_name(mine, monkeypatch):
    from hcms.experiments.datasets import Dataset, dataset_names, open_dataset
    from hcms.experiments.runs import config_for
    folder,home = mine
    monkeypatch.setenv('HCMS_HOME', str(home))
    monkeypatch.delenv('HCMS_DATA', raising=False)
    data = open_dataset(str(folder))
    assert (data.label, data.evaluated, data.steps, data.paper)==('shapes', 'testing', 32, '')
    assert not data.missing and data.training.startswith('backbones')
    config = config_for(data)
    assert (config.epochs, config.skip_targets)==(2, (.55, .9))
    assert config.batch==config_for(type('Demo', (), dict(preset='demo'))()).batch
    everything = data.steps*sum(data.charged.values())
    assert data.budgets[-1]==float('inf') and data.budgets[0]==pytest.approx(.01*everything, rel=.01)
    monkeypatch.setenv('HCMS_DATA', str(folder.parent))
    assert dataset_names()[-1]=='shapes'
    assert Dataset('shapes').fingerprint==data.fingerprint

def test_what_is_wrong_with_a_description_is_named(mine):
    from hcms.experiments.datasets import described
    folder,_ = mine
    path = folder/'dataset.toml'
    wrong = {
        'evaluated = "testing"\nstep = 4': 'step: Extra inputs',
        'title = "x"': 'evaluated: Field required',
        'evaluated = "testing"\nbudgets = ["many"]': 'budgets.0: Input should be a valid number',
        'evaluated = ': 'is no TOML'}
    for text,says in wrong.items():
        path.write_text(text)
        with pytest.raises(InputError, match=says) as e:
            described(str(folder))
        assert str(path) in str(e.value)
    path.unlink()
    with pytest.raises(InputError, match='no such data set'):
        described(str(folder))

def test_a_table_of_it_through_the_command(mine):
    folder,home = mine
    hcms('report', folder, '--seeds', 1, '--epochs', 1, '--only', 'table2', home=home)
    out = home/'reports'/'shapes'/'seeds=1,epochs=1'
    side = json.loads((out/'table2.json').read_text())
    assert (side['dataset'], side['simulated'])==('shapes', False)
    assert len(pd.read_csv(out/'table2.csv'))==10
    assert 'SIMULATED' not in (out/'table2.md').read_text()

@pytest.mark.full
@pytest.mark.parametrize('notebook', ['table1', 'table2', 'fig3', 'claims'])
def test_papermill_runs_a_report_notebook_on_it(mine, notebook, tmp_path):
    import os
    folder,home = mine
    given = ('-p', 'dataset', folder, '-p', 'seeds', 1, '-p', 'epochs', 1)
    command = [BIN/'papermill', f'nbs/{notebook}.ipynb', tmp_path/'out.ipynb', *given]
    env = dict(os.environ, HCMS_HOME=str(home))
    subprocess.run([str(o) for o in command], cwd=ROOT, env=env, check=True, capture_output=True)
    assert len(pd.read_csv(home/'reports'/'shapes'/'seeds=1,epochs=1'/f'{notebook}.csv'))
