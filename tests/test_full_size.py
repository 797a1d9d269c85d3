"""The whole path on a miniature of ActivityNet that is laid out as the real one, with the paper's networks and sizes.

The short form goes as far as finetuning. The long one (make test-full) extracts with the paper's preset, trains and makes table 1; on two cores a clip of SlowFast R50 alone takes four seconds."""
import json, os, re, shutil, subprocess, sys
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from helpers import BIN, ROOT

TRAIN = dict(Kayaking=['kayak_tr_00', '---9CpRcKoU', 'kayak_tr_02', 'kayak_tr_03', 'kayak_tr_04', 'kayak_tr_05'], Archery=['-rf', 'archery_tr1'])
FORMATS = {'.mp4': dict(), '.webm': dict(vcodec='libvpx-vp9', acodec='libopus', preset=None, crf=None), '.mkv': dict(vcodec='libsvtav1', preset=12, crf=40),
           '.avi': dict(vcodec='mpeg4', acodec='libmp3lame', preset=None, crf=None)}

def run(*args, data, home, check=True, **env):
    r = subprocess.run([str(o) for o in args], cwd=ROOT, env=dict(os.environ, HCMS_DATA=str(data), HCMS_HOME=str(home), **env), capture_output=True, text=True)
    if check: assert r.returncode==0, r.stdout[-2000:]+r.stderr[-3000:]
    return r

def write_clip(path, label, seed):
    "Three seconds: archery is bright and hisses, kayaking is dark and hums."
    from hcms.media import write_video
    rng,rate = np.random.default_rng(seed),48_000
    frames = (rng.integers(0, 90, (24, 48, 64, 3))+(140 if label=='Archery' else 0)).astype(np.uint8)
    hum = .3*np.sin(2*np.pi*200*np.arange(3*rate)/rate) if label=='Kayaking' else rng.normal(0, .2, 3*rate)
    write_video(path, frames, 8, hum.astype(np.float32), rate, **FORMATS[path.suffix])

def write_miniature(root) -> Path:
    "HCMS_DATA with activitynet/videos and the owners' annotation file beside it."
    videos = root/'activitynet'/'videos'; videos.mkdir(parents=True)
    rows = [(id, 'training', c) for c,ids in TRAIN.items() for id in ids] + [('val_archery', 'validation', 'Archery'), ('val_kayak_1', 'validation', 'Kayaking')]
    for n,(id,_,label) in enumerate(rows): write_clip(videos/f'v_{id}{list(FORMATS)[n%4]}', label, n)
    whole = (videos/'v_kayak_tr_00.mp4').read_bytes()
    (videos/'v_cut_short__.mp4').write_bytes(whole[:len(whole)//2])              # a download that broke off
    (videos/'v_page_______.mp4').write_text('<html><title>404 Not Found</title></html>')
    rows += [('cut_short__', 'training', 'Archery'), ('page_______', 'validation', 'Kayaking'), ('gone_train_', 'training', 'Kayaking'), ('gone_val___', 'validation', 'Archery')]
    nodes = [dict(nodeName=n, nodeId=i, parentName=p, parentId=q) for i,(n,p,q) in enumerate([('Root', None, None), ('Sports', 'Root', 0), ('Kayaking', 'Sports', 1), ('Archery', 'Sports', 1)])]
    entry = lambda id, split, labels: dict(subset=split, duration=3., resolution='64x48', url=f'https://www.youtube.com/watch?v={id}', annotations=[dict(segment=[.2, 2.5], label=o) for o in labels])
    database = {id: entry(id, split, [label]) for id,split,label in rows} | dict(test_hidden=entry('test_hidden', 'testing', []))
    (root/'activity_net.v1-3.min.json').write_text(json.dumps(dict(version='VERSION 1.3', taxonomy=nodes, database=database)))
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
    return dict(audio=folder/'yamnet.h5', appearance=folder/'efficientnet_b3.pth', motion=folder/'SLOWFAST_8x8_R50.pyth')

def test_commands_from_annotations_to_finetuned_networks(miniature):
    "Manifest and weights as the commands make them; sound and pictures finetuned; what cannot be read is named."
    data,home = miniature
    from hcms.manifests import read_manifest
    m = read_manifest(data/'activitynet'/'manifest.csv')
    assert m.classes==('Archery', 'Kayaking') and m.df.split.value_counts().to_dict()==dict(training=10, validation=4, testing=1)
    assert set(m.df[m.df.status=='absent'].id)=={'gone_train_', 'gone_val___', 'test_hidden'}
    folder = data/'activitynet'/'backbones'
    note = json.loads((folder/'pretrained'/'weights.json').read_text())
    assert all(len(o['sha256'])==64 and 'RANDOM' not in o['what'] for o in note.values())
    from safetensors.torch import load_file
    for m,learns,stays in (('audio', 'layers.12.', 'layers.5.'), ('appearance', 'net.conv_head', 'net.blocks.2.')):
        record = json.loads((folder/'finetuned'/f'{m}.json').read_text())
        assert set(record['aside'])=={'cut_short__', 'gone_train_'} and all(f'{k}.mp4' in v for k,v in record['aside'].items())
        assert record['videos']==7 and record['pretrained']==note[m]             # one of ten is held out for selection
        a,b = (load_file(folder/k/f'{m}.safetensors') for k in ('pretrained', 'finetuned'))
        changed = {k for k in a if not torch.equal(a[k], b[k])}
        assert any(k.startswith(learns) for k in changed) and not any(k.startswith(stays) or 'running' in k for k in changed)
    said = run(BIN/'python', '-m', 'hcms.cli', 'doctor', 'activitynet', data=data, home=home, check=False)
    assert said.returncode==1 and 'none for motion; run: hcms finetune activitynet' in said.stdout
    assert (data/'activitynet'/'backbones'/'finetuned'/'audio.json').read_text().count('"train": "last"')==1

@pytest.fixture(scope='module')
def miniature(tmp_path_factory):
    "The miniature with its manifest, pretrained weights, and finetuned networks for sound and pictures."
    data,home = write_miniature(tmp_path_factory.mktemp('data')),tmp_path_factory.mktemp('home')
    hcms = lambda *a: run(BIN/'python', '-m', 'hcms.cli', *a, data=data, home=home)
    assert '10024' in hcms('manifest', 'activitynet', '--annotations', data/'activity_net.v1-3.min.json').stdout
    for m,path in write_weights(data).items(): hcms('weights', 'activitynet', '--modality', m, '--from', path)
    hcms('finetune', 'activitynet', '--modality', 'audio', '--modality', 'appearance', '--train', 'last', '--epochs', 1, '--steps', 2, '--videos', 4, '--accumulate', 2)
    return data,home

def test_random_weights_mark_all_that_is_made_with_them(tmp_path, monkeypatch):
    "Also when the pretrained files are exchanged after finetuning: what was learned from random weights stays marked."
    from hcms.datasets import Dataset
    folder = tmp_path/'activitynet'; folder.mkdir()
    (folder/'manifest.csv').write_text('id,path,split,labels\n'+''.join(f'v{i},v{i}.mp4,{"validation" if i>11 else "training"},{"ab"[i%2]}\n' for i in range(14)))
    run(BIN/'python', '-m', 'hcms.cli', 'weights', 'activitynet', '--weights', 'random', data=tmp_path, home=tmp_path)
    monkeypatch.setenv('HCMS_DATA', str(tmp_path))
    assert Dataset('activitynet').stamp=='RANDOM WEIGHTS: the audio, appearance, motion backbones were never pretrained'
    note = folder/'backbones'/'pretrained'/'weights.json'
    said = json.loads(note.read_text())
    (folder/'backbones'/'finetuned').mkdir()
    (folder/'backbones'/'finetuned'/'motion.json').write_text(json.dumps(dict(pretrained=said['motion'])))
    note.write_text(json.dumps({m: o | dict(what='SlowFast') for m,o in said.items()}))
    assert Dataset('activitynet').stamp=='RANDOM WEIGHTS: the motion backbones were never pretrained'

def test_a_crashing_decoder_costs_only_its_video(tmp_path):
    "While finetuning: one video kills its process, another never returns from C; the rest is trained on, in order."
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
from hcms.streaming import read_ahead
class Job(str): id = path = property(str)
if __name__=='__main__':
    for job,x,reason in read_ahead(map(Job, 'abcdefgh'), harm.read, {'b': 'was bad before'}, 2, patience=5): print(job, x, 'twice' if 'twice' in str(reason) else reason, sep='|')
""")
    r = subprocess.run([sys.executable, tmp_path/'go.py', tmp_path], cwd=ROOT, env=dict(os.environ, PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"), capture_output=True, text=True, timeout=300)
    assert r.stdout.splitlines()==['a|A|None', 'b|None|was bad before', 'c|None|twice', 'd|D|None', 'e|E|None', 'f|None|twice', 'g|G|None', 'h|H|None'], r.stdout+r.stderr[-2000:]

def spoken() -> list:   # of (where, words after `hcms`)
    "Every `hcms` line of the guide, the pages beside it and the Slurm file."
    notebook = lambda n: '\n'.join(''.join(c['source']) for c in json.loads((ROOT/'nbs'/f'{n}.ipynb').read_text())['cells'])
    texts = {n: notebook(n) for n in ('full_size', 'index')} | {n: (ROOT/'data_manifests'/n).read_text() for n in ('README.md', 'extract.sbatch')}
    return [(n, m[1]) for n,t in texts.items() for m in re.finditer(r'(?:^|`|-m )hcms(?:\.cli)? ([a-z].*?)(?:`|$|  +#|\|)', t, re.M)]

def test_commands_that_users_read_exist():
    "Each names a command, and options that it has."
    from typer.main import get_command
    from hcms.cli import app
    assert {n for n,_ in spoken()}=={'full_size', 'index', 'README.md', 'extract.sbatch'} and len(spoken())>20
    for where,line in spoken():
        command,words = get_command(app),line.split()
        while hasattr(command, 'commands'):
            assert words[0] in command.commands, (where, line)
            command = command.commands[words.pop(0)]
        known = {o for p in command.params for o in p.opts}
        assert {w for w in words if w.startswith('--')} <= known, (where, line)

def test_the_sbatch_file_needs_to_know_where_the_data_are():
    subprocess.run(['bash', '-n', ROOT/'data_manifests'/'extract.sbatch'], check=True)
    r = subprocess.run(['bash', ROOT/'data_manifests'/'extract.sbatch'], env={k: v for k,v in os.environ.items() if k!='HCMS_DATA'}, capture_output=True, text=True)
    assert r.returncode!=0 and 'set it to the folder that holds your data sets' in r.stderr

@pytest.mark.full
def test_table_1_of_a_miniature_activitynet(miniature, tmp_path):
    "Features at the paper's preset with two time steps, training at the paper's sizes, and the literal papermill command."
    data,home = miniature
    hcms = lambda *a, **kw: run(BIN/'python', '-m', 'hcms.cli', *a, data=data, home=home, **kw)
    hcms('finetune', 'activitynet', '--modality', 'motion', '--train', 'head', '--epochs', 1, '--steps', 1)
    said = hcms('extract', 'activitynet', '--steps', 2).stdout
    assert '10 videos extracted, 0 already there, 5 set aside' in said
    for id in ('cut_short__', 'page_______', 'gone_train_', 'gone_val___', 'test_hidden'): assert f'{id}: ' in said
    assert '0 videos extracted, 10 already there, 5 set aside' in hcms('extract', 'activitynet').stdout   # two steps, as before
    assert 'says steps 2, not 4' in hcms('extract', 'activitynet', '--steps', 4, check=False).stderr
    configs = [json.loads(o.read_text()) for o in sorted((data/'activitynet'/'features').glob('*/*/extractor.json'))]
    assert [(o['modality'], o['media']['steps']) for o in configs]==[('appearance', 2), ('audio', 2), ('motion', 2)] and configs[2]['media']['clip_size']==256
    run(BIN/'papermill', 'nbs/table1.ipynb', tmp_path/'out.ipynb', '-p', 'dataset', 'activitynet', '-p', 'seeds', 1, '-p', 'epochs', 1, '-p', 'views', 1, data=data, home=home)
    out = home/'reports'/'activitynet'/'views=1,seeds=1,epochs=1'
    assert not (home/'reports'/'activitynet-simulated').exists()
    text,side = (out/'table1.md').read_text(),json.loads((out/'table1.json').read_text())
    assert 'SIMULATED' not in text and 'RANDOM' not in text and side['stamp']=='' and side['simulated'] is False
    assert '2 of 4926 videos evaluated, 4924 missing' in text and '2 time steps' in text and 'motion frozen, as pretrained' in text
    assert side['missing'].keys()=={'cut_short__', 'page_______', 'gone_train_', 'gone_val___', 'test_hidden'} and side['chosen']==dict(steps=2)
    table = pd.read_csv(out/'table1.csv')
    assert len(table)==15 and table.map_mean.between(0, 1).all() and 'data' not in table
    shutil.rmtree(data/'activitynet'/'runs')   # three gigabytes

@pytest.mark.full
def test_the_guide_runs_itself_and_cleans_up(tmp_path):
    (tmp_path/'tmp').mkdir()
    run(BIN/'papermill', 'nbs/full_size.ipynb', tmp_path/'out.ipynb', data='', home=tmp_path/'home', TMPDIR=str(tmp_path/'tmp'))
    said = (tmp_path/'out.ipynb').read_text()
    assert 'RANDOM WEIGHTS' in said and '2 of 4926 videos evaluated, 4924 missing' in said and 'set aside' in said
    assert not list((tmp_path/'tmp').glob('hcms-full-size-*')) and not (tmp_path/'home').exists()
