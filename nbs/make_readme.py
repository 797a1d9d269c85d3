"README.md from index.ipynb: `make export` calls it."
import os, re
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config

LINK = re.compile(r'(\]\(|href="|src=")(?![a-z]+:|#)([^)"]+)')   # in Markdown and HTML, to a file of the clone

def from_the_root(text:str) -> str:
    "Links of a notebook in nbs/, which JupyterLab follows from there, as links of a page above it."
    return LINK.sub(lambda m: m[1]+os.path.normpath('nbs/'+m[2]), text)

def readme() -> str:
    c = Config(); c.RegexRemovePreprocessor.patterns = [r'^#\|\s*hide']
    c.MarkdownExporter.preprocessors = ['nbconvert.preprocessors.RegexRemovePreprocessor']
    nb = nbformat.read(Path(__file__).parent/'index.ipynb', 4)
    nb.metadata.language_info = dict(name='python')
    return from_the_root(MarkdownExporter(config=c).from_notebook_node(nb)[0])

if __name__=='__main__': (Path(__file__).parents[1]/'README.md').write_text(readme(), encoding='utf-8', newline='\n')
