"A tiny demo corpus, prepared once for all tests that need the whole path from files to tables."
import os, subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent

def hcms(*args, home, check=True, cwd=ROOT, **kw):
    "Run the `hcms` command with HCMS_HOME set."
    out = subprocess.run([BIN/'hcms', *map(str, args)], cwd=cwd, env=dict(os.environ, HCMS_HOME=str(home), HCMS_DATA=''), capture_output=True, text=True, **kw)
    if check: assert out.returncode==0, out.stderr[-3000:]
    return out

@pytest.fixture(scope='session')
def tiny_home(tmp_path_factory):
    "HCMS_HOME with 64 rendered videos, trained demo backbones and all features."
    home = tmp_path_factory.mktemp('home')
    code = """
from hcms import datasets
from hcms.rendered import Recipe
datasets.PRETRAINING['recipe'] |= dict(per_class=4, training=2, seconds=2)
datasets.PRETRAINING['config'] = datasets.FINETUNING['demo'] = dict(epochs=1)
if __name__ == '__main__': print(datasets.prepare_demo(Recipe(per_class=4, training=2, selection=1)))
"""
    (home/'prepare.py').write_text(code)
    subprocess.run([sys.executable, home/'prepare.py'], env=dict(os.environ, HCMS_HOME=str(home)), check=True, capture_output=True, text=True)
    return home

@pytest.fixture(scope='session')
def trained(tiny_home):
    "The tiny corpus with a recognizer, its test split, and what evaluation on stored features says of it."
    code = """
import numpy as np, torch
from hcms.core import home
from hcms.datasets import Dataset
from hcms.recognizer import Recognizer
from hcms.runs import config_for, get_runs
from hcms.driver import _keep
from hcms.train import predict_split
if __name__=='__main__':
    torch.set_num_threads(1)
    data = Dataset('demo')
    run = get_runs(data, [config_for(data, epochs=12, seed=5)], 1)[0]
    _keep(data, run)
    test = data.split(data.evaluated)
    logits,gates = predict_split(run.model, run.config, test)
    np.savez(home()/'said.npz', p=logits.softmax(-1).numpy(), gates=gates.numpy(), paths=[str(data.manifest.path_of(i)) for i in test.ids])
"""
    (tiny_home/'keep.py').write_text(code)
    r = subprocess.run([sys.executable, tiny_home/'keep.py'], env=dict(os.environ, HCMS_HOME=str(tiny_home), HCMS_DATA=''), capture_output=True, text=True)
    assert r.returncode==0, r.stderr[-3000:]
    from hcms.recognizer import Recognizer
    import numpy as np, torch
    torch.set_num_threads(1)
    return Recognizer.from_pretrained(tiny_home/'checkpoints'/'demo'),np.load(tiny_home/'said.npz')
