"From files to tables, through the commands that users type; with kills on the way and bad files among the good."
import os, shutil, signal, subprocess, time
from pathlib import Path
import pandas as pd
import pytest
from conftest import BIN, ROOT, hcms

pytestmark = pytest.mark.xdist_group('pipeline')   # one worker, so that the tiny corpus is made once

def papermill(*args, home, **env):
    return subprocess.run([BIN/'papermill', *map(str, args)], cwd=ROOT, env=dict(os.environ, HCMS_HOME=str(home), HCMS_DATA='', **env), capture_output=True, text=True)

def copy_home(tiny_home, to, *parts):
    "A home that shares nothing with the tiny one; `parts` of data/demo are left out."
    shutil.copytree(tiny_home/'data', to/'data', ignore=shutil.ignore_patterns('runs', *parts))
    return to

def snapshot(folder): return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob('*')) if p.is_file()}

def kill_when(args, home, ready):
    "Start `hcms ARGS`, kill -9 the whole group as soon as `ready()`."
    p = subprocess.Popen([BIN/'hcms', *args], cwd=ROOT, env=dict(os.environ, HCMS_HOME=str(home)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        end = time.time()+120
        while not ready():
            assert p.poll() is None, 'ended before it could be killed'
            assert time.time()<end, 'nothing to kill after two minutes'
            time.sleep(.02)
    finally: os.killpg(p.pid, signal.SIGKILL); p.wait()

def test_tables_from_the_driver(tiny_home):
    hcms('report', 'demo', '--seeds', 1, '--epochs', 1, home=tiny_home)
    out = tiny_home/'reports'/'demo'
    for name in ('table1', 'table1_families', 'table1_gates', 'table2'):
        for suffix in ('csv', 'md', 'tex', 'json'): assert (out/f'{name}.{suffix}').stat().st_size
    t1,t2 = pd.read_csv(out/'table1.csv'),pd.read_csv(out/'table2.csv')
    assert len(t1)==15 and set(t1.method)=={'LSTM', 'HCMS'}
    assert (t2.most_mean <= t2.budget*(1+1e-9)).all()
    hcms_row = t1[t1.method=='HCMS'].iloc[0]
    assert t2[t2.budget==float('inf')].map_mean.item()==pytest.approx(hcms_row.map_mean)
    assert 'table2' in (out/'README.md').read_text()

def test_same_run_same_bytes(tiny_home, tmp_path):
    "What the driver wrote and what papermill writes alone agree to the byte, from stored runs."
    r = papermill('nbs/table2.ipynb', tmp_path/'out.ipynb', '-p', 'dataset', 'demo', '-p', 'seeds', 1, '-p', 'epochs', 1, '-p', 'out_dir', tmp_path/'r', home=tiny_home)
    assert r.returncode==0, r.stderr[-3000:]
    assert (tmp_path/'r'/'table2.csv').read_bytes()==(tiny_home/'reports'/'demo'/'table2.csv').read_bytes()

@pytest.mark.parametrize('given, says', [
    (('-p', 'dataste', 'demo'), "did you mean 'dataset'"),
    (('-p', 'dataset', 'activitinet'), "did you mean 'activitynet'"),
    (('-p', 'budgets', '[40]'), 'pass lists with -y'),
    (('-p', 'dataset', 'activitynet'), 'set HCMS_DATA')])
def test_wrong_parameters_end_the_notebook(tiny_home, tmp_path, given, says):
    r = papermill('nbs/table2.ipynb', tmp_path/'out.ipynb', '-p', 'out_dir', tmp_path/'r', *given, home=tiny_home)
    assert r.returncode!=0 and says in r.stderr and not (tmp_path/'r').exists()

def test_data_folder_without_manifest_names_the_file(tmp_path):
    (tmp_path/'activitynet').mkdir()
    r = subprocess.run([BIN/'hcms', 'extract', 'activitynet'], env=dict(os.environ, HCMS_DATA=str(tmp_path)), capture_output=True, text=True)
    assert r.returncode==2 and 'manifest.csv: no such file' in r.stderr

def test_killed_extraction_ends_with_the_same_bytes(tiny_home, tmp_path):
    home = copy_home(tiny_home, tmp_path, 'features')
    features = home/'data'/'demo'/'features'
    kill_when(['extract', 'demo'], home, lambda: len(list(features.rglob('*.safetensors')))>=20)
    before = len(list(features.rglob('*.safetensors')))
    assert before < 64*3
    hcms('extract', 'demo', home=home)
    for p in features.rglob('.tmp-*'): p.unlink()   # what the kill left is invisible to readers
    assert snapshot(features)==snapshot(tiny_home/'data'/'demo'/'features')

def test_killed_training_ends_with_the_same_bytes(tiny_home, tmp_path):
    home,calm = copy_home(tiny_home, tmp_path/'a'),copy_home(tiny_home, tmp_path/'b')
    runs = home/'data'/'demo'/'runs'
    args = ['train', 'demo', '--seeds', '1', '--epochs', '30']
    kill_when(args, home, lambda: any(runs.glob('*/state.pt')))
    assert not any(runs.glob('*/run.json'))
    hcms(*args, home=home); hcms(*args, home=calm)
    clean = lambda d: {k: v for k,v in snapshot(d).items() if '.tmp-' not in k}
    assert clean(runs)==clean(calm/'data'/'demo'/'runs') and len(clean(runs))

def test_bad_files_cost_only_themselves(tiny_home, tmp_path):
    "An empty mp4, a page of text, a video without sound and one of a single picture, among good ones."
    import numpy as np
    from hcms.extract import extract
    from hcms.manifests import Manifest
    from hcms.media import write_video
    from hcms.store import FeatureStore
    good = next((tiny_home/'data'/'demo'/'videos').glob('*.mp4'))
    shutil.copy(good, tmp_path/'good.mp4')
    (tmp_path/'empty.mp4').touch(); (tmp_path/'page.mp4').write_text('<html>404</html>')
    frames = np.random.default_rng(0).integers(0, 255, (16, 64, 64, 3), dtype=np.uint8)
    write_video(tmp_path/'mute.mp4', frames, 16); write_video(tmp_path/'single.mp4', frames[:1], 16)
    ids = ['good', 'empty', 'page', 'mute', 'single', 'gone']
    m = Manifest(pd.DataFrame(dict(id=ids, path=[f'{i}.mp4' for i in ids], split='training', labels='a')), root=tmp_path)
    result = extract(m, FeatureStore(tmp_path/'store'), 'demo', workers=1)
    assert (result.done, set(result.aside))==(3, {'empty', 'page', 'gone'})
    for id in result.aside: assert f'{id}.mp4' in result.aside[id]
    again = extract(m, FeatureStore(tmp_path/'store'), 'demo', workers=1)
    assert (again.done, again.kept, set(again.aside))==(0, 3, {'empty', 'page', 'gone'})

def test_corrupt_feature_is_named_and_mended(tiny_home, tmp_path):
    home = copy_home(tiny_home, tmp_path)
    features = home/'data'/'demo'/'features'
    path = sorted(features.rglob('motion/**/*.safetensors'))[5]
    was = path.read_bytes()
    path.write_bytes(was[:1000]+bytes([was[1000]^4])+was[1001:])
    r = hcms('train', 'demo', '--seeds', 1, '--epochs', 1, home=home, check=False)
    assert r.returncode!=0 and path.name in r.stderr
    assert hcms('store', 'verify', features, home=home, check=False).returncode==1
    hcms('store', 'repair', features, home=home); hcms('extract', 'demo', home=home)
    assert path.read_bytes()==was

def test_manifest_with_a_path_in_an_id_is_refused_before_work(tiny_home, tmp_path):
    home = copy_home(tiny_home, tmp_path)
    m = home/'data'/'demo'/'manifest.csv'
    m.write_text(m.read_text()+'../../etc/x,videos/x.mp4,training,audio_rising\n')
    before = snapshot(home/'data'/'demo'/'features')
    r = hcms('extract', 'demo', home=home, check=False)
    assert r.returncode==2 and 'manifest.csv, line 66' in r.stderr and '../../etc/x' in r.stderr
    assert snapshot(home/'data'/'demo'/'features')==before

def test_data_manifest_of_the_demo_is_its_recipe():
    import json
    from dataclasses import asdict
    from hcms.manifests import Manifest
    from hcms.rendered import CLASSES, Recipe, demo_rows
    note = json.loads((ROOT/'data_manifests'/'demo.json').read_text())
    assert note['recipe']==asdict(Recipe())
    m = Manifest(demo_rows(), classes=list(CLASSES), name='demo')
    assert note['manifest']==m.fingerprint and note['videos']=={s: len(m.split(s)) for s in note['videos']}
