"""A static site of all notebooks, the API and the pages of results, in docs/_build/html: `make docs`.

Sphinx with MyST-NB reads notebooks and Markdown as they are, and has its own search. Compared with it:
nbdev's own documentation needs Quarto, and Jupyter Book 2 Node.js, neither of which pip installs; nbconvert
alone has no navigation and no search; MkDocs has both, but reads notebooks through a plugin."""
import ast
import re
import shutil
import sys
import textwrap
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit
import nbformat
from sphinx.cmd.build import build_main

ROOT = Path(__file__).parents[1]
BUILD = ROOT/'docs'/'_build'
SOURCE = BUILD/'source'
HTML = BUILD/'html'
HIDDEN = re.compile(r'^#\|\s*(hide|default_exp)\b', re.M)
DIRECTIVE = re.compile(r'^#\|.*\n?', re.M)
PART = re.compile(r'^### (\d\. .*)$', re.M)

def copy_notebooks():
    "Without hidden cells, and without the marks that are for nbdev."
    found = [*(ROOT/'nbs').rglob('*.ipynb'), *(ROOT/'reports').glob('*/notebooks/*.ipynb')]
    for path in sorted(found):
        if '.ipynb_checkpoints' in path.parts:
            continue
        nb = nbformat.read(path, 4)
        nb.cells = [c for c in nb.cells if c.cell_type!='code' or not HIDDEN.search(c.source)]
        for c in nb.cells:
            if c.cell_type=='code':
                c.source = DIRECTIVE.sub('', c.source)
        nb.metadata.kernelspec = dict(name='python3', display_name='Python 3', language='python')
        to = SOURCE/path.relative_to(ROOT)
        to.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nb, to)

def head_of(lines, node) -> str:
    "A definition up to its body, with the comments beside its parameters."
    body = node.body[0]
    if body.lineno==node.lineno:   # all on one line
        return lines[node.lineno-1][:body.col_offset].rstrip()
    return '\n'.join(lines[node.lineno-1:body.lineno-1])

def described(lines, node, level) -> list:
    "A function or a class as lines of Markdown; of a class its fields and its public methods, too."
    code = [head_of(lines, node)]
    methods = []
    if isinstance(node, ast.ClassDef):
        fields = [o for o in node.body if isinstance(o, ast.AnnAssign)]
        code += ['\n'.join(lines[o.lineno-1:o.end_lineno]) for o in fields]
        methods = [o for o in node.body if isinstance(o, ast.FunctionDef) and not o.name.startswith('_')]
    out = [f"{'#'*level} {node.name}", '', '```python', textwrap.dedent('\n'.join(code)), '```', '']
    out += [ast.get_docstring(node) or '', '']
    for o in methods:
        out += described(lines, o, level+1)
    return out

def api_page(path:Path) -> str:
    "What a module exports, as its source has it: names, shapes, units and defaults."
    text = path.read_text(encoding='utf-8')
    tree = ast.parse(text)
    every = {o.name: o for o in tree.body if isinstance(o, (ast.FunctionDef, ast.ClassDef))}
    assigned = [(t, o) for o in tree.body if isinstance(o, ast.Assign) for t in o.targets]
    values = {t.id: o for t,o in assigned if isinstance(t, ast.Name)}
    public = ast.literal_eval(values['__all__'].value) if '__all__' in values else []
    name = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
    out = [f'# {name}', '', ast.get_docstring(tree) or '', '']
    lines = text.splitlines()
    for o in public:
        if o in every:
            out += described(lines, every[o], 2)
        elif o in values:
            code = '\n'.join(lines[values[o].lineno-1:values[o].end_lineno])
            out += [f'## {o}', '', '```python', code, '```', '']
    return '\n'.join(out)

def write_api() -> list:   # Names of the pages
    pages = []
    for path in sorted((ROOT/'hcms').rglob('[!_]*.py')):
        name = '.'.join(path.relative_to(ROOT/'hcms').with_suffix('').parts)
        to = SOURCE/'api'/f'{name}.md'
        to.parent.mkdir(exist_ok=True)
        to.write_text(api_page(path), encoding='utf-8')
        pages.append(f'api/{name}')
    return pages

def contents(caption:str, pages) -> str:
    options = f':caption: {caption}\n:maxdepth: 1\n:hidden:\n'
    return f'```{{toctree}}\n{options}\n'+'\n'.join(pages)+'\n```\n'

def write_front(api):
    "README.md as the front page, with the reading order as its contents."
    text = (ROOT/'README.md').read_text(encoding='utf-8')
    order = text.split('## Reading order')[1]
    headed = PART.split(order)[1:]
    trees = []
    for caption,body in zip(headed[::2], headed[1::2]):
        linked = re.findall(r'\]\((nbs/[\w/]+)\.ipynb\)', body)
        trees.append(contents(caption, linked))
    results = ['reports/README', *sorted(
        p.relative_to(SOURCE).with_suffix('').as_posix() for p in (SOURCE/'reports').glob('*/README.md'))]
    parts = [*(SOURCE/'reports').glob('*/pages/*.md'), *(SOURCE/'reports').glob('*/notebooks/*.ipynb')]
    results += sorted(p.relative_to(SOURCE).with_suffix('').as_posix() for p in parts)
    trees += [contents('Results', results), contents('Data sets', ['data_manifests/README'])]
    trees.append(contents('API', api))
    (SOURCE/'index.md').write_text(text+'\n'+'\n'.join(trees), encoding='utf-8')
    index = SOURCE/'nbs'/'index.ipynb'
    index.unlink()   # it is the front page
    for page in SOURCE.rglob('*.ipynb'):
        up = '../'*(len(page.relative_to(SOURCE).parts)-1)
        raw = page.read_text(encoding='utf-8')
        page.write_text(re.sub(r'\]\((?:\.\./)*index\.ipynb', f']({up}index.md', raw), encoding='utf-8')

def to_html_links():
    "Raw HTML is not read by MyST: its links to notebooks and pages are made links to the finished ones."
    link = re.compile(r'(<a href=\\?")([^"#\\:]+)\.(ipynb|md)')
    for page in (SOURCE/'reports').rglob('*.md'):   # tables stand on their pages, not beside them
        text = page.read_text(encoding='utf-8')
        page.write_text(re.sub(r'\[md\]\([^)]*\) ?', '', text), encoding='utf-8')
    for page in [*SOURCE.rglob('*.md'), *SOURCE.rglob('*.ipynb')]:
        text = page.read_text(encoding='utf-8')
        page.write_text(link.sub(r'\1\2.html', text), encoding='utf-8')

class Links(HTMLParser):
    "What a page points to, and the places in it."
    def __init__(self, text):
        super().__init__()
        self.to = []
        self.ids = set()
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given[k] for k in ('id', 'name') if given.get(k)}
        self.to += [given[k] for k in ('href', 'src') if given.get(k)]

def broken() -> list:   # of sentences
    "Links inside the finished site that lead nowhere."
    pages = {p: Links(p.read_text(encoding='utf-8')) for p in HTML.rglob('*.html')}
    out = []
    for page,links in pages.items():
        for to in links.to:
            url = urlsplit(to)
            if url.scheme or url.netloc:
                continue
            target = (page.parent/unquote(url.path)).resolve() if url.path else page
            place = unquote(url.fragment)
            if not target.exists():
                out.append(f'{page.relative_to(HTML)}: {to} does not exist')
            elif place and target in pages and place not in pages[target].ids:
                out.append(f'{page.relative_to(HTML)}: {to} has no such place')
    return out

def main() -> int:
    shutil.rmtree(BUILD, ignore_errors=True)
    for folder in ('reports', 'data_manifests'):
        shutil.copytree(ROOT/folder, SOURCE/folder)
    copy_notebooks()
    for path in (SOURCE/'reports').rglob('*.md'):   # tables are part of their pages
        if path.name!='README.md' and path.parent.name!='pages':
            path.unlink()
    write_front(write_api())
    to_html_links()
    failed = build_main(['-q', '-c', str(ROOT/'docs'), '-b', 'html', str(SOURCE), str(HTML)])
    shutil.copytree(SOURCE/'reports', HTML/'reports', dirs_exist_ok=True,
        ignore=shutil.ignore_patterns('*.md'))
    wrong = broken()
    print('\n'.join(wrong[:50]))
    print(f'{len(list(HTML.rglob("*.html")))} pages in {HTML.relative_to(ROOT)}; {len(wrong)} broken links')
    return failed or bool(wrong)

if __name__=='__main__':
    sys.exit(main())
