"Notebooks in JupyterLab: links and pictures of the pages resolve, and a save leaves no difference in git."
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from urllib.parse import quote, unquote
import nbformat
import pytest
from helpers import BIN, ROOT
sys.path.insert(0, str(ROOT/'nbs'))
from make_readme import LINK

NBS = sorted(str(p.relative_to(ROOT/'nbs').with_suffix('')) for p in (ROOT/'nbs').rglob('[!.]*.ipynb'))

def links(text) -> set:
    without_code = re.sub(r'```.*?```', '', text, flags=re.S)
    return {m[2] for m in LINK.finditer(without_code)}

def prose(nb) -> str:
    return '\n'.join(c.source for c in nbformat.read(nb, 4).cells if c.cell_type=='markdown')

def missing(link, page) -> str:
    "What a link of a page lacks: its file, or the place in it."
    path,_,place = unquote(link).partition('#')
    target = page.parent/path
    if not target.exists():
        return f'{page}: {link}: no such file'
    if place and target.suffix=='.md' and f'<a id="{place}"></a>' not in target.read_text():
        return f'{page}: {link}: no such place'
    return ''

def test_links_and_pictures_of_all_pages_resolve():
    "From where each page lies: notebooks as JupyterLab shows them, and the pages that stand beside them."
    text = [ROOT/'README.md', ROOT/'data_manifests'/'README.md', *(ROOT/'reports').rglob('README.md')]
    text += (ROOT/'reports').glob('*/pages/*.md')
    pages = {p: prose(p) for p in (ROOT/'nbs').rglob('[!.]*.ipynb')} | {p: p.read_text() for p in text}
    lacks = [missing(link, page) for page,text in pages.items() for link in sorted(links(text))]
    assert not any(lacks), '\n'.join(filter(None, lacks))
    index = links(pages[ROOT/'nbs'/'index.ipynb'])
    assert len(index)>=8
    assert links(pages[ROOT/'README.md'])=={os.path.normpath('nbs/'+o) for o in index}

# what JupyterLab saves

def as_jupyterlab(content):
    "What the page adds to a notebook once its kernel has answered."
    kernel = dict(display_name='Python 3 (ipykernel)', language='python', name='python3')
    content['metadata']['kernelspec'] = kernel
    content['metadata']['language_info'] = dict(
        codemirror_mode=dict(name='ipython', version=3), file_extension='.py', mimetype='text/x-python',
        name='python', nbconvert_exporter='python', pygments_lexer='ipython3', version='3.11.7')
    for c in content['cells']:
        c['metadata'] |= dict(trusted=True, editable=True)
        if c['cell_type']=='code':
            c['execution_count'] = 1
    return content

def test_a_save_leaves_no_difference(tmp_path):
    "Every notebook, read and written by the server's own contents manager with the clone's settings."
    from jupyter_server.services.contents.largefilemanager import LargeFileManager
    from traitlets.config.loader import PyFileConfigLoader
    shutil.copytree(ROOT/'nbs', tmp_path/'nbs')
    shutil.copy(ROOT/'settings.ini', tmp_path)
    (tmp_path/'mine').mkdir()
    shutil.copy(ROOT/'nbs'/'table2.ipynb', tmp_path/'mine')
    config = PyFileConfigLoader('jupyter_server_config.py', path=str(ROOT)).load_config()
    manager = LargeFileManager(root_dir=str(tmp_path), config=config)
    for path in [*(f'nbs/{n}.ipynb' for n in NBS), 'mine/table2.ipynb']:
        model = manager.get(path)
        model['content'] = nbformat.from_dict(as_jupyterlab(model['content']))
        manager.save(model, path)
    for n in NBS:
        assert (tmp_path/'nbs'/f'{n}.ipynb').read_bytes()==(ROOT/'nbs'/f'{n}.ipynb').read_bytes(), n
    assert '"version": "3.11.7"' in (tmp_path/'mine'/'table2.ipynb').read_text()   # which is its owner's

# a running server

def make_line(target) -> list:
    "The command of a Makefile's target."
    line = re.search(rf'^{target}:.*\n\t(.*)$', (ROOT/'Makefile').read_text(), re.M)[1]
    return line.partition('   #')[0].split()

@pytest.fixture
def server(tmp_path):
    "What `make notebooks` starts, on a copy of the pages: its address, the copy, and the page that it opens."
    clone = tmp_path/'clone'
    for o in ('nbs', 'reports', 'data_manifests'):
        shutil.copytree(ROOT/o, clone/o)
    shutil.copy(ROOT/'settings.ini', clone)
    (tmp_path/'etc').mkdir()
    shutil.copy(ROOT/'jupyter_server_config.py', tmp_path/'etc')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    command = [o.replace('$(BIN)', str(BIN)).replace('$(CURDIR)', str(clone)) for o in make_line('notebooks')]
    command += ['--no-browser', '--allow-root', f'--port={port}', '--IdentityProvider.token=pages']
    folders = dict(JUPYTER_CONFIG_PATH=str(tmp_path/'etc'), JUPYTER_RUNTIME_DIR=str(tmp_path/'runtime'))
    env = os.environ | folders
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    p = subprocess.Popen(command, cwd=clone, env=env, start_new_session=True, **quiet)
    try:
        for _ in range(240):
            try:
                ask(f'http://127.0.0.1:{port}/api/status')
                break
            except OSError:
                time.sleep(.5)
        yield f'http://127.0.0.1:{port}',clone,tmp_path/'runtime'
    finally:
        p.terminate()
        p.wait()

def ask(url, method='GET', data=None):
    headers = {'Authorization': 'token pages', 'Content-Type': 'application/json'}
    request = urllib.request.Request(url, data and json.dumps(data).encode(), headers, method=method)
    with urllib.request.urlopen(request) as r:
        return r.read(),r.headers.get_content_type()

@pytest.mark.full
def test_index_through_a_running_server(server):
    "`make notebooks` opens index; each of its links and pictures is there, from where index lies."
    address,clone,runtime = server
    opened = [p.read_text() for p in runtime.glob('*open*.html')]
    assert any('/lab/tree/nbs/index.ipynb' in o for o in opened)
    assert b'<html' in ask(f'{address}/lab/tree/nbs/index.ipynb')[0]
    content = json.loads(ask(f'{address}/api/contents/nbs/index.ipynb')[0])['content']
    found = links('\n'.join(c['source'] for c in content['cells'] if c['cell_type']=='markdown'))
    assert len(found)>=8 and sum(o.endswith('.png') for o in found)>=2
    for link in found:
        path = os.path.normpath(f"nbs/{unquote(link).partition('#')[0]}")
        model = json.loads(ask(f'{address}/api/contents/{quote(path)}?content=0')[0])
        assert model['path']==path and model['type'] in ('notebook', 'file')
        if path.endswith('.png'):
            assert ask(f'{address}/files/{quote(path)}')==((ROOT/path).read_bytes(), 'image/png')

@pytest.mark.full
def test_a_save_through_a_running_server(server):
    address,clone,_ = server
    for n in NBS:
        model = json.loads(ask(f'{address}/api/contents/nbs/{n}.ipynb')[0])
        saved = dict(type='notebook', format='json', content=as_jupyterlab(model['content']))
        ask(f'{address}/api/contents/nbs/{n}.ipynb', 'PUT', saved)
        assert (clone/'nbs'/f'{n}.ipynb').read_bytes()==(ROOT/'nbs'/f'{n}.ipynb').read_bytes(), n
