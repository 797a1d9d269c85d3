"The static site of `make docs`: its links are checked by the build itself. In `make test-full`."
import subprocess
import sys
import pytest
from helpers import ROOT, fresh_clone

@pytest.mark.full
def test_the_site_has_every_notebook_and_module(tmp_path):
    root = fresh_clone(tmp_path/'clone')
    said = subprocess.run([sys.executable, root/'docs'/'build.py'], capture_output=True, encoding='utf-8')
    assert said.returncode==0, said.stdout[-3000:]+said.stderr[-3000:]
    assert ' 0 broken links' in said.stdout
    html = root/'docs'/'_build'/'html'
    assert (html/'search.html').is_file() and 'Reading order' in (html/'index.html').read_text()
    notebooks = [p for p in (ROOT/'nbs').rglob('[!.]*.ipynb') if '.ipynb_checkpoints' not in p.parts]
    for p in notebooks:
        if p.stem!='index':   # the front page
            assert (html/p.relative_to(ROOT).with_suffix('.html')).is_file(), p
    gating = (html/'api'/'method.gating.html').read_text()
    assert 'gumbel_gate' in gating and 'Temperature of Eq. 9' in gating
    picture = (html/'nbs'/'method'/'03_hlstm.html').read_text()
    assert '<img' in picture, 'stored outputs are shown'
