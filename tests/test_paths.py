"Paths from any folder, links, text in every locale, messages in a pipe."
import json, os, pty, shutil, subprocess, sys
import numpy as np, pandas as pd, pytest
from helpers import ROOT, without_home

def video(path, seed=0):
    from hcms.media.files import write_video
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 255, (10, 64, 64, 3), dtype=np.uint8)
    write_video(path, frames, 10, rng.normal(0, .1, 16_000).astype(np.float32), 16_000)

def start(words, cwd, **env):
    "A process that takes the package under test; its output as text."
    words = [sys.executable, *map(str, words)]
    env = without_home(PYTHONPATH=str(ROOT), **env)
    return subprocess.run(words, cwd=cwd, env=env, capture_output=True, encoding='utf-8')

def call(*words, cwd, code=0, **env):
    r = start(['-m', 'hcms.cli', *words], cwd, **env)
    assert r.returncode==code, r.stdout[-2000:]+r.stderr[-2000:]
    return r

def make_manifest(linked, monkeypatch, *words):
    "`hcms manifest activitynet` in this process, with a relative HCMS_DATA; returns its output."
    from typer.testing import CliRunner
    from hcms.cli import app
    monkeypatch.chdir(linked)
    monkeypatch.setenv('HCMS_DATA', 'data')
    words = ['manifest', 'activitynet', '--annotations', 'a.json', *words]
    r = CliRunner().invoke(app, words, catch_exceptions=False)
    assert r.exit_code==0
    return r.output

# links

@pytest.fixture
def linked(tmp_path):
    "Videos on two other disks, behind linked folders and files; with circles and broken links beside them."
    there = ('disk2/v_folder.mp4', 'disk2/deep/v_deep.mp4', 'disk3/elsewhere.mp4', 'disk3/deep2/v_twice.mp4')
    for n,o in enumerate(there):
        video(tmp_path/o, n)
    (tmp_path/'data'/'activitynet'/'videos'/'part').mkdir(parents=True)
    videos = tmp_path/'data'/'activitynet'/'videos'
    links = {'disk2': '../../../disk2', 'one': tmp_path/'two'}
    links['part/v_file.mp4'] = tmp_path/'disk3'/'elsewhere.mp4'
    links |= {'circle': '.', 'part/up': '..', 'v_lost.mp4': 'nowhere.mp4', 'v_self.mp4': 'v_self.mp4'}
    for o,to in links.items():
        (videos/o).symlink_to(to)
    (tmp_path/'two').symlink_to(tmp_path/'disk3'/'deep2')
    ids = ('folder', 'deep', 'file', 'twice', 'lost', 'self')
    splits = ['training']*3 + ['validation']*3
    database = {id: dict(subset=s, annotations=[dict(label='x')]) for id,s in zip(ids, splits)}
    (tmp_path/'a.json').write_text(json.dumps(dict(database=database)), encoding='utf-8')
    return tmp_path

def test_linked_videos_are_found_and_read_everywhere(linked, monkeypatch):
    "By manifest, doctor, extraction, finetuning and predict FOLDER."
    from hcms.data.manifests import videos_in
    from hcms.networks.backbones import spec_for
    from hcms.extraction.extract import extract
    from hcms.training.finetune import decode_split
    from hcms.data.manifests import read_manifest
    from hcms.data.store import FeatureStore
    data = linked/'data'
    assert 'manifest.links.json notes it' in make_manifest(linked, monkeypatch)
    m = read_manifest(data/'activitynet'/'manifest.csv')
    assert set(m.df.id[m.df.status=='absent'])=={'lost', 'self'}
    present = m.select(['folder', 'deep', 'file', 'twice'])
    r = extract(present, FeatureStore(linked/'features'), 'demo', 'random', 1)
    assert (r.done, r.aside)==(4, {})
    assert decode_split(present, spec_for('demo', 2), linked/'scratch', 1)['ok'].all()
    assert len(videos_in(data))==4
    from hcms.cli import _files
    said = {o.stem for o in _files([data/'activitynet'/'videos'])}
    assert said=={'v_folder', 'v_deep', 'v_file', 'v_twice'}

def test_links_of_somebody_else_wait_for_a_word(linked, monkeypatch):
    "Links in a data set from others are refused, with a remedy that works; '..' and full paths have none."
    from hcms.core import InputError
    from hcms.doctor import examine
    from hcms.data.manifests import read_manifest
    make_manifest(linked, monkeypatch)
    shutil.copytree(linked/'data', linked/'sent', symlinks=True)
    m = read_manifest(linked/'sent'/'activitynet'/'manifest.csv')
    for id in ('folder', 'deep', 'file', 'twice'):
        with pytest.raises(InputError, match='HCMS_LINKS_OUT=1'):
            m.path_of(id)
    split = m.df.assign(split=['selection' if o=='deep' else s for o,s in zip(m.ids, m.df.split)])
    (linked/'sent'/'activitynet'/'manifest.sha256').unlink()
    split.to_csv(linked/'sent'/'activitynet'/'manifest.csv', index=False)
    monkeypatch.setenv('HCMS_DATA', str(linked/'sent'))
    said = {f.what: f.text for f in examine(('activitynet',))}
    assert '0 with a file' in said['activitynet: manifest']
    assert '4 videos are not read' in said['activitynet: links']
    monkeypatch.setenv('HCMS_LINKS_OUT', '1')
    said = {f.what: f.text for f in examine(('activitynet',))}
    assert '4 with a file' in said['activitynet: manifest'] and 'activitynet: links' not in said
    for path in ('../../disk3/elsewhere.mp4', str(linked/'disk3'/'elsewhere.mp4'), '~/x.mp4'):
        split.assign(path=path).to_csv(linked/'bad.csv', index=False)
        with pytest.raises(InputError, match='must be relative'):
            read_manifest(linked/'bad.csv')

def test_left_out_links(linked, monkeypatch):
    "--no-links-out: videos behind such links are absent, and nothing is noted."
    make_manifest(linked, monkeypatch, '--no-links-out')
    folder = linked/'data'/'activitynet'
    assert pd.read_csv(folder/'manifest.csv').status.eq('absent').all()
    assert not (folder/'manifest.links.json').exists()

# folders

ASK = """
import os
from hcms.core import home
from hcms.data.descriptions import data_folder
said = [home(), data_folder('activitynet'), data_folder('demo')]
with open(os.environ['SAID'], 'a', encoding='utf-8') as f: print(*said, sep='|', file=f)
"""
full = pytest.mark.full

@pytest.mark.parametrize('data,home', [
    ('mydata', ''),
    pytest.param('./my/../mydata', 'h', marks=full),
    pytest.param('~/mydata', '~/h', marks=full)])
def test_folders_are_the_same_in_a_process_and_all_that_it_starts(tmp_path, data, home):
    "In the process, after it changes directory, in its workers, in a notebook that runs in another folder."
    import nbformat
    for o in ('nbs', 'start'):
        (tmp_path/o).mkdir()
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(ASK)])
    nbformat.write(notebook, tmp_path/'nbs'/'ask.ipynb')
    (tmp_path/'start'/'go.py').write_text(f"""
import os, sys
from hcms.core import home, worker_pool
from hcms.reports.driver import run_notebook
ask = {ASK!r}
if __name__=='__main__':
    exec(ask)
    os.chdir('/')
    exec(ask)
    with worker_pool(1) as pool: pool.submit(exec, ask).result()
    error = run_notebook({str(tmp_path/'nbs'/'ask.ipynb')!r}, {str(tmp_path/'out.ipynb')!r}, {{}})
    sys.exit(error)
""", encoding='utf-8')
    env = dict(HOME=str(tmp_path), XDG_DATA_HOME=str(tmp_path/'share'), SAID=str(tmp_path/'said'))
    kernels = f'{sys.prefix}/share/jupyter'
    r = start(['go.py'], tmp_path/'start', HCMS_DATA=data, HCMS_HOME=home, JUPYTER_PATH=kernels, **env)
    assert r.returncode==0, r.stderr[-3000:]
    where = tmp_path if data[0]=='~' else tmp_path/'start'
    there = where/'h' if home else tmp_path/'share'/'hcms'
    said = (tmp_path/'said').read_text(encoding='utf-8').splitlines()
    assert said==['|'.join(map(str, (there, where/'mydata'/'activitynet', there/'data'/'demo')))]*4

def test_commands_answer_in_any_folder(tmp_path):
    "No message mentions a clone where none is needed; it names what is missing instead."
    asked = {('doctor',): 'demo: manifest', ('extract', 'demo'): 'no such file; make it with: hcms render',
             ('store', 'verify', 'x'): 'x: is not a feature store',
             ('train', 'fcvid', '--device', 'cpu'): 'go with --together',
             ('manifest', 'fcvid', '--split', 's', '--labels', 'l'): 'set HCMS_DATA to a folder'}
    code = f"""
from typer.testing import CliRunner
from hcms.cli import app
for words in {list(asked)!r}:
    r = CliRunner().invoke(app, words)
    print(f'{{r.output}} {{r.exception}}'.replace(chr(10), ' '))
"""
    r = start(['-c', code], tmp_path, HOME=str(tmp_path), XDG_DATA_HOME=str(tmp_path/'share'))
    lines = r.stdout.splitlines()
    assert len(lines)==len(asked), r.stderr[-3000:]
    for says,line in zip(asked.values(), lines):
        assert says in line
    assert list(tmp_path.iterdir())==[]

# text

READERS = r"""
import json, os, sys
from pathlib import Path
from hcms.data.owners import activitynet_manifest, fcvid_manifest
from hcms.experiments.datasets import Dataset
from hcms.data.manifests import read_manifest, write_manifest
from hcms.data.rendered import read_recipe
umlaut = 'B\xf6ller'
tai = '\u592a'
def check(d, mark, end):
    def put(name, text):
        (d/name).write_bytes((mark+text.replace('\n', end)).encode('utf-8'))
        return d/name
    split = put('s.txt', 'a.mp4\ttrain\nb.mp4\ttest\n')
    m = fcvid_manifest(split, put('l.txt', '1 0\n0 1\n'), d, put('c.txt', f'{umlaut}\n{tai}\n'))
    assert (m.ids, m.classes)==(['a', 'b'], (umlaut, tai)), (m.ids, m.classes)
    tree = dict(database=dict(v=dict(subset='training', annotations=[dict(label=umlaut)])))
    listed = put('a.json', json.dumps(tree, ensure_ascii=False, indent=1))
    assert activitynet_manifest(listed, d).classes==(umlaut,)
    (d/'activitynet').mkdir()
    os.environ['HCMS_DATA'] = str(d)
    rows = [f'v{i},v{i}.mp4,training,{tai}\n' for i in range(8)] + [f'w,w.mp4,selection,{tai}\n']
    put('activitynet/manifest.csv', 'id,path,split,labels\n'+''.join(rows))
    put('activitynet/manifest.classes.csv', f'class\n{umlaut}\n{tai}\n')
    put('activitynet/dataset.json', '{\n"steps": 4\n}')
    data = Dataset('activitynet')
    assert data.classes==(umlaut, tai) and data.chosen==dict(steps=4), (data.classes, data.chosen)
    assert read_manifest(write_manifest(data.manifest, d/'again.csv')).classes==data.classes
    written = (d/'again.csv').read_bytes()
    assert written.startswith(b'id,') and b'\r' not in written and tai.encode('utf-8') in written
    assert read_recipe(put('recipe.json', '{\n"per_class": 4,\n"training": 2,\n"selection": 1}')).per_class==4
for n,(mark,end) in enumerate([(m, e) for m in ('', '\ufeff') for e in ('\n', '\r\n', '\r')]):
    folder = Path(sys.argv[1])/str(n)
    folder.mkdir()
    check(folder, mark, end)
print('well')
"""

def test_text_is_read_alike_in_every_locale(tmp_path):
    "Class lists, annotations, manifests, notes and recipes, as editors leave them, in a locale of ASCII."
    r = start(['-c', READERS, tmp_path], tmp_path, PYTHONUTF8='0', LC_ALL='C')
    assert r.stdout.strip()=='well', r.stderr[-3000:]

def test_output_for_programs_is_utf8_in_every_locale(tmp_path):
    "The JSON of a file whose name is not ASCII."
    video(tmp_path/'Müsli 太.mp4')
    r = call('predict', '.', '--json', cwd=tmp_path, PYTHONUTF8='0', LC_ALL='C', PYTHONIOENCODING='ascii')
    assert json.loads(r.stdout)['path'].endswith('.mp4')

# messages

def at_terminal(*words, cwd, **env) -> str:
    "A command's output at a terminal."
    main,other = pty.openpty()
    env = without_home(PYTHONPATH=str(ROOT), TERM='xterm', **env)
    words = [sys.executable, '-m', 'hcms.cli', *words]
    p = subprocess.Popen(words, cwd=cwd, env=env, stdin=other, stdout=other, stderr=other)
    os.close(other)
    p.wait()
    said = os.read(main, 1<<16).decode('utf-8')
    os.close(main)
    return said

def test_refusals_are_plain_in_a_pipe(tmp_path):
    "Colour codes appear only at a terminal, and not with NO_COLOR."
    (tmp_path/'page.mp4').write_text('<html>404</html>', encoding='utf-8')
    (tmp_path/'empty').mkdir()
    for line,code in {'empty': 2, 'page.mp4': 1, 'page.mp4 --plot t.xyz': 2, '. --plot t.png': 2}.items():
        r = call('predict', *line.split(), cwd=tmp_path, code=code)
        assert '\x1b' not in r.stderr+r.stdout and r.stderr.splitlines()[-1].startswith('hcms: '), r.stderr
    assert '\x1b[31mhcms: empty: holds no video' in at_terminal('predict', 'empty', cwd=tmp_path)
    assert '\x1b' not in at_terminal('predict', 'empty', cwd=tmp_path, NO_COLOR='1')
    assert sorted(o.name for o in tmp_path.iterdir())==['empty', 'page.mp4']
