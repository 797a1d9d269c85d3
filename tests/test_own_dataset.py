"A data set of one's own: a folder with a manifest and a `dataset.toml`, by its path or below $HCMS_DATA."
import json
import os
import shutil
import subprocess
import weakref
from pathlib import Path
from types import SimpleNamespace
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

def papermill(notebook, home, out, **given):
    import os
    words = [str(o) for k,v in given.items() for o in ('-p', k, v)]
    command = [BIN/'papermill', f'nbs/{notebook}.ipynb', out, *words]
    env = dict(os.environ, HCMS_HOME=str(home))
    subprocess.run([str(o) for o in command], cwd=ROOT, env=env, check=True, capture_output=True)

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

def test_the_complete_description_of_the_page_is_one(tmp_path):
    "The example with a fourth modality: valid, and a model of it grows from level to level."
    import re
    from hcms.data.descriptions import described
    from hcms.training.train import build_model, train_config
    page = (ROOT/'data_manifests'/'README.md').read_text(encoding='utf-8')
    text = re.search(r'```toml\n(title = .*?)```', page, re.S)[1]
    folder = tmp_path/'shapes'
    folder.mkdir()
    (folder/'dataset.toml').write_text(text, encoding='utf-8')
    d = described(str(folder))
    assert d.modalities==('audio', 'speech', 'appearance', 'motion') and d.brought['speech'].letter=='S'
    config = train_config(modalities=d.modalities, **d.training)
    assert len(config.skip_targets)==len(d.modalities)-1
    model = build_model(config, dict.fromkeys(d.modalities, 8), 5)
    sizes = model.hidden_sizes
    assert all(a<b for a,b in zip(sizes, sizes[1:])), 'a closed gate leaves a part of the state'

def test_it_is_found_by_path_and_by_name(mine, monkeypatch):
    from hcms.data.descriptions import dataset_names, plan_of
    from hcms.experiments.datasets import Dataset, open_dataset
    from hcms.experiments.runs import config_for
    folder,home = mine
    monkeypatch.setenv('HCMS_HOME', str(home))
    monkeypatch.delenv('HCMS_DATA', raising=False)
    data = open_dataset(str(folder))
    assert (data.label, data.evaluated, data.steps, data.paper)==('shapes', 'testing', 32, '')
    assert not data.missing and data.training.startswith('backbones')
    config = config_for(data)
    assert (config.epochs, config.skip_targets)==(2, (.55, .9))
    assert config.batch==config_for(SimpleNamespace(plan=plan_of('demo'), modalities=data.modalities)).batch
    everything = data.steps*sum(data.charged.values())
    assert data.budgets[-1]==float('inf') and data.budgets[0]==pytest.approx(.01*everything, rel=.01)
    monkeypatch.setenv('HCMS_DATA', str(folder.parent))
    assert dataset_names()[-1]=='shapes'
    assert Dataset('shapes').fingerprint==data.fingerprint

def test_what_is_wrong_with_a_description_is_named(mine):
    from hcms.data.descriptions import described
    folder,_ = mine
    path = folder/'dataset.toml'
    wrong = {
        'evaluated = "testing"\nstep = 4': 'step: there is no such field',
        'title = "x"': 'evaluated: must be there',
        'evaluated = "testing"\nbudgets = ["many"]': 'budgets.0: Input should be a valid number',
        'evaluated = ': 'is not TOML'}
    for text,says in wrong.items():
        path.write_text(text)
        with pytest.raises(InputError, match=says) as e:
            described(str(folder))
        assert str(path) in str(e.value)
    path.unlink()
    with pytest.raises(InputError, match='has no dataset.toml'):
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
    folder,home = mine
    papermill(notebook, home, tmp_path/'out.ipynb', dataset=folder, seeds=1, epochs=1)
    assert len(pd.read_csv(home/'reports'/'shapes'/'seeds=1,epochs=1'/f'{notebook}.csv'))

FOUR = """
evaluated = "testing"
preset = "demo"
modalities = ["audio", "speech", "appearance", "motion"]

[brought.speech]
letter = "S"
price = 0.25
what = "embeddings of transcribed speech"

[training]
epochs = 2
min_epochs = 1
"""

def bring_speech(folder, data) -> dict:   # id -> what its file holds
    "Embeddings of seven steps, which tell the class, in files of three kinds; made from the manifest."
    import numpy as np
    import torch
    rng = np.random.default_rng(0)
    prototypes = rng.normal(0, 1, (len(data.classes), 5))
    folder.mkdir()
    out = {}
    for n,(id,y) in enumerate(zip(data.manifest.ids, data.manifest.targets())):
        x = (prototypes[y]+rng.normal(0, .1, (7, 5))).astype('float32')
        out[id] = x
        if n%3==0:
            np.save(folder/f'{id}.npy', x)
        elif n%3==1:
            np.savez(folder/f'{id}.npz', speech=x)
        else:
            torch.save(torch.from_numpy(x), folder/f'{id}.pt')
    return out

@pytest.fixture
def four(mine, monkeypatch):
    "The same data set with a fourth modality, whose features are brought."
    folder,home = mine
    (folder/'dataset.toml').write_text(FOUR)
    monkeypatch.setenv('HCMS_HOME', str(home))
    from hcms.experiments.datasets import Dataset, bring_features
    speech = bring_speech(folder/'speech', Dataset(str(folder)))
    with pytest.raises(InputError, match='features import .* --modality speech'):
        Dataset(str(folder)).check()
    done,without = bring_features(str(folder), 'speech', folder/'speech')
    assert (done, without)==(len(speech), [])
    return Dataset(str(folder)),speech,home

def test_a_fourth_modality_from_its_files_to_table_1_and_prediction(four):
    import numpy as np
    import torch
    from hcms.evaluation.costs import PAPER_PRICES
    from hcms.experiments.runs import config_for, get_runs
    from hcms.inference.infer import predict
    from hcms.reports.tables import table1, table1_configs
    from hcms.training.train import predict_split
    data,speech,home = four
    test = data.split('testing')
    assert list(test.x)==list(data.modalities)==['audio', 'speech', 'appearance', 'motion']
    first = test.x['speech'][0].float().numpy()
    at = ((np.arange(32)+.5)*7/32).astype(int)
    assert np.abs(first-speech[test.ids[0]][at]).max()<2e-3
    assert data.charged==dict(audio=PAPER_PRICES['audio'], speech=.25,
        appearance=PAPER_PRICES['appearance'], motion=PAPER_PRICES['motion'])
    configs = table1_configs(data, 1, 4, 2)
    assert len(configs)==2*15+2
    hcms = config_for(data, 2)
    assert hcms.modalities==data.modalities and len(hcms.skip_targets)==3
    runs = get_runs(data, configs, 2)
    rows = table1(data, runs)
    best = rows[(rows.modalities=='S') & (rows.views==32)].iloc[0]
    assert best.gflops_mean>=32*.25
    every = rows[(rows.modalities=='A + S + I + M') & (rows.method=='HCMS')].iloc[0]
    assert {'skip_speech_mean', 'skip_appearance_mean', 'skip_motion_mean'}<=set(rows)
    assert np.isnan(every.paper_activitynet_mAP)
    run = next(r for r in runs if r.config.model=='hcms' and r.config.policy=='learned')
    logits,gates = predict_split(run.model, run.config, test)
    path = data.manifest.path_of(test.ids[0])
    x = test.x['speech'][0].numpy()
    said = predict(path, run.model, data.backbones, prices=data.charged, brought=dict(speech=x))
    assert torch.allclose(torch.from_numpy(said.probabilities), logits[0,-1].softmax(-1), atol=1e-4)
    assert (said.gates==gates[0].numpy()).all()
    assert said.gflops['speech']==pytest.approx(.25*gates[0,:,0].sum().item())
    with pytest.raises(InputError, match='features of speech must be brought'):
        predict(path, run.model, data.backbones, prices=data.charged, brought=dict(speech=x[:3]))

def test_every_policy_trains_with_four_modalities_at_prices_of_their_own():
    import numpy as np
    import torch
    from hcms.baselines.rivals import RIVALS
    from hcms.training.train import Split, train, train_config
    names = 'audio', 'speech', 'appearance', 'motion'
    rng = torch.Generator().manual_seed(0)
    x = {m: torch.randn(16, 16, 6+k, generator=rng) for k,m in enumerate(names)}
    y = torch.arange(16)%4
    labels = np.eye(4, dtype=int)[y]
    sizes = {k: dict.fromkeys(names, 8) for k in ('proj_sizes', 'hidden_sizes')}
    losses = {}
    for motion in (65.7, .1):
        prices = dict(audio=.1, speech=.3, appearance=1., motion=motion)
        split = Split([str(i) for i in range(16)], x, y, labels, prices)
        for kind in RIVALS:
            config = train_config(model=kind, modalities=names, epochs=3, batch=8, **sizes)
            _,history = train(config, split, split)
            losses.setdefault(kind, []).append(history[-2]['usage'])
    differ = {k for k,(a,b) in losses.items() if a!=b}
    assert differ=={'adamml'}   # the one whose training pays for modalities

def test_every_policy_learns_classes_that_do_not_exclude_each_other():
    "Two of three things are shown by the sound of each video: one of them is not enough to get both right."
    import numpy as np
    import torch
    from hcms.baselines.rivals import RIVALS
    from hcms.core import MODALITIES
    from hcms.training.train import Split, train, train_config
    rng = np.random.default_rng(0)
    labels = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1]])[np.arange(48)%3]
    x = {m: rng.normal(0, .3, (48, 16, 6)).astype('float32') for m in MODALITIES}
    for o in x.values():
        o[:,:,:3] += 2*labels[:,None]
    x = {m: torch.from_numpy(o) for m,o in x.items()}
    split = Split([str(i) for i in range(48)], x, torch.from_numpy(labels.argmax(1)), labels)
    sizes = {k: dict.fromkeys(MODALITIES, 16) for k in ('proj_sizes', 'hidden_sizes')}
    for kind in ('hcms', 'early', *RIVALS):
        config = train_config(model=kind, epochs=15, batch=8, lr=.01, multilabel=True, **sizes)
        model,_ = train(config, split, split)
        p = model.probabilities(model(*split.take(MODALITIES)).logits).detach().numpy()
        assert ((p>.5)==labels).mean()>.9, kind

def test_a_second_folder_of_brought_features_is_added_to_the_first(four, tmp_path):
    import numpy as np
    from hcms.experiments.datasets import Dataset, bring_features
    data,speech,_ = four
    ids = list(speech)
    before = Dataset(data.name).views['speech']
    (tmp_path/'more').mkdir()
    np.save(tmp_path/'more'/f'{ids[0]}.npy', speech[ids[1]])
    assert bring_features(data.name, 'speech', tmp_path/'more')==(len(ids), [])
    after = Dataset(data.name).views['speech']
    old,_ = before.load(ids[1:])
    new,_ = after.load(ids[1:])
    assert old.equal(new) and after.fp!=before.fp
    assert after.load(ids[:1])[0][0].equal(old[0])
    np.save(tmp_path/'more'/f'{ids[0]}.npy', speech[ids[1]][:,1:])
    with pytest.raises(InputError, match='those imported before are'):
        bring_features(data.name, 'speech', tmp_path/'more')
    assert Dataset(data.name).views['speech'].fp==after.fp

def test_an_import_of_features_does_not_hold_all_videos_in_memory(four, monkeypatch):
    from hcms.experiments import datasets
    data,speech,_ = four
    given = []
    most = 0
    read = datasets.read_brought
    def counted(*args):
        nonlocal most
        x = read(*args)
        given.append(weakref.ref(x))
        most = max(most, sum(o() is not None for o in given))
        return x
    monkeypatch.setattr(datasets, 'read_brought', counted)
    datasets.bring_features(data.name, 'speech', Path(data.name)/'speech')
    assert len(given)>=len(speech)>3>most

def test_an_import_of_features_that_is_killed_leaves_the_earlier_one(four, tmp_path, monkeypatch):
    import numpy as np
    from hcms.data.store import ExtractorView
    from hcms.experiments.datasets import Dataset, bring_features
    data,speech,_ = four
    ids = list(speech)
    (tmp_path/'more').mkdir()
    np.save(tmp_path/'more'/f'{ids[0]}.npy', speech[ids[1]])
    done = []
    put = ExtractorView.put
    def dies_later(self, id, x):
        if done:
            raise KeyboardInterrupt
        done.append(put(self, id, x))
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(ExtractorView, 'put', dies_later)
        bring_features(data.name, 'speech', tmp_path/'more')
    after = Dataset(data.name)
    after.check()
    assert after.fingerprint==data.fingerprint
    assert bring_features(data.name, 'speech', tmp_path/'more')==(len(ids), [])

def test_finetuning_draws_from_the_time_steps_that_were_chosen(mine, monkeypatch):
    from hcms.experiments import datasets
    folder,_ = mine
    (folder/'dataset.toml').write_text(OWN.replace('[training]', 'steps = 4\n[training]'))
    shutil.rmtree(folder/'backbones'/'pretrained')
    (folder/'backbones'/'finetuned').rename(folder/'backbones'/'pretrained')
    drawn = []
    monkeypatch.setattr(datasets, 'finetune', lambda name, media, *a, **kw: drawn.append(media.steps))
    datasets.finetune_backbones(str(folder))
    assert drawn==[4, 4, 4]

def test_doctor_goes_on_after_a_description_that_cannot_be_read(tmp_path, monkeypatch):
    from hcms.doctor import examine
    monkeypatch.setenv('HCMS_DATA', str(tmp_path))
    (tmp_path/'broken').mkdir()
    (tmp_path/'broken'/'dataset.toml').write_text('evaluated = "nowhere"')
    found = examine(['broken', 'fcvid'])
    assert [f.well for f in found if f.what=='broken: description']==[False]
    assert any(f.what=='fcvid: manifest' for f in found)

@pytest.mark.full
def test_rivals_with_a_fourth_modality(four):
    data,_,home = four
    hcms('report', data.name, '--seeds', 1, '--epochs', 1, '--only', 'rivals', home=home)
    out = home/'reports'/'shapes'/'seeds=1,epochs=1'
    admitted = pd.read_csv(out/'rivals_admission.csv')
    assert {'steps_audio', 'steps_speech', 'steps_appearance', 'steps_motion'}<=set(admitted)
    assert len(admitted)>15
    assert pd.read_csv(out/'rivals.csv').use_speech.between(0, 1).all()

def test_features_that_do_not_fit_are_refused_whole(four):
    import numpy as np
    from hcms.experiments.datasets import Dataset, bring_features
    data,speech,_ = four
    folder = data.folder/'other'
    folder.mkdir()
    with pytest.raises(InputError, match='has no file of any'):
        bring_features(data.name, 'speech', folder)
    a,b = data.manifest.ids[:2]
    np.save(folder/f'{a}.npy', np.ones((3, 5)))
    np.save(folder/f'{b}.npy', np.ones((3, 6)))
    with pytest.raises(InputError, match=f'{b}.npy: features are 6 long'):
        bring_features(data.name, 'speech', folder)
    assert Dataset(data.name).fingerprint==data.fingerprint
    with pytest.raises(InputError, match='no such modality'):
        bring_features(data.name, 'audio', folder)
    (data.folder/'dataset.toml').write_text(FOUR.replace('[brought.speech]', '[brought.depth]'))
    with pytest.raises(InputError, match='speech is none of'):
        Dataset(data.name)

def test_results_belong_to_the_split_the_prices_and_the_network_they_were_made_with(four, monkeypatch):
    "What is kept of a run is not found again where one of the three was changed."
    from hcms.experiments.datasets import Dataset
    from hcms.experiments.runs import config_for, run_folder
    data,_,home = four
    path = data.folder/'dataset.toml'
    before = run_folder(data, config_for(data))
    path.write_text(FOUR.replace('"testing"', '"validation"'))
    assert run_folder(Dataset(data.name), config_for(data))!=before
    path.write_text(FOUR.replace('0.25', '100.0'))
    assert Dataset(data.name).charged['speech']==100
    path.write_text(FOUR)
    note = data.folder/'backbones'/'finetuned'/'motion.json'
    record = json.loads(note.read_text())
    assert record['network']=='demo/slowfast'
    note.write_text(json.dumps(record | dict(network='pytorchvideo/x3d_s')))
    with pytest.raises(InputError, match='motion.safetensors: is of pytorchvideo/x3d_s'):
        Dataset(data.name).backbones

def test_other_orders_and_numbers_of_modalities_keep_their_own_targets(mine, monkeypatch):
    from hcms.experiments.datasets import Dataset, open_dataset
    from hcms.experiments.policies import HCMS_GRID
    from hcms.experiments.runs import config_for
    folder,home = mine
    monkeypatch.setenv('HCMS_HOME', str(home))
    order = 'modalities = ["appearance", "audio", "motion"]'
    (folder/'dataset.toml').write_text(f'evaluated = "testing"\npreset = "demo"\n{order}\n')
    data = Dataset(str(folder))
    assert len({config_for(data, **c).skip_targets for c in HCMS_GRID})==5
    two = 'modalities = ["audio", "motion"]'
    (folder/'dataset.toml').write_text(f'evaluated = "testing"\npreset = "demo"\n{two}\n')
    config = config_for(Dataset(str(folder)))
    assert (config.modalities, len(config.skip_targets))==(('audio', 'motion'), 1)
    monkeypatch.chdir(folder.parent)
    assert open_dataset('shapes').name==str(folder.resolve())

PLANNED = """
evaluated = "testing"
preset = "demo"

[training]
batch = 8
skip_targets = [0.55, 0.9]

[models.hcms]
tau = [3.0, 1.0]
batch = 4

[longer]
early = 2

[[orders]]
modalities = ["appearance", "audio", "motion"]
skip_targets = [0.2, 0.3]

[trials]
of = "shapes"
rates = [1e-3, 2e-3]
own = { hcms = ["clip", [1.0, 2.0, 3.0]] }
"""

@pytest.fixture
def listed(tmp_path):
    "A folder with a manifest, and no features: enough to plan with."
    folder = tmp_path/'shapes'
    folder.mkdir()
    rows = [f'{split}{y}{i},{split}{y}{i}.mp4,{split},class{y}'
            for split in ('training', 'testing') for y in range(2) for i in range(10)]
    (folder/'manifest.csv').write_text('\n'.join(['id,path,split,labels', *rows])+'\n')
    return folder

def test_models_orders_and_trials_of_a_description_are_those_that_are_used(listed):
    "What it says of one model wins over what it says of all; what it leaves out is the preset's."
    from hcms.data.descriptions import plan_of
    from hcms.experiments.datasets import Dataset
    from hcms.experiments.runs import candidates, config_for
    (listed/'dataset.toml').write_text(PLANNED)
    data = Dataset(str(listed))
    demo = plan_of('demo')
    hcms,early = config_for(data), config_for(data, model='early')
    assert (hcms.tau, hcms.batch, hcms.skip_targets)==((3, 1), 4, (.55, .9))
    assert (early.tau, early.batch, early.epochs)==((1, .5), 8, 2*hcms.epochs)
    assert hcms.epochs==demo.training['epochs'] and config_for(data, model='liteeval').epochs>hcms.epochs
    orders = {o.modalities: o.skip_targets for o in demo.orders}
    swapped,last = ('appearance', 'audio', 'motion'), ('motion', 'appearance', 'audio')
    assert config_for(data, modalities=swapped).skip_targets==(.2, .3)!=orders[swapped]
    assert config_for(data, modalities=swapped, skip_targets=(.4, .5)).skip_targets==(.4, .5)
    assert config_for(data, modalities=last).skip_targets==(.55, .9)!=orders[last]   # [training] says so
    tried = candidates(data.plan.trials)
    assert {o[3]['lr'] for o in tried}=={1e-3, 2e-3}
    assert [o[2] for o in tried if o[0]=='hcms']==[1, 2, 3]*2

def test_a_model_or_value_of_training_that_there_is_not_is_named_with_its_file(listed):
    from hcms.experiments.datasets import Dataset
    path = listed/'dataset.toml'
    order = '[[orders]]\nmodalities ='
    wrong = {
        '[models.hmcs]\nlr = 1e-3': "'hmcs': no such model in models",
        '[longer]\nhmcs = 2': "'hmcs': no such model in longer",
        '[models.hcms]\nrate = 1': r"\[models.hcms\] 'rate': no such training parameter",
        '[models.hcms]\nmodel = "early"': r"\[models.hcms\].*model",
        '[training]\nepochs = 0': r'\[training\].*epochs',
        '[training]\nmodalities = ["audio", "motion"]': r'\[training\] sets modalities',
        '[models.early]\nmultilabel = false': r'\[models.early\] sets multilabel',
        '[training]\nviews = 4': r'\[training\] sets views',
        '[training]\nskip_targets = [0.5, 1.5]': r'\[training\] skip_targets.1',
        '[longer]\nhcms = inf': 'longer.hcms',
        '[trials]\nrates = [inf]': 'trials.rates.0',
        '[trials]\nrates = [0.001]\nown = { hcms = ["clipp", [1]] }': 'trials.own.hcms.*clipp',
        '[trials]\nrates = [0.001]\nown = { hcms = ["clip", [-1]] }': 'trials.own.hcms.*clip',
        '[trials]\nrates = [0.001]\nhcms = [{ skip_target = 1 }]': 'trials.hcms.*skip_target',
        '[trials]\nrates = [0.001, -1]': 'trials.rates.1',
        '[trials]\nrates = [0.001]\nown = { hmcs = ["clip", [1]] }': "'hmcs': no such model in trials",
        f'{order} ["audio", "smell"]\nskip_targets = [0.5]': 'smell is in one of the orders',
        f'{order} ["audio", "audio"]\nskip_targets = [0.5]': 'orders.*of different modalities',
        2*f'{order} ["motion", "audio"]\nskip_targets = [0.5]\n': 'orders must be different',
        f'{order} ["motion", "audio"]\nskip_targets = [0.5, 0.6]': 'orders.*a target for each gate'}
    for text,says in wrong.items():
        path.write_text(f'evaluated = "testing"\npreset = "demo"\n{text}\n')
        with pytest.raises(InputError, match=says) as e:
            Dataset(str(listed))
        assert str(path) in str(e.value), text

def test_skip_targets_are_spread_only_where_they_are_the_papers_two():
    from hcms.data.descriptions import plan_of
    from hcms.experiments.runs import check_configs, config_for
    names = 'audio', 'speech', 'appearance', 'motion'
    data = SimpleNamespace(plan=plan_of('demo'), modalities=names, steps=4, check=lambda: None)
    assert config_for(data, skip_targets=(.2, .8)).skip_targets==(.2, .5, .8)
    assert config_for(data, skip_targets=(.1, .2, .3)).skip_targets==(.1, .2, .3)
    for wrong in ((.1, .2, .3, .4), (.5,), ()):
        with pytest.raises(InputError, match='skip_targets'):
            check_configs(data, [config_for(data, skip_targets=wrong)])

def test_random_gates_take_the_skip_targets_that_they_are_given():
    from hcms.data.descriptions import plan_of
    from hcms.experiments.runs import REACHED_BY, config_for
    for order in REACHED_BY:
        data = SimpleNamespace(plan=plan_of('demo'), modalities=order)
        assert config_for(data, policy='random').skip_targets==REACHED_BY[order]
        assert config_for(data, policy='random', skip_targets=(.3, .4)).skip_targets==(.3, .4)

def test_random_weights_and_a_file_of_weights_are_not_both_taken(listed):
    (listed/'dataset.toml').write_text('evaluated = "testing"\npreset = "demo"\n')
    words = ('weights', listed, '--modality', 'audio', '--weights', 'random', '--from', listed/'my.pt')
    refused = hcms(*words, home=listed.parent, check=False)
    assert refused.returncode and 'takes no file: leave out --from' in refused.stderr
    assert not (listed/'backbones').exists()

def test_an_operating_point_is_searched_for_as_many_gates_as_there_are(monkeypatch):
    "Gates that skip a little less than they are told to: the search asks for a little more."
    from hcms.core import MODALITIES
    from hcms.data.descriptions import Plan
    from hcms.experiments import runs
    def trained(data, configs, workers):
        reached = [{f'skip_{m}': t-.03 for m,t in zip(c.modalities[1:], c.skip_targets)} for c in configs]
        return [SimpleNamespace(config=c, history=pd.DataFrame([dict(score=1., mAP=.9) | r]))
                for c,r in zip(configs, reached)]
    monkeypatch.setattr(runs, 'get_runs', trained)
    wanted = {2: (.9,), 3: (.5, .9), 4: (.3, .5, .9)}
    orders = {2: ('audio', 'motion'), 3: MODALITIES, 4: ('audio', 'speech', 'appearance', 'motion')}
    for n,want in wanted.items():
        modalities = orders[n]
        data = SimpleNamespace(plan=Plan(), modalities=modalities)
        last = runs.operating_point(data, want).iloc[-1]
        assert last.close and last.reached==pytest.approx(want, abs=runs.CLOSE)
        with pytest.raises(InputError, match='a skip ratio for each of'):
            runs.operating_point(data, (*want, .5))
    with pytest.raises(InputError, match='with one there is no gate'):
        runs.operating_point(SimpleNamespace(plan=Plan(), modalities=('audio',)), ())
    with pytest.raises(InputError, match='seeds'):
        runs.operating_point(data, want, seeds=())

def test_choices_that_contradict_each_other_are_refused(mine, monkeypatch):
    from hcms.experiments.datasets import choose
    folder,home = mine
    monkeypatch.setenv('HCMS_HOME', str(home))
    (folder/'dataset.toml').write_text('evaluated = "testing"\nnetworks = ["timm/resnet18"]\n')
    assert choose(str(folder))==dict(networks=['timm/resnet18'])
    with pytest.raises(InputError, match='dataset.toml: says networks'):
        choose(str(folder), networks=['timm/resnet50'])
    both = choose(str(folder), networks=['pytorchvideo/x3d_s'])
    assert both['networks']==['pytorchvideo/x3d_s', 'timm/resnet18']
    wrong = ['timm/resnet18', 'pytorchvideo/x3d_s', 'timm/resnet50']
    with pytest.raises(InputError, match='are both for appearance'):
        choose(str(folder), networks=wrong)
    for text in ('evaluated = "training"', 'evaluated = "testing"\nrendered = true',
                 'evaluated = "testing"\npreset = "papr"', 'evaluated = "testing"\nmodalities = ["audio"]'):
        (folder/'dataset.toml').write_text(text)
        with pytest.raises(InputError, match='dataset.toml'):
            choose(str(folder))

def clips(root) -> list:
    "Files in class folders, each with its own bytes."
    out = []
    for c in ('bell', 'drum'):
        (root/c).mkdir(parents=True)
        for i in range(9):
            path = root/c/f'{c}{i//3}_{i}.mp4'
            path.write_bytes(f'{c} {i}'.encode())
            out.append(path)
    return out

def test_a_folder_and_a_table_become_the_same_data_set(tmp_path):
    "By the commands; the split is the same, and no group is on two sides."
    from hcms.data.descriptions import described
    from hcms.data.manifests import read_manifest
    root = tmp_path/'mine'
    paths = clips(root)
    said = hcms('manifest', 'folder', root, '--group', '([0-9])_', home=tmp_path).stdout
    assert '18 videos, 2 classes' in said and 'dataset.toml' in said
    m = read_manifest(root/'manifest.csv')
    assert described(str(root)).evaluated=='testing'
    table = m.df[['path', 'labels', 'group']].rename(columns=dict(labels='label'))
    assert len(table)==len(paths)
    table.sample(frac=1, random_state=0).to_csv(root/'clips.csv', index=False)
    hcms('manifest', 'csv', root/'clips.csv', '--out', root/'again.csv', home=tmp_path)
    again = read_manifest(root/'again.csv')
    assert again.fingerprint==m.fingerprint
    assert again.df.groupby('group').split.nunique().max()==1
    refused = hcms('manifest', 'folder', root, home=tmp_path, check=False)
    assert refused.returncode and 'is there already' in refused.stderr

def test_a_reader_of_lists_by_its_command(tmp_path):
    from hcms.data.manifests import read_manifest
    heading = 'label,youtube_id,time_start,time_end,split\n'
    (tmp_path/'val.csv').write_text(heading+'yoga,-a_bcdefghij,1,11,val\nyoga,gone,0,10,val\n')
    (tmp_path/'k'/'videos').mkdir(parents=True)
    (tmp_path/'k'/'videos'/'-a_bcdefghij_000001_000011.mp4').touch()
    words = ('manifest', 'kinetics', '--list', tmp_path/'val.csv')
    said = hcms(*words, '--out', tmp_path/'k'/'manifest.csv', home=tmp_path).stdout
    assert 'validation' in said and 'official' not in said
    assert read_manifest(tmp_path/'k'/'manifest.csv').df.status.tolist()==['', 'absent']
    assert 'evaluated = "validation"' in (tmp_path/'k'/'dataset.toml').read_text()
    refused = hcms(*words, home=tmp_path, check=False)
    assert 'say where the manifest of kinetics goes' in refused.stderr

def real_clips(root) -> list:
    "Small videos in class folders: a still one with noise, a flickering one that is silent."
    import numpy as np
    from hcms.media.files import write_video
    rng = np.random.default_rng(0)
    out = []
    for c in ('noisy', 'flicker'):
        (root/c).mkdir(parents=True)
        for i in range(9):
            frames = np.full((16, 48, 48, 3), 20*i, dtype=np.uint8)
            if c=='flicker':
                frames = rng.integers(0, 255, frames.shape, dtype=np.uint8)
            sound = rng.normal(0, .3 if c=='noisy' else .001, 32000).astype(np.float32)
            out.append(write_video(root/c/f'{c}_{i}.mp4', frames, 8, sound, 16000))
    return out

RANDOM = [f'--weights={m}=random' for m in ('audio', 'appearance', 'motion')]

def every_page(folder, home):
    "The reports that a data set of one's own has; a claim that it cannot test says so."
    for only in ('table1', 'table2', 'fig3', 'fig4', 'rivals', 'claims'):
        hcms('report', folder, '--seeds', 1, '--epochs', 1, '--only', only, home=home)
        assert (home/'reports'/folder.name/'seeds=1,epochs=1'/f'{only}.csv').is_file()
    claims = pd.read_csv(home/'reports'/folder.name/'seeds=1,epochs=1'/'claims.csv')
    assert len(claims)==16 and claims.numbers.notna().all()

def start_learning(folder, home):
    import os
    command = [BIN/'hcms', 'learn', folder, '--preset', 'demo', *RANDOM, '--seeds', 1, '--epochs', 2]
    env = dict(os.environ, HCMS_HOME=str(home))
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return subprocess.Popen([str(o) for o in command], env=env, start_new_session=True, **quiet)

def left(folder) -> dict:   # path below it -> bytes
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}

@pytest.mark.full
def test_learning_that_was_killed_three_times_ends_with_the_same_bytes(tmp_path):
    "Among the features, among the trainings, and while the page is written."
    import os
    import signal
    import time
    made = {}
    for kind in ('whole', 'killed'):
        folder = tmp_path/kind/'mine'
        real_clips(folder)
        home = tmp_path/kind/'home'
        moments = [
            lambda: len([*(folder/'features').rglob('*')])>12,
            lambda: any(folder.glob('runs/*/run.json')),
            lambda: (home/'checkpoints'/'mine').exists()] if kind=='killed' else []
        for there in moments:
            p = start_learning(folder, home)
            while not there():
                assert p.poll() is None, 'it ended before it was killed'
                time.sleep(.02)
            os.killpg(p.pid, signal.SIGKILL)
            p.wait()
        assert start_learning(folder, home).wait()==0
        made[kind] = left(home/'checkpoints'/'mine') | left(home/'reports'/'mine')
    assert made['whole'].keys()==made['killed'].keys()
    assert [k for k in made['whole'] if made['whole'][k]!=made['killed'][k]]==[]

@pytest.mark.full
def test_several_classes_a_video_from_a_table_to_a_recognizer(tmp_path):
    "A table with `a|b` makes a recognizer that answers each class by itself."
    from hcms.data.descriptions import described
    from hcms.inference.recognizer import Recognizer
    folder = tmp_path/'mine'
    paths = real_clips(folder)
    second = ['even', 'odd']*9
    lines = [f'{p.relative_to(folder)},{p.parent.name}|{o}' for p,o in zip(paths, second)]
    (folder/'clips.csv').write_text('\n'.join(['path,label', *lines]))
    home = tmp_path/'home'
    hcms('learn', folder/'clips.csv', '--preset', 'demo', *RANDOM, '--seeds', 1, '--epochs', 2, home=home)
    assert described(str(folder)).multilabel
    r = Recognizer.from_pretrained(home/'checkpoints'/'mine')
    assert r.model.multilabel and {'even', 'odd'}<set(r.classes)
    assert abs(r.predict(paths[0]).probabilities.sum()-1)>.01
    assert 'sigmoid' in (home/'checkpoints'/'mine'/'README.md').read_text()
    every_page(folder, home)

@pytest.mark.full
def test_the_page_of_ones_own_videos_runs(tmp_path):
    papermill('own_videos', tmp_path, tmp_path/'out.ipynb', per_class=6, seeds=1, epochs=1)
    assert (tmp_path/'checkpoints'/'own_videos'/'recognizer.json').is_file()

def in_the_authors_layout(root):
    "Silent clips and sounds, named as the Drone-detection-dataset names them."
    import numpy as np
    from hcms.media.files import write_video
    rng = np.random.default_rng(0)
    (root/'Data'/'Video_V').mkdir(parents=True)
    (root/'Data'/'Audio').mkdir()
    for c in ('AIRPLANE', 'BIRD', 'DRONE', 'HELICOPTER'):
        for n in (1, 2, 6, 7, 11, 16):
            frames = rng.integers(0, 255, (20, 64, 80, 3), dtype=np.uint8)
            write_video(root/'Data'/'Video_V'/f'V_{c}_{n:03}.mp4', frames, 10)
    return rng

@pytest.mark.full
def test_the_page_on_drones_takes_the_authors_layout(tmp_path):
    from scipy.io import wavfile
    source = tmp_path/'source'
    rng = in_the_authors_layout(source)
    for k in ('BACKGROUND', 'DRONE', 'HELICOPTER'):
        for n in range(3):
            sound = rng.integers(-9000, 9000, 16000*3).astype('int16')
            wavfile.write(source/'Data'/'Audio'/f'{k}_{n+1:03}.wav', 16000, sound)
    random = dict.fromkeys(('audio', 'appearance', 'motion'), 'random')
    papermill('drones', tmp_path/'home', tmp_path/'out.ipynb', source=source, seeds=1, epochs=1, **random)
    clips = pd.read_csv(source/'drones'/'clips.csv')
    assert len(clips)==24 and clips.group.nunique()==16
    assert clips.sound[clips.label=='bird'].str.startswith('BACKGROUND').all()
    page = (tmp_path/'home'/'reports'/'drones'/'outcome.md').read_text()
    assert 'RANDOM WEIGHTS' in page and 'HCMS' in page

ONLY_FEATURES = """
evaluated = "testing"
preset = "light"
modalities = ["speech", "flow"]

[brought.speech]
letter = "S"
price = 0.2
what = "embeddings of transcribed speech"

[brought.flow]
letter = "F"
price = 5
what = "optical flow"
"""

@pytest.fixture
def only_features(tmp_path, monkeypatch):
    "A data set without videos: one modality is a vector a video, the other has steps of its own."
    import numpy as np
    from hcms.experiments.datasets import bring_features
    monkeypatch.setenv('HCMS_HOME', str(tmp_path/'home'))
    folder = tmp_path/'mine'
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = ['id,path,split,labels,status']
    for k,c in enumerate(('calm', 'loud', 'wild')):
        for i in range(12):
            split = ('training', 'training', 'selection', 'testing')[i%4]
            lines.append(f'{c}_{i},{c}_{i}.mp4,{split},{c},absent')
            for m,shape in dict(speech=(8,), flow=(11, 6)).items():
                (tmp_path/m).mkdir(exist_ok=True)
                x = rng.normal(0, .1, shape)
                x[...,k] += 1
                np.save(tmp_path/m/f'{c}_{i}.npy', x.astype(np.float32))
    (folder/'manifest.csv').write_text('\n'.join(lines)+'\n')
    (folder/'dataset.toml').write_text(ONLY_FEATURES)
    for m in ('speech', 'flow'):
        assert bring_features(str(folder), m, tmp_path/m)==(36, [])
    return folder

def test_features_are_enough_without_any_video(only_features):
    "From `.npy` files to a page, and to Tables 1 and 2."
    from hcms.experiments.datasets import Dataset
    from hcms.experiments.runs import get_runs
    from hcms.reports.learn import learn, learn_configs
    from hcms.reports.tables import table1, table1_configs, table2
    folder = only_features
    kept,out = learn(folder, seeds=1, epochs=3, workers=1)
    said = []
    learn(folder, seeds=1, epochs=3, workers=1, say=said.append)
    assert any('features of 0 videos' in o and 'training of 0 models' in o for o in map(str, said))
    data = Dataset(str(folder))
    numbers = pd.read_csv(out/'outcome.csv').set_index('method')
    r = hcms('evaluate', folder, '--checkpoint', kept, home=Path(os.environ['HCMS_HOME']))
    assert f"accuracy: {numbers.accuracy_mean['HCMS']:.4g}\n" in r.stdout
    assert numbers.accuracy_mean['everything at all steps']>.9
    assert numbers.gflops_mean['everything at all steps']==pytest.approx(32*5.2, rel=.01)
    run = next(r for r in get_runs(data, learn_configs(data, 1, 3), 1) if r.config.model=='hcms')
    runs = get_runs(data, table1_configs(data, 1, views=3, epochs=1), 1)
    assert len(table2(data, [run], data.budgets)) and len(table1(data, runs))
    assert {'fig3.svg', 'fig4.svg', 'mistakes.csv'}<={p.name for p in out.iterdir()}

def test_a_video_without_features_to_bring_is_left_out_where_the_manifest_says_so(only_features):
    from hcms.experiments.datasets import Dataset, bring_features
    folder = only_features
    gone = sorted(p.stem for p in (folder.parent/'speech').glob('*.npy'))[0]
    (folder.parent/'speech'/f'{gone}.npy').unlink()
    shutil.rmtree(folder/'features')
    shutil.rmtree(folder/'brought')
    for m in ('speech', 'flow'):
        bring_features(str(folder), m, folder.parent/m)
    data = Dataset(str(folder))
    data.check()
    assert data.missing=={gone: 'absent, as the manifest says'}
    manifest = folder/'manifest.csv'
    row = f'{gone},{gone}.mp4,training,calm,'
    assert row+'absent' in manifest.read_text()
    manifest.write_text(manifest.read_text().replace(row+'absent', row))
    with pytest.raises(InputError, match='1 of .* videos have no features'):
        Dataset(str(folder)).check()

@pytest.mark.full
def test_every_page_of_features_alone(only_features, tmp_path):
    every_page(only_features, tmp_path/'home')

@pytest.mark.full
def test_every_page_with_a_fourth_modality(four):
    data,_,home = four
    every_page(data.folder, home)

@pytest.mark.full
def test_every_page_with_another_motion_network(tmp_path):
    from hcms.inference.recognizer import Recognizer
    folder = tmp_path/'mine'
    paths = real_clips(folder)
    home = tmp_path/'home'
    network = ('--preset', 'demo', '--network', 'pytorchvideo/x3d_xs', '--steps', 12)
    hcms('learn', folder, *network, *RANDOM, '--seeds', 1, '--epochs', 2, home=home)
    r = Recognizer.from_pretrained(home/'checkpoints'/'mine')
    assert r.backbones.networks['motion'].name=='pytorchvideo/x3d_xs' and r.model.in_sizes[-1]==2048
    assert r.predict(paths[0]).gates.shape==(12, 2)
    every_page(folder, home)
