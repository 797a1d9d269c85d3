"""The whole path on a miniature of ActivityNet that is laid out as the real one, with the paper's networks.

The short form goes as far as finetuning. The long one (make test-full) extracts with the paper's preset,
trains and makes table 1; on two cores a clip of SlowFast R50 alone takes four seconds."""
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import BIN, ROOT

TRAIN = dict(
    Kayaking=['kayak_tr_00', '---9CpRcKoU', 'kayak_tr_02', 'kayak_tr_03', 'kayak_tr_04', 'kayak_tr_05'],
    Archery=['-rf', 'archery_tr1'],
)
FORMATS = {
    '.mp4': dict(),
    '.webm': dict(vcodec='libvpx-vp9', acodec='libopus', preset=None, crf=None),
    '.mkv': dict(vcodec='libsvtav1', preset=12, crf=40),
    '.avi': dict(vcodec='mpeg4', acodec='libmp3lame', preset=None, crf=None),
}

def run(*args, data, home, check=True, **env):
    env = dict(os.environ, HCMS_DATA=str(data), HCMS_HOME=str(home), **env)
    r = subprocess.run([str(o) for o in args], cwd=ROOT, env=env, capture_output=True, text=True)
    if check:
        assert r.returncode==0, r.stdout[-2000:]+r.stderr[-3000:]
    return r

def write_clip(path, label, seed):
    "Three seconds: archery is bright and hisses, kayaking is dark and hums."
    from hcms.media.files import write_video
    rng = np.random.default_rng(seed)
    rate = 48_000
    frames = rng.integers(0, 90, (24, 48, 64, 3))
    if label=='Archery':
        frames = frames+140
        audio = rng.normal(0, .2, 3*rate)
    else:
        audio = .3*np.sin(2*np.pi*200*np.arange(3*rate)/rate)
    write_video(path, frames.astype(np.uint8), 8, audio.astype(np.float32), rate, **FORMATS[path.suffix])

def write_annotations(path, rows):
    "The owners' annotation file; `rows` are ids, splits and labels."
    names = [('Root', None, None), ('Sports', 'Root', 0), ('Kayaking', 'Sports', 1), ('Archery', 'Sports', 1)]
    nodes = [dict(nodeName=n, nodeId=i, parentName=p, parentId=q) for i,(n,p,q) in enumerate(names)]
    def entry(id, split, labels):
        annotations = [dict(segment=[.2, 2.5], label=o) for o in labels]
        url = f'https://www.youtube.com/watch?v={id}'
        return dict(subset=split, duration=3., resolution='64x48', url=url, annotations=annotations)
    database = {id: entry(id, split, [label]) for id,split,label in rows}
    database['test_hidden'] = entry('test_hidden', 'testing', [])
    path.write_text(json.dumps(dict(version='VERSION 1.3', taxonomy=nodes, database=database)))

def write_miniature(root) -> Path:
    "HCMS_DATA with activitynet/videos and the owners' annotation file beside it."
    videos = root/'activitynet'/'videos'
    videos.mkdir(parents=True)
    rows = [(id, 'training', c) for c,ids in TRAIN.items() for id in ids]
    rows += [('val_archery', 'validation', 'Archery'), ('val_kayak_1', 'validation', 'Kayaking')]
    for n,(id,_,label) in enumerate(rows):
        write_clip(videos/f'v_{id}{list(FORMATS)[n%4]}', label, n)
    whole = (videos/'v_kayak_tr_00.mp4').read_bytes()
    (videos/'v_cut_short__.mp4').write_bytes(whole[:len(whole)//2])              # a download that broke off
    (videos/'v_page_______.mp4').write_text('<html><title>404 Not Found</title></html>')
    rows += [('cut_short__', 'training', 'Archery'), ('page_______', 'validation', 'Kayaking')]
    rows += [('gone_train_', 'training', 'Kayaking'), ('gone_val___', 'validation', 'Archery')]
    write_annotations(root/'activity_net.v1-3.min.json', rows)
    return root

def write_weights(folder) -> dict:   # modality -> file
    "Files as the owners publish them: their layers, names and shapes, random numbers."
    import timm
    from pytorchvideo.models.hub import slowfast_r50
    from test_weights import random_yamnet, write_keras
    write_keras(random_yamnet(1.), folder/'yamnet.h5')
    torch.manual_seed(0)
    torch.save(timm.create_model('efficientnet_b3').state_dict(), folder/'efficientnet_b3.pth')
    torch.save(dict(model_state=slowfast_r50(pretrained=False).state_dict()), folder/'SLOWFAST_8x8_R50.pyth')
    names = dict(audio='yamnet.h5', appearance='efficientnet_b3.pth', motion='SLOWFAST_8x8_R50.pyth')
    return {m: folder/name for m,name in names.items()}

def test_commands_from_annotations_to_finetuned_networks(miniature):
    "Manifest and weights by command; audio and appearance finetuned; what cannot be read is named."
    data,home = miniature
    from hcms.data.manifests import read_manifest
    m = read_manifest(data/'activitynet'/'manifest.csv')
    assert m.classes==('Archery', 'Kayaking')
    assert m.df.split.value_counts().to_dict()==dict(training=10, validation=4, testing=1)
    assert set(m.df[m.df.status=='absent'].id)=={'gone_train_', 'gone_val___', 'test_hidden'}
    folder = data/'activitynet'/'backbones'
    note = json.loads((folder/'pretrained'/'weights.json').read_text())
    assert all(len(o['sha256'])==64 and 'RANDOM' not in o['what'] for o in note.values())
    from safetensors.torch import load_file
    layers = dict(audio=('layers.12.', 'layers.5.'), appearance=('net.conv_head', 'net.blocks.2.'))
    for m,(learns,stays) in layers.items():
        record = json.loads((folder/'finetuned'/f'{m}.json').read_text())
        assert set(record['aside'])=={'cut_short__', 'gone_train_'}
        assert all(f'{k}.mp4' in v for k,v in record['aside'].items())
        assert record['videos']==7   # one of ten is held out for selection
        assert record['pretrained']==note[m]
        a,b = (load_file(folder/k/f'{m}.safetensors') for k in ('pretrained', 'finetuned'))
        changed = {k for k in a if not torch.equal(a[k], b[k])}
        assert any(k.startswith(learns) for k in changed)
        assert not any(k.startswith(stays) or 'running' in k for k in changed)
    said = run(BIN/'python', '-m', 'hcms.cli', 'doctor', 'activitynet', data=data, home=home, check=False)
    assert said.returncode==1 and 'none for motion; run: hcms finetune activitynet' in said.stdout
    assert (data/'activitynet'/'backbones'/'finetuned'/'audio.json').read_text().count('"train": "last"')==1

@pytest.fixture(scope='module')
def miniature(tmp_path_factory):
    "The miniature with its manifest, pretrained weights, and finetuned networks for audio and appearance."
    data = write_miniature(tmp_path_factory.mktemp('data'))
    home = tmp_path_factory.mktemp('home')
    def hcms(*args):
        return run(BIN/'python', '-m', 'hcms.cli', *args, data=data, home=home)
    said = hcms('manifest', 'activitynet', '--annotations', data/'activity_net.v1-3.min.json')
    assert '10024' in said.stdout
    for m,path in write_weights(data).items():
        hcms('weights', 'activitynet', '--modality', m, '--from', path)
    options = ('--train', 'last', '--epochs', 1, '--steps', 2, '--videos', 4, '--accumulate', 2)
    hcms('finetune', 'activitynet', '--modality', 'audio', '--modality', 'appearance', *options)
    return data,home

def test_random_weights_mark_all_that_is_made_with_them(tmp_path, monkeypatch):
    "Also when the pretrained files are exchanged after finetuning: what random ones made stays marked."
    from hcms.experiments.datasets import Dataset
    folder = tmp_path/'activitynet'
    folder.mkdir()
    rows = ['id,path,split,labels']
    for i in range(14):
        split = 'validation' if i>11 else 'training'
        rows.append(f'v{i},v{i}.mp4,{split},{"ab"[i%2]}')
    (folder/'manifest.csv').write_text('\n'.join([*rows, '']))
    command = (BIN/'python', '-m', 'hcms.cli', 'weights', 'activitynet', '--weights', 'random')
    run(*command, data=tmp_path, home=tmp_path)
    monkeypatch.setenv('HCMS_DATA', str(tmp_path))
    which = 'the audio, appearance, motion backbones'
    assert Dataset('activitynet').stamp==f'RANDOM WEIGHTS: {which} were never pretrained'
    note = folder/'backbones'/'pretrained'/'weights.json'
    said = json.loads(note.read_text())
    (folder/'backbones'/'finetuned').mkdir()
    (folder/'backbones'/'finetuned'/'motion.json').write_text(json.dumps(dict(pretrained=said['motion'])))
    note.write_text(json.dumps({m: o | dict(what='SlowFast') for m,o in said.items()}))
    assert Dataset('activitynet').stamp=='RANDOM WEIGHTS: the motion backbones were never pretrained'

def test_a_crashing_decoder_costs_only_its_video(tmp_path):
    "While finetuning: one video kills its process, another never returns from C; the rest is used, in order."
    (tmp_path/'harm.py').write_text("""
import ctypes, os, signal
def read(job):
    if job=='c': os.kill(os.getpid(), signal.SIGSEGV)
    if job=='f': ctypes.CDLL(None).sleep(1000)
    return job.upper(),None
""")
    (tmp_path/'go.py').write_text("""
import sys; sys.path.insert(0, sys.argv[1])
import harm
from types import SimpleNamespace
from hcms.training.finetune import read_ahead
class Job(str): id = path = property(str)
if __name__=='__main__':
    for job,x,reason in read_ahead(map(Job, 'abcdefgh'), harm.read, {'b': 'was bad before'}, 2, patience=5):
        print(job, x, 'twice' if 'twice' in str(reason) else reason, sep='|')
""")
    env = dict(os.environ, PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    command = [sys.executable, tmp_path/'go.py', tmp_path]
    r = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    expected = ['a|A|None', 'b|None|was bad before', 'c|None|twice', 'd|D|None']
    expected += ['e|E|None', 'f|None|twice', 'g|G|None', 'h|H|None']
    assert r.stdout.splitlines()==expected, r.stdout+r.stderr[-2000:]

def spoken() -> list:   # of (where, words after `hcms`)
    "Every `hcms` line of the guide, the pages beside it and the Slurm file."
    texts = {n: (ROOT/'data_manifests'/n).read_text() for n in ('README.md', 'extract.sbatch')}
    for n in ('full_size', 'index'):
        cells = json.loads((ROOT/'nbs'/f'{n}.ipynb').read_text())['cells']
        texts[n] = '\n'.join(''.join(c['source']) for c in cells)
    line = re.compile(r'(?:^|`|-m )hcms(?:\.cli)? ([a-z].*?)(?:`|$|  +#|\|)', re.M)
    return [(n, m[1]) for n,text in texts.items() for m in line.finditer(text)]

def test_commands_that_users_read_exist():
    "Each names a command, and options that it has."
    from typer.main import get_command
    from hcms.cli import app
    assert {n for n,_ in spoken()}=={'full_size', 'index', 'README.md', 'extract.sbatch'}
    assert len(spoken())>20
    for where,line in spoken():
        command = get_command(app)
        words = line.split()
        while hasattr(command, 'commands'):
            assert words[0] in command.commands, (where, line)
            command = command.commands[words.pop(0)]
        known = {o for p in command.params for o in p.opts}
        assert {w for w in words if w.startswith('--')} <= known, (where, line)

def test_the_sbatch_file_needs_to_know_where_the_data_are():
    subprocess.run(['bash', '-n', ROOT/'data_manifests'/'extract.sbatch'], check=True)
    env = {k: v for k,v in os.environ.items() if k!='HCMS_DATA'}
    command = ['bash', ROOT/'data_manifests'/'extract.sbatch']
    r = subprocess.run(command, env=env, capture_output=True, text=True)
    assert r.returncode!=0 and 'set it to the folder that holds your data sets' in r.stderr

@pytest.mark.full
def test_table_1_of_a_miniature_activitynet(miniature, tmp_path):
    "Features at the paper's preset with two time steps, training at the paper's sizes, and papermill itself."
    data,home = miniature
    def hcms(*args, **kw):
        return run(BIN/'python', '-m', 'hcms.cli', *args, data=data, home=home, **kw)
    hcms('finetune', 'activitynet', '--modality', 'motion', '--train', 'head', '--epochs', 1, '--steps', 1)
    said = hcms('extract', 'activitynet', '--steps', 2).stdout
    assert '10 videos extracted, 0 already there, 5 set aside' in said
    gone = {'cut_short__', 'page_______', 'gone_train_', 'gone_val___', 'test_hidden'}
    for id in gone:
        assert f'{id}: ' in said
    again = hcms('extract', 'activitynet').stdout   # two steps, as before
    assert '0 videos extracted, 10 already there, 5 set aside' in again
    assert 'says steps 2, not 4' in hcms('extract', 'activitynet', '--steps', 4, check=False).stderr
    paths = sorted((data/'activitynet'/'features').glob('*/*/extractor.json'))
    configs = [json.loads(o.read_text()) for o in paths]
    made = [(o['modality'], o['media']['steps']) for o in configs]
    assert made==[('appearance', 2), ('audio', 2), ('motion', 2)]
    assert configs[2]['media']['clip_size']==256
    given = ('-p', 'dataset', 'activitynet', '-p', 'seeds', 1, '-p', 'epochs', 1, '-p', 'views', 1)
    run(BIN/'papermill', 'nbs/table1.ipynb', tmp_path/'out.ipynb', *given, data=data, home=home)
    out = home/'reports'/'activitynet'/'views=1,seeds=1,epochs=1'
    assert not (home/'reports'/'activitynet-simulated').exists()
    text = (out/'table1.md').read_text()
    side = json.loads((out/'table1.json').read_text())
    assert 'SIMULATED' not in text and 'RANDOM' not in text
    assert side['stamp']=='' and side['simulated'] is False
    assert '2 of 4926 videos evaluated, 4924 missing' in text
    assert '2 time steps' in text and 'motion frozen, as pretrained' in text
    assert side['missing'].keys()==gone and side['chosen']==dict(steps=2)
    table = pd.read_csv(out/'table1.csv')
    assert len(table)==15 and table.mAP_mean.between(0, 1).all() and 'data' not in table
    shutil.rmtree(data/'activitynet'/'runs')   # three gigabytes

@pytest.mark.full
def test_the_guide_runs_itself_and_cleans_up(tmp_path):
    (tmp_path/'tmp').mkdir()
    command = (BIN/'papermill', 'nbs/full_size.ipynb', tmp_path/'out.ipynb')
    run(*command, data='', home=tmp_path/'home', TMPDIR=str(tmp_path/'tmp'))
    said = (tmp_path/'out.ipynb').read_text()
    for o in ('RANDOM WEIGHTS', '2 of 4926 videos evaluated, 4924 missing', 'set aside'):
        assert o in said
    assert not list((tmp_path/'tmp').glob('hcms-full-size-*')) and not (tmp_path/'home').exists()
