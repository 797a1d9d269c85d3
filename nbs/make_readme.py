"README.md from index.ipynb: `make export` calls it."
import os
import re
from pathlib import Path
import nbformat
import pandas as pd
from nbconvert import MarkdownExporter
from traitlets.config import Config

# A link in Markdown or HTML to a file of the clone
LINK = re.compile(r'(\]\(|href="|src=")(?![a-z]+:|#)([^)"]+)')

def from_the_root(text:str) -> str:
    "Links of a notebook in nbs/, which JupyterLab follows from there, as links of a page above it."
    return LINK.sub(lambda m: m[1]+os.path.normpath('nbs/'+m[2]), text)

def ledgers(reports=Path(__file__).parents[1]/'reports') -> str:
    "A table of the verdicts in all reports: a row a claim, a column a data set."
    each = {}
    for path in sorted(reports.glob('*/claims.csv')):
        table = pd.read_csv(path)
        if 'failing' in table:
            each[path.parent.name] = table.set_index('claim').verdict
    if not each:
        return 'The ledgers are being made anew.'
    return pd.DataFrame(each).rename_axis('claim').reset_index().to_markdown(index=False)

def readme() -> str:
    c = Config()
    c.RegexRemovePreprocessor.patterns = [r'^#\|\s*hide']
    c.MarkdownExporter.preprocessors = ['nbconvert.preprocessors.RegexRemovePreprocessor']
    nb = nbformat.read(Path(__file__).parent/'index.ipynb', 4)
    nb.metadata.language_info = dict(name='python')
    text = from_the_root(MarkdownExporter(config=c).from_notebook_node(nb)[0])
    return text.replace('<!-- the ledgers -->', ledgers())

if __name__=='__main__':
    (Path(__file__).parents[1]/'README.md').write_text(readme(), encoding='utf-8', newline='\n')
