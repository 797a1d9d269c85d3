"README.md from index.ipynb: `make export` calls it."
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config

def readme() -> str:
    c = Config(); c.RegexRemovePreprocessor.patterns = [r'^#\|\s*hide']
    c.MarkdownExporter.preprocessors = ['nbconvert.preprocessors.RegexRemovePreprocessor']
    nb = nbformat.read(Path(__file__).parent/'index.ipynb', 4)
    nb.metadata.language_info = dict(name='python')
    return MarkdownExporter(config=c).from_notebook_node(nb)[0]

if __name__=='__main__': (Path(__file__).parents[1]/'README.md').write_text(readme(), encoding='utf-8', newline='\n')
