"""The outputs that the library's notebooks keep: `make outputs` stores them, the tests compare them.

`python nbs/outputs.py [NOTEBOOK ...]` runs all of them, or those named, and stores what they show."""
import base64
import io
import os
import re
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch
import nbformat
import numpy as np
from PIL import Image
from execnb.shell import CaptureShell
from fastcore.xtras import working_directory
from nbformat.v4 import new_output

NBS = Path(__file__).parent
SKIPPED = re.compile(r'^#\|\s*(notest|eval:\s*false)', re.M)   # Not run
# Run, but what they show is not kept:
UNSEEN = re.compile(r'^#\|\s*(hide|export|default_exp|varies)\b', re.M)
ADDRESS = re.compile(r' at 0x[0-9a-f]+')
# A folder that is made anew each time:
TEMPORARY = re.compile(r'''/[^\s'"]*?/tmp[a-z0-9_]{8}(/tmp[a-z0-9_]{8})*''')
STYLER = re.compile(r'\bT_[0-9a-f]{5}(?=[_"\s])')   # The name that pandas gives a styled table
NUMBER = re.compile(r'(?<![\w.])[-+]?\d+(?:\.\d*)?(?:e[-+]?\d+)?')
RETURNED = ('<Axes', '[<', 'Text(', '<matplotlib', 'array([<')   # What calls of matplotlib return
LARGEST = 80_000   # Characters of one picture: 60 kB as base64
SHADE = .5         # Of 255: the mean difference of two pictures that count as the same
CLOSE = 1e-3       # Relative difference of two numbers that count as the same on another machine

GUIDES = ('index', 'quickstart')   # Pages for readers that run in a minute
WIDGET = 'application/vnd.jupyter.widget-view+json'

def rooms() -> list:   # of Path
    return sorted(NBS.rglob('[0-9][0-9]_*.ipynb')) + [NBS/f'{o}.ipynb' for o in GUIDES]

def _lasting(text:str) -> str:
    "Text without addresses in memory, names of temporary folders, and random names of tables."
    return STYLER.sub('T_0', TEMPORARY.sub('/somewhere', ADDRESS.sub('', text)))

def _stored(output):
    "An output as it is stored, or None: warnings, progress bars and what matplotlib returns are not."
    if output.output_type=='stream':
        return new_output('stream', text=_lasting(output.text)) if output.name=='stdout' else None
    if WIDGET in output.data:
        return None   # it lives as long as its kernel
    data = {k: _lasting(v) if k.startswith('text/') else v for k,v in output.data.items()}
    if 'image/png' in data:
        from hcms.reports.plots import smaller
        data = {'image/png': smaller(data['image/png'])}
    elif data.get('text/plain', '').startswith(RETURNED):
        return None
    return new_output(output.output_type, data)

@contextmanager
def own_temporary_folder(*more):   # Environment variables that shall name it, too
    "Temporary files of this process and of those it starts go to a folder that is deleted afterwards."
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        try:
            with patch.dict(os.environ, dict.fromkeys(('TMPDIR', *more), folder)):
                yield
        finally:
            tempfile.tempdir = before

def executed(path:Path):
    "A notebook with the outputs that its code gives now."
    with own_temporary_folder(*(['HCMS_HOME'] if path.stem in GUIDES else [])):
        return _executed(path)

def _executed(path):
    nb = nbformat.read(path, 4)
    os.environ['IN_TEST'] = '1'   # nbdev's sign that cells are run by a test
    if str(NBS.parent) not in sys.path:
        sys.path.insert(0, str(NBS.parent))
    shell = CaptureShell(path, mpl_format='png')
    with working_directory(path.parent):
        for n,cell in enumerate(nb.cells):
            if cell.cell_type!='code' or SKIPPED.search(cell.source):
                continue
            shell._cell_idx = n+1
            outputs = shell.run(cell.source)
            if shell.exc:
                raise RuntimeError(shell.prettytb(fname=path)) from shell.exc
            shown = [] if UNSEEN.search(cell.source) else nbformat.from_dict(list(outputs))
            for o in shown:
                if o.output_type=='stream':
                    o.text = ''.join(o.text)
                else:
                    o.data = {k: ''.join(v) if isinstance(v, list) else v for k,v in o.data.items()}
            cell.outputs = [o for o in map(_stored, shown) if o is not None]
    return nb

def text_of(cell) -> str:
    "The words of a cell's outputs. A picture counts as one word: fonts differ between machines."
    out = []
    for o in cell.outputs:
        if o.output_type=='stream':
            out.append(o.text)
        else:
            out += [v if k.startswith('text/') else f'[{k}]' for k,v in sorted(o.data.items())]
    return '\n'.join(out)

def differ(a:str, b:str) -> bool:
    "Do two texts differ in more than the last digits of their numbers?"
    if NUMBER.sub('#', a).split()!=NUMBER.sub('#', b).split():
        return True
    pairs = zip(*(map(float, NUMBER.findall(o)) for o in (a, b)), strict=True)
    return any(abs(x-y)>CLOSE*max(CLOSE, abs(x), abs(y)) for x,y in pairs)

def stale(stored, now) -> list:   # of (number of the cell, text as stored, text of now)
    "Cells whose stored outputs are not what the code gives now."
    pairs = enumerate(zip(stored.cells, now.cells, strict=True))
    texts = [(n, text_of(a), text_of(b)) for n,(a,b) in pairs if a.cell_type=='code']
    return [(n, a, b) for n,a,b in texts if differ(a, b)]

def _pictures(cell) -> list:   # of arrays (H, W, 3)
    pngs = [v for o in cell.outputs for k,v in o.get('data', {}).items() if k=='image/png']
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(v))).convert('RGB'), dtype=float) for v in pngs]

def redrawn(stored, now) -> list:   # of numbers of cells
    "Cells with a picture that looks different now: another size, or another shade in the mean."
    out = []
    for n,(a,b) in enumerate(zip(stored.cells, now.cells, strict=True)):
        if a.cell_type!='code':
            continue
        pairs = list(zip(_pictures(a), _pictures(b)))
        if any(x.shape!=y.shape or abs(x-y).mean()>SHADE for x,y in pairs):
            out.append(n)
    return out

def unfit(nb) -> list:   # of sentences
    "What must not be stored: folders of this machine, pictures that are too large."
    here = re.compile(r'/tmp/|/home/|/root/|'+re.escape(str(NBS.parent)))
    out = []
    for n,c in enumerate(nb.cells):
        if c.cell_type!='code':
            continue
        if here.search(text_of(c)):
            out.append(f'cell {n} shows a folder of this machine:\n{text_of(c)[:400]}')
        sizes = [len(v) for o in c.outputs for k,v in o.get('data', {}).items() if k.startswith('image/')]
        out += [f'cell {n} shows a picture of {s} characters; at most {LARGEST}' for s in sizes if s>LARGEST]
    return out

def store(path:Path) -> int:   # Cells whose outputs changed
    "Run a notebook and store its outputs; a cell that shows the same as before keeps its bytes."
    old = nbformat.read(path, 4)
    new = executed(path)
    wrong = unfit(new)
    if wrong:
        raise SystemExit('\n'.join(f'{path}: {o}' for o in wrong))
    changed = {n for n,*_ in stale(old, new)} | {*redrawn(old, new)}
    for n,cell in enumerate(old.cells):
        if n in changed:
            cell.outputs = new.cells[n].outputs
    if changed:
        nbformat.write(old, path)
    return len(changed)

if __name__=='__main__':
    for path in map(Path, sys.argv[1:] or rooms()):
        print(path, store(path.resolve()), 'cells changed', flush=True)
