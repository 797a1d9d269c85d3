"README.md from index.ipynb: `make export` calls it. Tables of results are filled in from reports/, in both."
import json
import os
import re
from pathlib import Path
import nbformat
import pandas as pd
from nbconvert import MarkdownExporter
from traitlets.config import Config
from hcms.reports.figures import beside_uniform

ROOT = Path(__file__).parents[1]
INDEX = ROOT/'nbs'/'index.ipynb'
QUOTED = ROOT/'hcms'/'resources'/'table1.csv'
# A link in Markdown or HTML to a file of the clone
LINK = re.compile(r'(\]\(|href="|src=")(?![a-z]+:|#)([^")]+)')

def from_the_root(text:str) -> str:
    "Links of a notebook in nbs/, which JupyterLab follows from there, as links of a page above it."
    return LINK.sub(lambda m: m[1]+os.path.normpath('nbs/'+m[2]), text)

def anchors(text:str) -> str:
    "Links to headings as a code-hosting page names them, in lower case; JupyterLab keeps their case."
    return re.sub(r'\]\(#([^)]+)\)', lambda m: f'](#{m[1].lower()})', text)

# what is filled in

def verdicts(reports=ROOT/'reports') -> dict:   # folder -> verdicts, by claim
    found = {}
    for path in sorted(reports.glob('*/claims.csv')):
        found[path.parent.name] = pd.read_csv(path).set_index('claim').verdict
    return found

def ledgers() -> str:
    "A row a claim, a column a data set."
    each = verdicts()
    if not each:
        return 'The ledgers are being made anew.'
    return pd.DataFrame(each).rename_axis('claim').reset_index().to_markdown(index=False)

def _row(data, kind, fusion, ours, claims='') -> dict:
    "Fusion and ours: mAP from 0 to 1, and GFLOPs."
    cost = lambda o: f'{o:,.0f}' if o>=100 else f'{o:.1f}'
    cells = [f'{100*score:.1f} for {cost(gflops)}' for score,gflops in (fusion, ours)]
    heads = ('Early fusion: mAP % for GFLOPs', 'HCMS: mAP % for GFLOPs')
    return {'Data': data, 'What they are': kind} | dict(zip(heads, cells)) | {'Claims': claims}

def _quoted(name, title) -> dict:
    rows = pd.read_csv(QUOTED).query('dataset==@name and modalities=="A+I+M" and views==128')
    paper = rows.set_index('method')
    pair = [(paper.mAP_pct[k]/100, paper.gflops[k]) for k in ('LSTM', 'HCMS')]
    return _row(title, 'real videos; **quoted from the paper**', *pair)

def _ours(folder, title, kind) -> dict:
    d = pd.read_csv(ROOT/'reports'/folder/'table1.csv')
    best = d[(d.views==d.views.max()) & (d.modalities=='A + I + M')].set_index('method')
    pair = [(best.mAP_mean[k], best.gflops_mean[k]) for k in ('LSTM', 'HCMS')]
    count = verdicts().get(folder, pd.Series(dtype=str)).value_counts()
    said = ', '.join(f'{n} {k}' for k,n in count.items()).replace('holds', 'hold') or 'not tested yet'
    return _row(title, kind, *pair, said)

def _drones() -> dict:
    d = pd.read_csv(ROOT/'reports'/'drones'/'outcome.csv').set_index('method')
    pair = [(d.mAP_mean[k], d.gflops_mean[k]) for k in ('everything at all steps', 'HCMS')]
    _,more = beside_uniform(pd.read_csv(ROOT/'reports'/'drones'/'fig3.csv'))
    points = -100*more.mean()
    than = 'better' if points>0 else 'worse'
    videos = json.loads((ROOT/'reports'/'drones'/'fig3.json').read_text())['n_evaluated']
    said = (
        f'no ledger; at equal cost UNIFORM is {abs(points):.1f} points {than} than HCMS '
        f'({videos} videos, no interval)')
    return _row('drones', 'real clips, real sounds; motion network with **random weights**', *pair, said)

def results() -> str:
    "One row a data set: what is quoted, and what was measured here on what."
    rows = [
        _quoted('activitynet', 'ActivityNet'), _quoted('fcvid', 'FCVID'),
        _ours('demo', 'demo', 'videos **rendered** here, real H.264 and AAC'),
        _ours('activitynet-simulated', 'stand-in for ActivityNet', '**simulated** features, no videos'),
        _ours('fcvid-simulated', 'stand-in for FCVID', '**simulated** features, no videos'),
        _drones()]
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)

def _demo_costs() -> str:
    d = pd.read_csv(ROOT/'reports'/'demo'/'table1.csv')
    most = d[d.views==d.views.max()].set_index(['method', 'modalities'])
    ours,fused = most.loc['HCMS', 'A + I + M'],most.loc['LSTM', 'A + I + M']
    shares = [ours[k]/fused[k] for k in ('gflops_mean', 'gflops_measured_mean')]
    said = 'on the demo HCMS costs {:.0%} of early fusion, and {:.0%} where the networks that ran are counted'
    return said.format(*shares)

def _standin() -> str:
    folder = ROOT/'reports'/'activitynet-simulated'
    d = pd.read_csv(folder/'table1.csv')
    few = d[(d.views==d.views.min()) & (d.modalities=='A + I + M') & (d.method=='LSTM')].iloc[0]
    gates = pd.read_csv(folder/'table1_gates.csv').set_index('gates').mAP_mean
    policies = pd.read_csv(folder/'table3_measured.csv')
    others = policies[policies.admitted & ~policies.policy.isin(['HCMS', 'Oracle'])]
    better,worse = (others.hcms_more_low>0).sum(),(others.hcms_more_high<0).sum()
    random = 100*gates['random, in a model trained so']
    return (
        f'on the stand-in for ActivityNet early fusion of {few.views} evenly spaced time steps has '
        f'{100*few.mAP_mean:.1f}% mAP for {few.gflops_mean:.0f} GFLOPs, and a model trained with random '
        f'gates of the same usage {random:.1f}%; at equal cost HCMS is better than {better} of {len(others)} '
        f'policies, worse than {worse}, undecided on the rest')

def beside() -> str:
    "What weakens the table of results, from the same reports."
    return f'- {_demo_costs()},\n- {_standin()}.'

def filled(text:str) -> str:
    "Text with the tables between their marks."
    for name,make in dict(results=results, beside=beside, ledgers=ledgers).items():
        marks = re.compile(f'(<!-- {name} -->\n).*?(<!-- end of {name} -->)', re.S)
        text = marks.sub(lambda m: f'{m[1]}\n{make()}\n\n{m[2]}', text)
    return text

def index():
    "The notebook with its tables filled in."
    nb = nbformat.read(INDEX, 4)
    for cell in nb.cells:
        if cell.cell_type=='markdown':
            cell.source = filled(cell.source)
    return nb

def readme() -> str:
    c = Config()
    c.RegexRemovePreprocessor.patterns = [r'^#\|\s*hide']
    c.MarkdownExporter.preprocessors = ['nbconvert.preprocessors.RegexRemovePreprocessor']
    nb = index()
    nb.metadata.language_info = dict(name='python')
    return anchors(from_the_root(MarkdownExporter(config=c).from_notebook_node(nb)[0]))

if __name__=='__main__':
    nbformat.write(index(), INDEX)
    (ROOT/'README.md').write_text(readme(), encoding='utf-8', newline='\n')
