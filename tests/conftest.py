"A tiny demo corpus, made once for all tests that need the path from files to tables; and a tally of attacks."
import os
import pytest
import attacks
from helpers import ROOT, SHORT, copy_home, hcms, once, run_code

TINY = SHORT + """
from hcms.data.rendered import Recipe
tiny = Recipe(per_class=4, training=2, selection=1)
if __name__ == '__main__': datasets.prepare_rendered('demo', tiny)
"""

@pytest.fixture(scope='session')
def tiny_home(tmp_path_factory):
    "HCMS_HOME with 64 rendered videos, trained demo backbones and all features."
    return once(tmp_path_factory, 'tiny', lambda home: run_code(TINY, home))

SOME = ('audio_rising', 'appearance_checkered', 'motion_upward', 'pair_bell_shaking')

@pytest.fixture(scope='session')
def some_home(tmp_path_factory, tiny_home, full):
    """The tiny home, for tests that extract it all again; in the short form 16 videos of four classes only.

    These are too few to train on: `hcms train` would make the others."""
    def few(home):
        from hcms.data.manifests import read_manifest, write_manifest
        demo = copy_home(tiny_home, home)/'data'/'demo'
        m = read_manifest(demo/'manifest.csv')
        write_manifest(m.select([i for i in m.ids if i.startswith(SOME)]), demo/'manifest.csv')
        for o in (demo/'features').rglob('*.safetensors'):
            if not o.name.startswith(SOME):
                o.unlink()
    return tiny_home if full else once(tmp_path_factory, 'some', few)

@pytest.fixture(scope='session')
def tiny_reports(tmp_path_factory, tiny_home):
    "A home like the tiny one in which `hcms report` ran: every table and figure, one epoch, one seed."
    def report(home):
        hcms('report', 'demo', '--seeds', 1, '--epochs', 1, home=copy_home(tiny_home, home))
    return once(tmp_path_factory, 'reported', report)

TRAINED = """
import numpy as np, torch
from hcms.core import home
from hcms.experiments.datasets import Dataset
from hcms.experiments.runs import config_for, get_runs
from hcms.reports.driver import keep_recognizer
from hcms.training.train import predict_split
if __name__=='__main__':
    torch.set_num_threads(1)
    data = Dataset('demo')
    run = get_runs(data, [config_for(data, epochs=12, seed=5)], 1)[0]
    keep_recognizer(data, run)
    test = data.split(data.evaluated)
    logits,gates = predict_split(run.model, run.config, test)
    paths = [str(data.manifest.path_of(i)) for i in test.ids]
    np.savez(home()/'said.npz', p=logits.softmax(-1).numpy(), gates=gates.numpy(), paths=paths)
"""

@pytest.fixture(scope='session')
def trained_home(tmp_path_factory, tiny_home):
    "A home like the tiny one with a recognizer in checkpoints/demo, and its evaluation in said.npz."
    return once(tmp_path_factory, 'trained', lambda home: run_code(TRAINED, copy_home(tiny_home, home)))

@pytest.fixture(scope='session')
def trained(trained_home):
    "The recognizer, and the probabilities and gates it should give on the test split."
    from hcms.inference.recognizer import Recognizer
    import numpy as np
    import torch
    torch.set_num_threads(1)
    return Recognizer.from_pretrained(trained_home/'checkpoints'/'demo'),np.load(trained_home/'said.npz')

@pytest.fixture(autouse=True)
def usual_priority():
    "No test leaves its process a real-time one, as some encoder would: everything beside it would starve."
    policy = getattr(os, 'sched_getscheduler', lambda _: None)
    was = policy(0)
    yield
    assert policy(0)==was

# attacks

def is_full(config) -> bool:
    return 'not full' not in config.getoption('markexpr')

@pytest.fixture(scope='session')
def full(request):
    "Is this the long form (make test-full)? Attacks are then many times as many."
    return is_full(request.config)

@pytest.fixture
def tally(request):
    "Note attacks and how they ended: tally(part, what, how, n)."
    def note(part, what, how, n=1):
        request.node.user_properties.append(('attack', [part, what, how, int(n)]))
    return note

@pytest.fixture
def ends(tally):
    "How reading a file ends: its `Steps`, or the `MediaError`, which names the file; tallied under a kind."
    import numpy as np
    from hcms.media.files import MediaError, read_steps
    def read(kind, path, spec, *args):
        try:
            s = read_steps(path, spec, *args)
        except MediaError as e:
            assert str(path) in str(e)
            tally('media', kind, 'refused')
            return e
        assert len(s)==spec.steps and s.info.duration>0
        assert s.patches is None or np.isfinite(s.patches).all()
        tally('media', kind, s.info.status)
        return s
    return read

def pytest_runtest_logreport(report):
    if report.when=='call' and report.passed:
        attacks.seen += [o for k,o in report.user_properties if k=='attack']

def pytest_terminal_summary(terminalreporter, exitstatus, config):
    if not attacks.seen or hasattr(config, 'workerinput'):
        return
    terminalreporter.section('attacks that ended well')
    terminalreporter.write_line(attacks.summary())
    every = not config.option.markexpr and not config.option.keyword   # as make test-full asks
    whole = every and set(attacks.table().part)==set(attacks.PARTS)
    if whole and exitstatus==0:
        terminalreporter.write_line(f'written: {attacks.write(ROOT/"reports"/"demo")}')
