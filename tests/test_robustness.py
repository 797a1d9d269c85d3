"""Kills, full disks, flipped bits, hostile files, odd numbers.

Each attack ends with the right bytes or with a message that names the file.
`make test` is the short form, `make test-full` the long one."""
import errno, json, os, pickle, random, resource, shutil, signal, struct, subprocess, sys, time
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from safetensors.torch import save
from helpers import BIN, ROOT, copy_home, count_videos, hcms
from test_pipeline import extract_harmed, snapshot
from hcms.core import InputError
from hcms.data.descriptions import Plan
from hcms.data.store import FeatureStore

SENTINEL = 'it ran'

class Evil:
    "Makes a folder when it is unpickled."
    def __init__(self, folder): self.folder = str(folder)
    def __reduce__(self): return os.mkdir,(str(Path(self.folder)/SENTINEL),)

def visible(folder): return {k: v for k,v in snapshot(folder).items() if '.tmp-' not in k}

def ends_well(f, *args):
    "The result of `f`, or the `InputError` it ends with; any other end fails the test."
    try:
        return f(*args)
    except InputError as e:
        assert str(e)
        return e

# faults

def env_of(home): return dict(os.environ, HCMS_HOME=str(home), HCMS_DATA='')

def start(args, home, **kw):
    return subprocess.Popen(
        [BIN/'hcms', *map(str, args)], cwd=ROOT, env=env_of(home), stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, start_new_session=True, **kw)

def kill_at_random(args, home, seconds, rng) -> bool:
    "kill -9 of the whole group at a random moment of a run that takes so long; was there something to kill?"
    p = start(args, home)
    try:
        p.wait(rng.uniform(0, seconds))
        return False
    except subprocess.TimeoutExpired:
        return True
    finally:
        try:
            os.killpg(p.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        p.communicate()

STORE = 'data/demo/features'
JOBS = dict(   # arguments, where the result is, what is removed before
    extraction=(['extract', 'demo'], STORE, ('features',)),
    packing=(['store', 'pack', STORE, '--videos', '5'], STORE, ()),
    training=(['train', 'demo', '--seeds', '1', '--epochs', '6'], 'data/demo/runs', ()),
    report=(['report', 'demo', '--only', 'table6', '--seeds', '1', '--epochs', '1'], 'reports/demo', ()))

@pytest.mark.full
@pytest.mark.parametrize('job', JOBS)
def test_killed_at_random_moments(tiny_home, tmp_path, tally, job):
    "Ten kills on the same folder; then the rest is done, and has the bytes of an undisturbed run."
    args,where,without = JOBS[job]
    calm,home = (copy_home(tiny_home, tmp_path/o, *without) for o in ('calm', 'home'))
    absolute = lambda h: [str(h/a) if '/' in a else a for a in args]
    since = time.time()
    hcms(*absolute(calm), home=calm)
    took = time.time()-since
    rng = random.Random(job)
    kills = 0
    while kills<10:
        kills += kill_at_random(absolute(home), home, took, rng)
    hcms(*absolute(home), home=home)
    a = visible(home/where)
    b = visible(calm/where)
    assert a==b and len(a)
    tally('faults', f'kill -9 at random moments of {job}',
        'the next run ends with the bytes of an undisturbed one', kills)

KILLED_PACKING = """
import os, sys, hcms.data.store as P
from hcms.data.store import FeatureStore
n = [0]
was = P.write_whole
def write(*a):
    n[0] += 1
    if n[0]==3: os.kill(os.getpid(), 9)
    return was(*a)
P.write_whole = write
P.pack(FeatureStore(sys.argv[1]).views()[0], 5)
"""

def test_a_killed_packing_ends_with_the_same_bytes(tmp_path, tally):
    views = [FeatureStore(tmp_path/k).extractor('motion', dict(model='x')) for k in 'ab']
    for v in views:
        for i in range(30):
            v.put(f'v{i:02d}', np.full((8, 16), i, dtype=np.float16))
    assert subprocess.run([sys.executable, '-c', KILLED_PACKING, tmp_path/'a']).returncode==-9
    from hcms.data.store import damaged, pack
    assert len(list((views[0].folder/'packs').iterdir()))==2 and not damaged(views[0])
    for v in views:
        pack(v, 5)
    assert visible(tmp_path/'a')==visible(tmp_path/'b')
    tally('faults', 'kill -9 between two packs', 'whole packs or none; the next run ends with the same bytes')

def small_files(limit):
    "As a disk that is full in the middle of a file: the kernel refuses every byte past the limit."
    def f(): resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return f

def unprivileged():
    "Root ignores permissions; without these two capabilities it does not."
    import ctypes
    if os.geteuid()==0:
        for c in (1, 2):   # PR_CAPBSET_DROP of CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
            ctypes.CDLL(None).prctl(24, c, 0, 0, 0)

def test_a_full_disk_stops_the_run_and_loses_nothing(tiny_home, some_home, tmp_path, tally):
    home = copy_home(some_home, tmp_path/'a', 'features')
    features = home/'data'/'demo'/'features'
    whole = visible(some_home/'data'/'demo'/'features')
    largest = max(len(v) for v in whole.values())
    # motion does not fit, audio and pictures do
    p = start(['extract', 'demo', '--workers', '1'], home, preexec_fn=small_files(largest-100))
    stderr = p.communicate(timeout=200)[1]
    assert p.returncode==2 and 'File too large' in stderr, stderr[-2000:]
    assert 'committed so far stay' in stderr and 'motion' in stderr, stderr[-2000:]
    there = snapshot(features)
    assert not any('.tmp-' in k for k in there)
    assert all(whole[k]==v for k,v in there.items() if k.endswith('.safetensors'))
    hcms('extract', 'demo', home=home)
    assert visible(features)==whole
    home = copy_home(tiny_home, tmp_path/'b')
    p = start(['train', 'demo', '--seeds', 1, '--epochs', 1], home, preexec_fn=small_files(4096))
    stderr = p.communicate(timeout=200)[1]
    assert p.returncode==3 and 'File too large' in stderr, stderr[-2000:]
    assert 'what was written before is whole' in stderr, stderr[-2000:]
    assert not list((home/'data'/'demo'/'runs').rglob('run.json'))
    hcms('train', 'demo', '--seeds', 1, '--epochs', 1, home=home)
    tally('faults', 'no room in the middle of a file, extraction and training',
        'the run stops and says so; nothing half written; the next run completes it', 2)

@pytest.mark.full
def test_a_store_that_must_not_be_written_to(some_home, tmp_path, tally):
    home = copy_home(some_home, tmp_path)
    features = home/'data'/'demo'/'features'
    lost = sorted(features.rglob('motion/**/*.safetensors'))[0]
    lost.unlink()
    for o in [features, *features.rglob('*')]:
        o.chmod(0o555 if o.is_dir() else 0o444)
    try:
        p = start(['extract', 'demo', '--workers', '1'], home, preexec_fn=unprivileged)
        stderr = p.communicate(timeout=200)[1]
        assert p.returncode==2 and 'Permission denied' in stderr, stderr[-2000:]
        assert 'committed so far stay' in stderr, stderr[-2000:]
        assert not lost.exists()
        # reading needs no permission to write
        assert hcms('store', 'verify', features, home=home).stdout.strip()=='all files are intact'
    finally:
        for o in [features, *features.rglob('*')]:
            o.chmod(0o755 if o.is_dir() else 0o644)
    lost.parent.parent.joinpath('extractor.json').chmod(0)
    p = start(['extract', 'demo', '--workers', '1'], home, preexec_fn=unprivileged)
    stderr = p.communicate(timeout=200)[1]
    assert p.returncode==3 and 'extractor.json' in stderr, stderr[-2000:]
    assert 'Permission denied' in stderr, stderr[-2000:]
    tally('faults', 'a store without permission to write, a file without permission to read',
        'the run stops and names the file', 2)

@pytest.mark.full
@pytest.mark.parametrize('engine', ['local', 'ray'])
def test_a_disk_that_fills_up(some_home, tmp_path, tally, engine):
    "A file system of its own, filled by another program while features are written."
    if engine=='ray':
        pytest.importorskip('ray')
    home = copy_home(some_home, tmp_path, 'features')
    features = home/'data'/'demo'/'features'
    whole = visible(some_home/'data'/'demo'/'features')
    features.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=64m', 'tmpfs', features]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip('may not mount a file system')
    try:
        p = start(['extract', 'demo', '--engine', engine], home)
        while len(list(features.rglob('*.safetensors')))<20 and p.poll() is None:
            time.sleep(.02)
        try:
            with open(features/'.ballast', 'wb') as f:
                while True:
                    f.write(bytes(1<<16))
                    f.flush()
        except OSError as e:
            assert e.errno==errno.ENOSPC
        stderr = p.communicate(timeout=200)[1]
        assert p.returncode==2 and 'No space left on device' in stderr, stderr[-2000:]
        assert '0.00 GB are free' in stderr, stderr[-2000:]
        there = visible(features)
        there.pop('.ballast')
        assert all(whole[k]==v for k,v in there.items()) and len(there)<len(whole)
        (features/'.ballast').unlink()
        hcms('extract', 'demo', home=home)
        assert visible(features)==whole
        tally('faults', 'a disk that fills up, on a file system of its own, in processes and on Ray',
            'the run stops and says so; the next run ends with the same bytes')
    finally:
        subprocess.run(['umount', '-l', features])

@pytest.mark.full
def test_two_extractions_of_the_same_videos_at_once(some_home, tmp_path, tally):
    home = copy_home(some_home, tmp_path, 'features')
    both = [start(['extract', 'demo', '--workers', '1'], home) for _ in range(2)]
    for p in both:
        assert p.communicate(timeout=300)[1] is not None and p.returncode==0
    assert snapshot(home/'data'/'demo'/'features')==snapshot(some_home/'data'/'demo'/'features')
    tally('faults', 'two extractions of the same videos into one store', 'both end well, with the same bytes',
        2)

@pytest.mark.full
def test_a_worker_that_runs_out_of_memory_costs_only_its_video(some_home, tmp_path, tally):
    last,stderr = extract_harmed("""
    if id.startswith('audio_rising_000'): np.empty(1<<60, dtype=np.uint8)
    if id.startswith('audio_rising_001'): torch.empty(1<<60)
""", copy_home(some_home, tmp_path/'home', 'features'), tmp_path)
    assert last.startswith(f'{count_videos(some_home)-2}|audio_rising_000|audio_rising_001|'), stderr
    assert last.count('takes more memory')==2, stderr
    tally('faults', 'a video that takes more memory than there is',
        'is set aside with the reason; the others are done', 2)

def test_clocks_do_not_matter(some_home, tmp_path, tally):
    """Every file from 1970, or from 2100: nothing is done again.

    A sweep removes what is old by the file system's own clock only."""
    home = copy_home(some_home, tmp_path)
    features = home/'data'/'demo'/'features'
    before = snapshot(features)
    for when in (0, 4_102_444_800):
        for o in home.rglob('*'):
            os.utime(o, (when, when))
        r = hcms('extract', 'demo', home=home)
        assert f'0 videos extracted, {count_videos(home)} already there' in r.stdout+r.stderr
        assert snapshot(features)==before
    store = FeatureStore(features)
    (features/'.tmp-future').touch()
    os.utime(features/'.tmp-future', (4_102_444_800,)*2)
    assert store.sweep()==0 and (features/'.tmp-future').exists()
    tally('faults', 'clocks that jump to 1970 and to 2100', 'nothing is done again, nothing is removed', 3)

@pytest.mark.full
def test_a_store_on_another_file_system(some_home, tmp_path, tally):
    other = Path('/dev/shm')
    if not os.access(other, os.W_OK) or other.stat().st_dev==tmp_path.stat().st_dev:
        pytest.skip('there is no other file system')
    home = copy_home(some_home, tmp_path, 'features')
    there = other/f'hcms-{os.getpid()}'
    there.mkdir()
    try:
        (home/'data'/'demo'/'features').symlink_to(there)
        hcms('extract', 'demo', home=home)
        assert snapshot(there)==snapshot(some_home/'data'/'demo'/'features')
    finally:
        shutil.rmtree(there)
    tally('faults', 'a store on another file system, reached by a link', 'the same bytes')

# whose fault it is

def test_what_is_the_machines_fault_is_not_laid_to_a_video(tmp_path, tally):
    "An error of a GPU, or of a worker's start, ends the run; no video is set aside for good because of it."
    from hcms.extraction.extract import Extraction, _run_pool, memory_for
    errors = [
        ('CUDA error: an illegal memory access was encountered', RuntimeError),
        ('CUDA out of memory. Tried to allocate 2.00 GiB', RuntimeError),
        ("DefaultCPUAllocator: can't allocate memory: you tried", InputError)]
    for message,kind in errors:
        with pytest.raises(kind) as e, memory_for('v.mp4'):
            raise RuntimeError(message)
        assert isinstance(e.value, InputError)==(kind is InputError)
    with pytest.raises(InputError, match='device: CUDA error.*the 7 videos committed so far stay'):
        with Extraction(done=7).on_machine(FeatureStore(tmp_path)):
            raise RuntimeError('CUDA error: device-side assert')
    jobs = [(f'v{i}', 'v.mp4') for i in range(3)]
    with pytest.raises(InputError, match='nowhere'):
        list(_run_pool(jobs, 1, (tmp_path, 600., dict(preset='demo', weights=tmp_path/'nowhere'))))
    tally('faults', 'an error of a GPU, and workers that do not start',
        'the run stops and says so; no video is set aside', 3)

def test_a_pool_that_breaks_loses_no_video(monkeypatch, tally):
    "A pool that refuses work at every third job, one that dies over every fourth: each job comes out once."
    from concurrent.futures import Future
    from concurrent.futures.process import BrokenProcessPool
    import hcms.extraction.extract as E
    n = [0]
    alone = []
    class Pool:
        ready = True
        def exit_code(self): return -signal.SIGSEGV
        def __init__(self, workers, *a, **kw): self.alone = workers==1
        def __enter__(self): return self
        def __exit__(self, *a): pass
        def submit(self, f, job):
            n[0] += 1
            if n[0]%3==0:
                raise BrokenProcessPool
            out = Future()
            if n[0]%4==0:
                out.set_exception(BrokenProcessPool())
            elif n[0]%5==0:
                out.set_result((job[0], E.Verdict('takes more memory than there is', 'memory')))
            else:
                out.set_result((job[0], None))
            if self.alone:
                alone.append(job[0])
            return out
    monkeypatch.setattr(E, 'worker_pool', Pool)
    jobs = [(f'v{i:02d}', f'v{i:02d}.mp4') for i in range(40)]
    ended = dict(E._run_pool(jobs, 2, ('', 600., {})))
    assert sorted(ended)==[id for id,_ in jobs]
    blamed = {id: o.kind for id,o in ended.items() if o}
    assert set(blamed.values())=={'file', 'memory'}
    assert set(blamed)<=set(alone)   # no video is blamed that ran beside others
    tally('faults', 'a pool that breaks while it is given work',
        'each video is done, or set aside with the reason', 40)

STARTS_OF = """
import multiprocessing, sys
import pandas as pd
from hcms.networks.backbones import spec_for
from hcms.experiments.datasets import SimulatedDataset
from hcms.extraction.extract import extract
from hcms.training.finetune import decode_split
from hcms.data.manifests import Manifest
from hcms.data.rendered import Recipe, render_demo
from hcms.experiments.runs import train_runs, variants
from hcms.data.store import FeatureStore
rows = [dict(id=f'v{i}', path=f'v{i}.mp4', split='training', labels='x') for i in range(3)]
manifest = Manifest(pd.DataFrame(rows))
def features(): return extract(manifest, FeatureStore('features'), 'demo', workers=2)
"""
GUARDLESS = dict(   # what scripts do without a main guard
    extract='print(features())',
    render="render_demo('corpus', Recipe(per_class=3, training=1, selection=1))",
    train="""
d = SimulatedDataset('fcvid', training=4, selection=2, evaluated=2, steps=2)
train_runs(d, variants(d, [{}], 1, 1))""",
    decode="decode_split(manifest, spec_for('demo', 2), 'maps')",
    caught="""
try: features()
except Exception as e: print('caught', e); raise""",
    early="""
open('once', 'x')
features()""",
    exits="""
if multiprocessing.parent_process(): sys.exit()
features()""")
OTHERS = [('extract', 'module'), *((o, 'file') for o in GUARDLESS if o!='extract')]

def long(cases): return [pytest.param(*o, marks=pytest.mark.full) for o in cases]

@pytest.mark.parametrize('script,how', [('extract', 'file'), ('extract', 'stdin'), *long(OTHERS)])
def test_a_script_without_a_main_guard_is_told_so(tmp_path, tally, script, how):
    "By every function that starts workers, and however the script is run; no video is blamed."
    code = STARTS_OF+GUARDLESS[script]
    env = dict(os.environ, HCMS_HOME=str(tmp_path), PYTHONPATH=str(ROOT))
    for i in range(3):
        make_video(tmp_path/f'v{i}.mp4')
    (tmp_path/'mine.py').write_text(code)
    args,stdin = dict(file=(['mine.py'], ''), module=(['-m', 'mine'], ''), stdin=(['-'], code))[how]
    r = subprocess.run(
        [sys.executable, *args], input=stdin, cwd=tmp_path, env=env, capture_output=True, text=True,
        timeout=200)
    last = r.stderr.strip().splitlines()[-1]
    assert r.returncode==1 and 'InputError' in last, r.stderr[-3000:]
    assert "below `if __name__=='__main__':`" in last
    named = 'stdin' if how=='stdin' else 'mine'
    assert (named if script not in ('early', 'exits') else 'extract: a worker process ended') in last
    assert not (tmp_path/'features'/'quarantine.jsonl').exists()
    tally('faults', 'scripts without a main guard, or through a pipe',
        'the run says why it ends; no video is set aside')

def make_video(path):
    from hcms.media.files import write_video
    write_video(path, np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), dtype=np.uint8), 8)

def three_videos(folder, *names):
    "A manifest of three small videos."
    from hcms.data.manifests import Manifest
    ids = sorted(['good', 'better', *(names or ('best',))])
    for id in ids:
        make_video(folder/f'{id}.mp4')
    rows = dict(id=ids, path=[f'{i}.mp4' for i in ids], split='training', labels='a')
    return Manifest(pd.DataFrame(rows), root=folder)

def befall(how, *args, **kw):
    "In a worker: what may happen there."
    if how=='known':
        raise InputError('v1', 'is odd')
    if how=='mistake':
        raise KeyError('a mistake')
    if how=='odd':
        raise Odd('one', 'two')
    if how=='memory':
        raise MemoryError('Unable to allocate 9 TiB')
    if how=='killed':
        os.kill(os.getpid(), signal.SIGKILL)
    if how=='crash':
        os.kill(os.getpid(), signal.SIGSEGV)
    if how=='exit':
        os._exit(3)
    if how=='sleep':
        import ctypes
        ctypes.CDLL(None).sleep(1000)

class Odd(Exception):
    "Can be sent to another process, but not be made again there."
    def __init__(self, a, b): super().__init__(a)

@pytest.mark.parametrize('how', ['exit', *long([['killed'], ['crash']])])
def test_workers_that_die_before_their_first_job_are_laid_to_no_video(tmp_path, monkeypatch, tally, how):
    import functools
    import hcms.extraction.extract as E
    from hcms.training.finetune import Job, read_ahead
    import hcms.core as C
    monkeypatch.setattr(E, '_start_worker', functools.partial(befall, how))
    manifest = three_videos(tmp_path)
    store = FeatureStore(tmp_path/'s')
    early = 'a worker process .* before its first job'
    with pytest.raises(InputError, match=f'extract: {early}'):
        E.extract(manifest, store, 'demo', workers=2)
    assert not store.set_aside_ids()
    monkeypatch.setattr(C, '_begin', functools.partial(befall, how))
    jobs = [Job(o, 'v.mp4', 0, 0, [0]) for o in 'ab']
    with pytest.raises(InputError, match=f'finetune: {early}'):
        list(read_ahead(jobs, len, {}, 1))
    tally('faults', f'workers of which none begins ({how})',
        'the run ends and says so; no video is set aside', 2)

class Troubled:
    "A data set whose features cannot be loaded by a worker."
    plan = Plan()
    evaluated = 'testing'
    fingerprint = '0'
    steps = 4
    label = bar_label = 'troubled'
    modalities = ('audio', 'appearance', 'motion')
    charged = dict(audio=.07, appearance=.99, motion=65.7)
    def __init__(self, folder, how):
        self.folder = folder
        self.how = how
    def check(self): pass
    def split(self, name): befall(self.how)

def pools(tmp_path, how, monkeypatch) -> dict:
    "What starts workers, by what it says it is doing; in each worker something happens."
    import functools
    import hcms.data.rendered as R
    import hcms.experiments.datasets as D
    import hcms.experiments.policies as P
    import hcms.training.finetune as F
    from hcms.networks.backbones import spec_for
    from hcms.data.manifests import write_manifest
    from hcms.experiments.runs import config_for, train_runs
    happens = functools.partial(befall, how)
    data = Troubled(tmp_path, how)
    def measure():
        monkeypatch.setattr(P, 'train_runs', lambda *a: None)
        P.measured(data, 1, 1, 1)
    def backbones():
        monkeypatch.setattr(D, '_train_one', happens)
        monkeypatch.setattr(D, 'decode_split', lambda *a: None)
        manifest = write_manifest(three_videos(tmp_path), tmp_path/'m.csv')
        D.train_backbones(manifest, tmp_path/'out', None, 'demo', {}, workers=1)
    def render():
        monkeypatch.setattr(R, 'render_video', happens)
        R.render_demo(tmp_path/'r', R.Recipe(per_class=3, training=1, selection=1), 1)
    def decode():
        monkeypatch.setattr(F, '_decode_one', happens)
        F.decode_split(three_videos(tmp_path), spec_for('demo', 2), tmp_path/'maps', 1)
    def train(): train_runs(data, [config_for(data)], 1)
    return dict(zip(POOLS, (train, measure, backbones, render, decode)))

ENDS = dict(known='v1: is odd', mistake="'a mistake'", odd='Odd: one',
    memory='takes more memory than there is .Unable to', killed='a worker process was ended by SIGKILL')
POOLS = ('train, troubled', 'measure the policies, troubled', 'train the backbones', 'render',
    'decode the train split')
DIAGONAL = list(zip(ENDS, POOLS))

@pytest.mark.parametrize('how', ENDS)
@pytest.mark.parametrize('pool', POOLS)
def test_what_goes_wrong_in_a_worker_reaches_the_user(tmp_path, monkeypatch, tally, full, pool, how):
    "Every known error as itself, a mistake with its own traceback, a worker's death with its task."
    if not full and (how, pool) not in DIAGONAL:
        pytest.skip('make test-full tries all pairs')
    kind = dict(mistake=KeyError, odd=RuntimeError).get(how, InputError)
    with pytest.raises(kind, match=ENDS[how]) as e:
        pools(tmp_path, how, monkeypatch)[pool]()
    if how in ('memory', 'killed'):
        assert str(e.value).startswith(pool)
    if how in ('mistake', 'odd'):
        assert 'in befall' in str(e.value.__cause__)   # the worker's own traceback
    tally('faults', 'errors and deaths in the workers of every kind of work',
        'the error itself, or what died and how')

def light_start(root, patience, options):
    "In a worker: extraction without its networks, which take most of the time to begin."
    import importlib
    import hcms.extraction.extract as E
    from hcms.networks.backbones import load_backbones
    importlib.import_module('torchvision.transforms.v2')   # in the first video's time otherwise
    backbones = load_backbones(**options, lazy=True)
    backbones.features = lambda m, x: torch.ones(len(x), backbones.sizes[m])
    E._worker = (backbones, E.open_views(FeatureStore(root), backbones), patience)

def befallen(id, path, *args):
    "In a worker: `extract_video`, unless a note beside the video says what happens to it."
    note = Path(f'{path}.harm')
    if note.exists():
        befall(note.read_text())
    UNHARMED(id, path, *args)

def harmed_work(job):
    import hcms.extraction.extract as E
    global UNHARMED
    if E.extract_video is not befallen:
        UNHARMED = E.extract_video
        E.extract_video = befallen
    return E._work(job)

BEFALLS = dict(crash='file', killed='memory', sleep='patience')

@pytest.mark.parametrize('how,kind', [('memory', 'memory'), *long(BEFALLS.items())])
def test_a_verdict_holds_as_long_as_its_circumstances(tmp_path, monkeypatch, tally, how, kind):
    "An accident is over at the third run; its kind decides when the video is tried again."
    import hcms.extraction.extract as E
    monkeypatch.setattr(E, '_work', harmed_work)
    monkeypatch.setattr(E, '_start_worker', light_start)
    manifest = three_videos(tmp_path, 'bad')
    store = FeatureStore(tmp_path/'s')
    note = tmp_path/'bad.mp4.harm'
    note.write_text(how)
    run = lambda patience=12.: E.extract(manifest, store, 'demo', workers=1, patience=patience)
    notes = lambda: (tmp_path/'s'/'quarantine.jsonl').read_text().count('"bad"')
    first = run()
    assert (first.done, list(first.aside))==(2, ['bad']), str(first)
    assert store.set_aside_ids()['bad']['kind']==kind
    again = run()
    assert list(again.aside)==['bad'] and notes()==(2 if kind=='memory' else 1)
    note.unlink()
    if kind!='memory':
        assert list(run().aside)==['bad'] and notes()==1   # the cause of its verdict is unchanged
    if kind=='file':
        monkeypatch.setattr(E, '__version__', 'newer')
    last = run(24. if kind=='patience' else 12.)
    assert (last.done, last.kept, last.aside)==(1, 2, {})
    tally('faults', 'videos set aside for memory, a kill, a crash, patience',
        'tried again when that changed, only then')

def test_a_damaged_file_is_read_again_when_it_or_its_reader_changes(tmp_path, monkeypatch, tally):
    "Not again as they are; again with another version of PyAV, or when the file changes, even in its middle."
    import hcms.extraction.extract as E
    monkeypatch.setattr(E, '_start_worker', light_start)
    bad = ('cut', 'page', 'empty', 'absent', 'pipe')
    manifest = three_videos(tmp_path, *bad)
    store = FeatureStore(tmp_path/'s')
    whole = (tmp_path/'cut.mp4').read_bytes()
    (tmp_path/'cut.mp4').write_bytes(whole[:len(whole)//2])
    (tmp_path/'page.mp4').write_text('<html>')
    (tmp_path/'empty.mp4').write_bytes(b'')
    for o in ('absent', 'pipe'):
        (tmp_path/f'{o}.mp4').unlink()
    os.mkfifo(tmp_path/'pipe.mp4')
    notes = lambda: {o: (tmp_path/'s'/'quarantine.jsonl').read_text().count(f'"{o}"') for o in bad}
    run = lambda: E.extract(manifest, store, 'demo', workers=1)
    assert (run().done, notes())==(2, dict.fromkeys(bad, 1))
    assert {o['kind'] for o in store.set_aside_ids().values()}=={'file'}
    assert (set(run().aside), notes())==(set(bad), dict.fromkeys(bad, 1))
    newer = lambda patience: dict(reader='hcms 0.1.0, av 999', patience=patience)
    with monkeypatch.context() as m:
        m.setattr(E, 'circumstances', newer)
        assert (set(run().aside), notes())==(set(bad), dict.fromkeys(bad, 2))
    store.set_aside('page', 'is text', source=E.file_mark(tmp_path/'page.mp4'))   # a note of an older version
    assert store.set_aside_ids()['page']==dict(reason='is text', source=E.file_mark(tmp_path/'page.mp4'))
    with open(tmp_path/'cut.mp4', 'r+b') as f:
        f.seek(40)
        f.write(b'x')
    (tmp_path/'absent.mp4').write_bytes(whole)
    monkeypatch.setattr(E, 'circumstances', newer)
    last = run()
    assert last.done==1 and set(last.aside)=={'cut', 'page', 'empty', 'pipe'}
    assert notes()==dict(cut=3, page=4, empty=2, absent=2, pipe=2)
    tally('faults', 'damaged, absent, empty files, pipes',
        'read again when file or reader changed, only then', len(bad))

@pytest.mark.full
def test_a_video_without_memory_beside_others_is_read_alone(tmp_path, monkeypatch, tally):
    "There is no memory for it as long as another process is there."
    import hcms.extraction.extract as E
    monkeypatch.setattr(E, '_work', lonely_work)
    monkeypatch.setattr(E, '_start_worker', light_start)
    manifest = three_videos(tmp_path, 'big')
    store = FeatureStore(tmp_path/'s')
    result = E.extract(manifest, store, 'demo', workers=2)
    assert (result.done, result.aside)==(3, {}) and not store.set_aside_ids()
    tally('faults', 'a video for which there is no memory beside others', 'is read alone')

def lonely_work(job):
    "A big video asks for too much in the first process that reads it."
    import hcms.extraction.extract as E
    once = Path(f'{job[1]}.tried')
    if job[0]=='big' and not once.exists():
        once.touch()
        return job[0],E.Verdict('takes more memory than there is', 'memory')
    return E._work(job)

def test_videos_left_out_of_a_decoded_split_are_tried_again(tmp_path, tally):
    from hcms.networks.backbones import spec_for
    from hcms.training.finetune import decode_split
    manifest = three_videos(tmp_path, 'bad')
    whole = (tmp_path/'bad.mp4').read_bytes()
    (tmp_path/'bad.mp4').write_bytes(b'')
    decode = lambda: decode_split(manifest, spec_for('demo', 2), tmp_path/'maps', 1)
    first = decode()
    assert (manifest.ids[0], first['ok'].tolist())==('bad', [False, True, True])
    frames = first['appearance'][1:].copy()
    (tmp_path/'bad.mp4').write_bytes(whole)
    then = decode()
    assert then['ok'].all() and (then['appearance'][1:]==frames).all() and then['appearance'][0].any()
    tally('faults', 'a file mended between two decodings of a split', 'is read, and the others are kept')

def test_a_killed_decoding_of_another_split_leaves_no_false_record(tmp_path, monkeypatch):
    import hcms.training.finetune as F
    from hcms.networks.backbones import spec_for
    manifest = three_videos(tmp_path)
    decode = lambda steps: F.decode_split(manifest, spec_for('demo', steps), tmp_path/'maps', 1)
    want = decode(2)['appearance'].copy()
    def killed(*args):
        raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(F, '_decode_all', killed)
        with pytest.raises(KeyboardInterrupt):
            decode(3)
    again = decode(2)
    assert again['ok'].all() and np.array_equal(again['appearance'], want)

def takers(tmp_path) -> dict:
    "By the name of a parameter, what takes it: functions of its value."
    from hcms.networks.backbones import spec_for
    from hcms.extraction.extract import extract_on_ray
    from hcms.core import worker_pool
    from hcms.experiments.datasets import finetune_backbones, open_dataset, prepare_rendered, train_backbones
    from hcms.extraction.extract import extract
    from hcms.data.store import pack
    from hcms.experiments.policies import measured
    from hcms.data.rendered import render_demo
    from hcms.experiments.runs import get_runs, train_runs, variants
    from hcms.training.finetune import (
        Decoded, Streamed, decode_split, finetune, finetune_config, read_ahead)
    store = FeatureStore(tmp_path/'s')
    data = Troubled(tmp_path, 'known')
    view = store.extractor('motion', dict(model='x'))
    out = tmp_path/'w'
    media = np.zeros((3, 2, 96, 64))
    few = three_videos(tmp_path)
    made = lambda **kw: extract(few, store, 'demo', **kw)
    on_ray = lambda **kw: extract_on_ray(few, store, 'demo', **kw)
    streamed = lambda **kw: Streamed(few, spec_for('demo'), 'audio', **kw)
    decoded = Decoded('audio', media, np.zeros(3, dtype=int), 1)
    tune = lambda source, **kw: finetune('demo/mobilenet', source, out, **kw)
    with_config = lambda source, **kw: tune(source, config=finetune_config(**kw))
    read = lambda *a: list(read_ahead([], len, {}, *a))
    nets = lambda w: train_backbones(tmp_path/'m.csv', out, None, 'demo', {}, workers=w)
    return dict(
        workers=[
            worker_pool, nets, read,
            lambda o: made(workers=o),
            lambda o: render_demo(tmp_path/'r', workers=o),
            lambda o: decode_split(few, spec_for('demo', 2), out, o),
            lambda o: finetune_backbones('demo', o),
            lambda o: prepare_rendered('demo', workers=o),
            lambda o: open_dataset('activitynet', o),
            lambda o: streamed(workers=o),
            lambda o: train_runs(data, [], o),
            lambda o: get_runs(data, [], o),
            lambda o: measured(data, workers=o)],
        actors=[lambda o: on_ray(actors=o)],
        seeds=[lambda o: variants(data, [{}], o), lambda o: measured(data, o)],
        save_every=[lambda o: tune(decoded, save_every=o), lambda o: tune(streamed(), save_every=o)],
        videos=[lambda o: pack(view, o), lambda o: with_config(decoded, videos=o),
                lambda o: with_config(streamed(), videos=o)],
        epochs=[lambda o: with_config(decoded, epochs=o), lambda o: with_config(streamed(), epochs=o)],
        patience=[lambda o: made(patience=o), lambda o: on_ray(patience=o), lambda o: streamed(patience=o),
                  lambda o: finetune_backbones('fcvid', patience=o), lambda o: read(1, o)],
        shard=[lambda o: made(shard=o), lambda o: on_ray(shard=o)])

ODD = dict(patience=(0, -5., '9', None, float('inf'), float('nan')),
    shard=((2, 2), (-1, 2), (0, 0), (0,), None, '0/1'))

def test_odd_counts_and_durations_are_named(tmp_path, tally):
    "Before any work, by the name that the parameter has."
    n = 0
    for name,functions in takers(tmp_path).items():
        for f in functions:
            for value in ODD.get(name, (0, -1, 1.5, '2', None, True)):
                e = ends_well(f, value)
                said = f'{name}: must be',f'{name}: Input should be'   # by this package, by pydantic
                assert isinstance(e, InputError) and str(e).startswith(said), (name, value, e)
                n += 1
    assert [o.name for o in tmp_path.iterdir() if o.suffix!='.mp4']==['s']
    assert not list((tmp_path/'s').rglob('*.safetensors'))
    tally('numbers', 'counts, durations and shards that are none', 'refused by name, before any work', n)

def test_what_counts_as_done_is_written_last(tmp_path, monkeypatch, tally):
    "Stopped between a result and its record, the result is not believed."
    import hcms.training.finetune as F, hcms.networks.weights as W
    import hcms.experiments.runs as R
    from hcms.experiments.datasets import SimulatedDataset
    from hcms.method.saved import SEAL
    from hcms.experiments.runs import config_for, make_run
    def dies(*a, **kw): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(W, 'save_weights', dies)
        with pytest.raises(KeyboardInterrupt):
            W.install_random(tmp_path, 'demo')
    assert json.loads((tmp_path/'weights.json').read_text())['audio']['what']=='RANDOM WEIGHTS'
    with monkeypatch.context() as m:
        m.setattr(F, 'write_whole', dies)
        x = np.zeros((8, 2, 96, 64), dtype=np.float16)
        y = np.zeros(8, dtype=int)
        config = F.FinetuneConfig(epochs=1, steps=2)
        with pytest.raises(KeyboardInterrupt):
            F.finetune('demo/mobilenet', F.Decoded('audio', x, y, 2), tmp_path/'audio', config)
    assert not (tmp_path/'audio.safetensors').exists()
    monkeypatch.setenv('HCMS_HOME', str(tmp_path))
    data = SimulatedDataset('activitynet', training=4, selection=2, evaluated=2, steps=2)
    splits = {k: data.split(k) for k in ('training', 'selection', data.evaluated)}
    folder = make_run(data, config_for(data, epochs=1), splits)
    (folder/SEAL).unlink()
    assert (make_run(data, config_for(data, epochs=1), splits)/SEAL).is_file()
    other = config_for(data, epochs=1, seed=1)
    with monkeypatch.context() as m:
        m.setattr(R, 'predict_split', dies)   # trained, and nothing predicted yet
        with pytest.raises(KeyboardInterrupt):
            make_run(data, other, splits)
    assert not R.finished(R.run_folder(data, other))
    run, = R.get_runs(data, [other], 1)
    assert run.predictions.logits.shape==(2, len(data.classes))
    tally('faults', 'a stop between a result and its record', 'the result is made again, or is not there', 4)

PROBE = """
import sys
from hcms.media.files import MediaError, probe
try: probe(sys.argv[1])
except MediaError as e: print(e)
"""

def test_what_cannot_be_read_is_named(tmp_path, tally):
    """A video without permission, a folder or a pipe in place of a feature file, a quarantine of brackets,
    a Keras file and a folder that point outside."""
    import h5py
    from hcms.data.manifests import find_files
    from hcms.networks.backbones import read_keras
    (tmp_path/'v.mp4').write_bytes(b'x'*99)
    (tmp_path/'v.mp4').chmod(0)
    r = subprocess.run(
        [sys.executable, '-c', PROBE, tmp_path/'v.mp4'], cwd=ROOT, capture_output=True, text=True,
        preexec_fn=unprivileged)
    assert 'v.mp4: cannot be opened as media (Permission denied)' in r.stdout, r.stderr[-2000:]
    view = FeatureStore(tmp_path/'s').extractor('audio', dict(model='x'))
    for id,make in dict(folder=Path.mkdir, pipe=os.mkfifo).items():
        view.path(id).parent.mkdir(parents=True, exist_ok=True)
        make(view.path(id))
        assert 'is not a file' in str(ends_well(view.get, id))
    brackets = b'['*100_000+b'\n{"id":"v","reason":"x","source":""}\n'+b'['*60_000+b'\n'
    (tmp_path/'s'/'quarantine.jsonl').write_bytes(brackets)
    assert FeatureStore(tmp_path/'s').set_aside_ids()=={'v': dict(reason='x', source='')}
    outside = [(str(tmp_path/'v.mp4'), 0, h5py.h5f.UNLIMITED)]
    with h5py.File(tmp_path/'y.h5', 'w') as f:
        f.create_dataset('layer1/conv/kernel', (3, 3, 1, 32), dtype='f4', external=outside)
    assert 'in another file' in str(ends_well(read_keras, tmp_path/'y.h5'))
    assert 'videos: must be a folder below' in str(ends_well(find_files, tmp_path, '/tmp'))
    assert 'videos' in str(ends_well(find_files, tmp_path, '../x'))
    tally('hostile', 'folders, pipes and links outside in place of files', 'refused and named', 6)

def test_a_wrong_choice_is_not_kept(tiny_home, tmp_path, monkeypatch):
    from hcms.experiments.datasets import choose
    monkeypatch.setenv('HCMS_HOME', str(copy_home(tiny_home, tmp_path)))
    networks = dict(networks=['timm/x']),dict(networks=['yamnet'])
    for wrong in (dict(precision='bf16'), dict(steps=-1), *networks):
        assert isinstance(ends_well(lambda: choose('demo', **wrong)), InputError)
        assert not (tmp_path/'data'/'demo'/'dataset.json').exists()

# flipped bits

def flip_and_read(path, read, same, bits, rng):
    "Flip single bits of a file, read after each: (noticed, harmless). A harmless flip changes no result."
    was = path.read_bytes()
    noticed = 0
    harmless = 0
    try:
        for bit in sorted(rng.sample(range(8*len(was)), min(bits, 8*len(was)))):
            b = bytearray(was)
            b[bit//8] ^= 1<<bit%8
            path.write_bytes(b)
            got = ends_well(read)
            if isinstance(got, InputError):
                assert path.name in str(got) or path.parent.name in str(got), got
                noticed += 1
            else:
                assert same(got), f'bit {bit} of {path} changed the result, and was not noticed'
                harmless += 1
    finally:
        path.write_bytes(was)
    return noticed,harmless

def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, pd.DataFrame):
        return a.equals(b)
    if isinstance(a, dict):
        return a.keys()==b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a)==len(b) and all(map(equal, a, b))
    return a==b

def test_flipped_bits_are_noticed(trained_home, tmp_path, tally, full):
    from hcms.data.manifests import read_manifest
    from hcms.data.store import PackedView, pack
    from hcms.inference.recognizer import Recognizer
    from hcms.training.train import load_state, save_state
    from hcms.experiments.runs import load_run
    rng = random.Random(0)
    shutil.copytree(trained_home/'checkpoints'/'demo', tmp_path/'recognizer')
    shutil.copytree(next((trained_home/'data'/'demo'/'runs').iterdir()), tmp_path/'run')
    for o in (trained_home/'data'/'demo').glob('manifest.*'):
        shutil.copy(o, tmp_path)
    view = FeatureStore(tmp_path/'store').extractor('motion', dict(model='x'))
    for i in range(6):
        view.put(f'v{i}', torch.randn(8, 16), dtype=torch.float16)
    feature = view.path('v3')
    torch.manual_seed(0)
    save_state(tmp_path/'state.pt', model=dict(w=torch.randn(50, 20)), history=[dict(loss=.5)]*5)
    def read_recognizer():
        r = Recognizer.from_pretrained(tmp_path/'recognizer')
        return [r.model.state_dict(), r.classes]
    def read_run():
        r = load_run(tmp_path/'run')
        return [r.model.state_dict(), r.config, r.history, tuple(r.predictions)]
    def read_rows():
        m = read_manifest(tmp_path/'manifest.csv')
        return [m.df, m.classes, m.fingerprint]
    def read_config(): return FeatureStore(tmp_path/'store').views()[0].config
    of_run = [o for o in (tmp_path/'run').iterdir() if o.suffix!='.md']
    of_recognizer = [o for o in (tmp_path/'recognizer').iterdir() if o.is_file() and o.suffix!='.md']
    networks = list((tmp_path/'recognizer'/'backbones').iterdir())
    jobs = [   # what, its files, what reads them, how many bits in the short and in the long form
        ('a feature file', [feature], lambda: list(view.get('v3')), (2000, 10**6)),
        ('the note of an extractor, the mark of a store',
            [view.folder/'extractor.json', tmp_path/'store'/'STORE.json'], read_config, (200, 10**4)),
        ('a manifest, its class list, its checksums', sorted(tmp_path.glob('manifest.*')), read_rows,
            (60, 1500)),
        ('the state of a training', [tmp_path/'state.pt'], lambda: load_state(tmp_path/'state.pt'),
            (300, 20_000)),
        ('a trained run: model, predictions, history, notes, checksums', of_run, read_run, (8, 300)),
        ('a recognizer: model, classes, checksums', of_recognizer, read_recognizer, (6, 200)),
        ("a recognizer's networks", networks, read_recognizer, (4, 100))]
    for what,files,read,bits in jobs:
        good = read()
        n = [0, 0]
        for p in files:
            found = flip_and_read(p, read, lambda got: equal(good, got), bits[full], rng)
            n = [a+b for a,b in zip(n, found)]
        tally('corruption', f'single bits of {what}', 'noticed before use, the file named', n[0])
        if n[1]:
            tally('corruption', f'single bits of {what}', 'read as it was: the bit decides nothing', n[1])
    p, = pack(view)
    for how,kw in {'whole': {}, 'some time steps': dict(steps=[1, 5])}.items():
        load = lambda: PackedView(view).load([f'v{i}' for i in range(6)], **kw)
        good = load()
        n = flip_and_read(p, load, lambda got: equal(good, got), 60_000 if full else 1000, rng)
        tally('corruption', f'single bits of a pack, {how} read', 'noticed before use, the file named', n[0])
        if n[1]:
            tally('corruption', f'single bits of a pack, {how} read',
                'in what is not read, or decides nothing', n[1])

# hostile input

def hostile_safetensors() -> dict:
    "Headers that promise what is not there."
    head = lambda text, data=b'': struct.pack('<Q', len(text))+text+data
    def tensor(**kw):
        "A header of one tensor, with something changed."
        return json.dumps({'w': dict(dict(dtype='F32', shape=[2], data_offsets=[0, 8]), **kw)}).encode()
    overlap = dict(
        a=dict(dtype='F32', shape=[2], data_offsets=[0, 8]),
        b=dict(dtype='F32', shape=[2], data_offsets=[4, 12]))
    return {
        'a header of 2^40 bytes': struct.pack('<Q', 1<<40)+b'{}',
        'a header of 2^63 bytes': b'\xff'*8+b'{}',
        'a shape of 10^18': head(tensor(shape=[10**9, 10**9]), bytes(8)),
        'a shape that overflows': head(tensor(shape=[2**32, 2**32, 2**32]), bytes(8)),
        'offsets outside': head(tensor(data_offsets=[0, 10**9]), bytes(8)),
        'offsets backwards': head(tensor(data_offsets=[8, 0]), bytes(8)),
        'negative numbers': head(tensor(shape=[-2], data_offsets=[-8, 0]), bytes(8)),
        'tensors that overlap': head(json.dumps(overlap).encode(), bytes(12)),
        'nested 100,000 deep': head(b'['*100_000),
        'not UTF-8': head(b'{"\xff": 1}'),
        'no object': head(b'[1, 2]'),
        'a kind of number that is not known': head(tensor(dtype='X99'), bytes(8)),
        'nothing': b'',
        'a byte': b'\x08'}

def test_hostile_files_are_refused(trained_home, tmp_path, tally):
    "A pickle under every name, hostile headers, bombs: every reader refuses; nothing ran or was written."
    from hcms.data.owners import activitynet_manifest, fcvid_manifest
    from hcms.networks.backbones import load_backbones, weights_path
    from hcms.networks.backbones import read_keras, read_tflite
    from hcms.method.hlstm import HCMS
    from hcms.data.manifests import read_manifest
    from hcms.media.files import read_steps, MediaSpec
    from hcms.data.store import PackedView
    from hcms.inference.recognizer import Recognizer
    from hcms.training.train import load_state
    from hcms.experiments.runs import load_run
    from hcms.networks.weights import install, read_state
    import hashlib
    torch.save(dict(model_state=Evil(tmp_path)), tmp_path/'t.pt')
    evil = {
        'a pickle that runs a command': pickle.dumps(Evil(tmp_path)),
        'a torch file that runs a command': (tmp_path/'t.pt').read_bytes()}
    (tmp_path/'t.pt').unlink()
    bombs = {
        'JSON nested 100,000 deep': b'['*100_000,
        'JSON with a number of 100,000 digits': b'{"database": '+b'9'*100_000+b'}',
        'YAML that grows': b'a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n',
        'bytes 0 to 255': bytes(range(256))*20}
    headers = hostile_safetensors()
    def folder(name):
        to = tmp_path/'work'
        shutil.rmtree(to, ignore_errors=True)
        to.mkdir()
        if name=='recognizer':
            shutil.copytree(trained_home/'checkpoints'/'demo', to/'r')
        if name=='run':
            shutil.copytree(next((trained_home/'data'/'demo'/'runs').iterdir()), to/'r')
        for o in [*to.rglob('*.sha256'), *to.rglob('SHA256SUMS')]:
            o.unlink()   # a stranger makes these fit
        return to
    def store(to):
        v = FeatureStore(to/'s').extractor('audio', dict(model='x'))
        v.put('v1', torch.ones(2, 3))
        return v
    def pack_at(to, data):
        v = store(to)
        (v.folder/'packs').mkdir()
        (v.folder/'packs'/'pack-00000.safetensors').write_bytes(data)
        return PackedView(v).load(['v1'])
    def put(path, data):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path
    def extractor(to, data):
        v = store(to)
        put(v.folder/'extractor.json', data)
        return FeatureStore(to/'s').views()
    def video_list(to, data, name):
        f = dict(split=b'a/b.mp4 train\n', labels=b'1 0\n') | {name: data}
        return fcvid_manifest(put(to/'s.txt', f['split']), put(to/'l.txt', f['labels']), to)
    def feature_file(to, data):
        v = store(to)
        put(v.path('v1'), data)
        return v.get('v1')
    def networks(to, data):
        for m in ('audio', 'appearance', 'motion'):
            path = put(weights_path(to, m), data)
        return load_backbones('demo', path.parent)
    def class_list(to, data):
        put(to/'m.csv', b'id,path,split,labels\nv,,training,a\n')
        return read_manifest(to/'m.csv', put(to/'c.csv', data))
    def state(to, data): return load_state(put(to/'state.pt', data+hashlib.sha256(data).digest()))
    def mark(to, data): return FeatureStore(put(to/'s'/'STORE.json', data).parent)
    def in_folder(load, name):
        "Reads a folder of which one file is replaced."
        def read(to, data):
            put(to/'r'/name, data)
            return load(to/'r')
        return read
    slowfast = 'pytorchvideo/slowfast_r50'
    readers = {   # what it is -> (the folder that it needs, reader of (folder, data))
        'weights .safetensors': ('all', lambda to, d: read_state(put(to/'w.safetensors', d))),
        'weights .pt': ('all', lambda to, d: read_state(put(to/'w.pt', d))),
        'weights .pyth': ('all', lambda to, d: install(slowfast, to/'out', put(to/'w.pyth', d))),
        'weights .h5': ('all', lambda to, d: read_keras(put(to/'w.h5', d))),
        'weights .tflite': ('all', lambda to, d: read_tflite(put(to/'w.tflite', d))),
        "networks' weights": ('all', networks),
        'state of a training': ('all', state),
        'feature file': ('all', feature_file),
        'pack of features': ('all', pack_at),
        'note of an extractor': ('all', extractor),
        'mark of a store': ('all', mark),
        'manifest': ('all', lambda to, d: read_manifest(put(to/'m.csv', d))),
        'class list': ('all', class_list),
        "ActivityNet's annotations": ('all', lambda to, d: activitynet_manifest(put(to/'a.json', d), to)),
        "FCVID's split": ('all', lambda to, d: video_list(to, d, 'split')),
        "FCVID's labels": ('all', lambda to, d: video_list(to, d, 'labels')),
        'video': ('all', lambda to, d: read_steps(put(to/'v.mp4', d), MediaSpec(steps=2)))}
    for o in ('recognizer.json', 'config.json', 'model.safetensors'):
        readers[f"recognizer's {o}"] = 'recognizer',in_folder(Recognizer.from_pretrained, o)
    for o in ('config.json', 'model.safetensors'):
        readers[f"model's {o}"] = 'recognizer',in_folder(HCMS.from_pretrained, o)
    for o in ('run.json', 'predictions.safetensors', 'history.csv'):
        readers[f"run's {o}"] = 'run',in_folder(load_run, o)
    for what,data in (evil | bombs | headers).items():
        for name,(kind,read) in readers.items():
            got = ends_well(read, folder(kind), data)
            assert isinstance(got, InputError), f'{name} took {what}'
            ran = (tmp_path/SENTINEL).exists() or (tmp_path/'work'/SENTINEL).exists()
            assert not ran, f'{name} ran {what}'
    n = len(readers)
    tally('hostile', f'pickles and torch files that run a command, under every name, {n} readers',
        'refused, nothing ran', len(evil)*n)
    tally('hostile', f'bombs of JSON and YAML, random bytes, {n} readers', 'refused', len(bombs)*n)
    tally('hostile', f'safetensors with hostile headers, {n} readers', 'refused', len(headers)*n)

def test_hostile_configurations_are_refused(trained_home, tmp_path, tally):
    "JSON that can be read, and asks for the wrong thing."
    from hcms.inference.recognizer import Recognizer
    from hcms.experiments.runs import load_run
    (tmp_path/'secret.safetensors').write_bytes(save(dict(w=torch.ones(2))))
    def attack(src, file, change, load):
        to = tmp_path/'r'
        shutil.rmtree(to, ignore_errors=True)
        shutil.copytree(src, to)
        (to/'SHA256SUMS').unlink()
        note = json.loads((to/file).read_text())
        change(note)
        (to/file).write_text(json.dumps(note))
        got = ends_well(load, to)
        assert isinstance(got, InputError), f'{file} was taken'
        return 1
    r = trained_home/'checkpoints'/'demo'
    run = next((trained_home/'data'/'demo'/'runs').iterdir())
    n = 0
    notes = dict(preset='../../x', precision='float7', classes=['a']*10**5, media=dict(steps=-1), version=2)
    for k,v in notes.items():
        n += attack(r, 'recognizer.json', lambda o: o.update({k: v}), Recognizer.from_pretrained)
    def outside(o): o.update(backbones={'../../secret': dict(sha256='0'*64), **o['backbones']})
    n += attack(r, 'recognizer.json', outside, Recognizer.from_pretrained)
    n += attack(r, 'recognizer.json', lambda o: o['backbones'].update(audio='x'), Recognizer.from_pretrained)
    n += attack(r, 'recognizer.json', lambda o: o['media'].update(steps='many'), Recognizer.from_pretrained)
    config = dict(
        num_classes=10**13, hidden_sizes=dict(audio=10**9, appearance=10**9, motion=10**9),
        modalities=['audio']*5000, in_sizes='x', proj_sizes=[1.5]*3, nested='no')
    for k,v in config.items():
        n += attack(r, 'config.json', lambda o: o.update({k: v}), Recognizer.from_pretrained)
    for k,v in dict(config=dict(model='os.system'), key=None).items():
        n += attack(run, 'run.json', (lambda o: o.update({k: v})) if v else (lambda o: o.pop(k)), load_run)
    tally('hostile', 'configurations with paths, impossible sizes, wrong kinds and unknown names',
        'refused before memory is taken or a file is opened', n)

def test_paths_that_lead_out_are_refused(tmp_path, tally):
    from hcms.core import check_seal
    from hcms.data.manifests import Manifest
    from hcms.data.owners import activitynet_manifest
    ids = [
        '../../etc/cron.d/x', '/abs', 'a/b', 'a\x00b', 'a\nb', '..', '.', '', 'x'*65, 'a b', 'ä', '%2e%2e',
        'a;rm', '$(x)', 'C:\\x', '\\\\host\\x', '~root', '-'*65]
    def manifest(id='v', path='v.mp4'):
        return Manifest(pd.DataFrame([dict(id=id, path=path, split='training', labels='a')]))
    view = FeatureStore(tmp_path/'s').extractor('audio', dict(model='x'))
    n = 0
    functions = (
        view.path, view.get, view.has, manifest,
        lambda id: view.put(id, torch.ones(2, 3)),
        lambda id: FeatureStore(tmp_path/'s').set_aside(id, 'x'),
        lambda id: FeatureStore(tmp_path/'s').open('audio', id))
    before = snapshot(tmp_path)
    for id in ids:
        for f in functions:
            assert isinstance(ends_well(f, id), InputError), id
            n += 1
    for path in ('../x.mp4', '/etc/passwd', 'a/../../x', '~/x', 'C:\\x', '..\\x', 'a\x00b'):
        assert isinstance(ends_well(lambda: manifest(path=path)), InputError)
        n += 1
    video = dict(subset='training', duration=1, annotations=[dict(label='a', segment=[0, 1])])
    (tmp_path/'a.json').write_text(json.dumps(dict(database={'../../x': video}, taxonomy=[])))
    assert isinstance(ends_well(activitynet_manifest, tmp_path/'a.json', tmp_path), InputError)
    n += 1
    for text in ('0'*64+'  ../../etc/passwd\n', '0'*64+'  /etc/passwd\n'):
        (tmp_path/'SHA256SUMS').write_text(text)
        assert isinstance(ends_well(check_seal, tmp_path/'SHA256SUMS'), InputError)
        n += 1
    for o in ('a.json', 'SHA256SUMS'):
        (tmp_path/o).unlink()
    assert snapshot(tmp_path)==before
    tally('hostile',
        'ids, paths and names that lead out of their folder, or hold what shells and systems take amiss',
        'refused, nothing written', n)

def test_parameters_are_values_never_code(tiny_home, tmp_path, tally):
    "Through the driver: a name that is not a parameter is left out, a text arrives as it is."
    import nbformat
    from hcms.reports.driver import run_notebook
    cells = [
        nbformat.v4.new_code_cell("dataset: str = 'demo'", metadata=dict(tags=['parameters'])),
        nbformat.v4.new_code_cell(f'open({str(tmp_path/"got")!r}, "w").write(dataset)')]
    kernel = dict(name='python3', display_name='python3', language='python')
    nb = nbformat.v4.new_notebook(cells=cells, metadata=dict(kernelspec=kernel))
    nbformat.write(nb, tmp_path/'a.ipynb')
    code = f'__import__("os").mkdir({str(tmp_path/SENTINEL)!r})'
    value = f"a\"; {code} #'\n'; {code} #"
    parameters = {'dataset': value, f'x; {code}; y': 1}
    assert run_notebook(tmp_path/'a.ipynb', tmp_path/'b.ipynb', parameters) is None
    assert (tmp_path/'got').read_text()==value and not (tmp_path/SENTINEL).exists()
    commands = (
        ['report', 'demo', '--only', '../../x'], ['train', '../../x'], ['store', 'verify', tmp_path/'none'])
    for args in commands:
        r = hcms(*args, home=tmp_path, check=False)
        assert r.returncode in (1, 2) and r.stderr and 'Traceback' not in r.stderr, (args, r.stderr[-500:])
    tally('hostile', 'code in names and values of parameters, and on the command line',
        'a value stays a value; an unknown name is left out or refused', 5)

# numbers

def test_odd_numbers_are_right_or_refused(tmp_path, tally):
    "Metrics against sklearn where they are defined, an `InputError` where they are not."
    from sklearn.metrics import average_precision_score
    from hcms.method.hlstm import HCMS
    from hcms.method.losses import usage_loss
    from hcms.data.manifests import Manifest, hold_out
    from hcms.evaluation.metrics import accuracy, mean_average_precision, skip_ratios
    rng = np.random.default_rng(0)
    inf = float('inf')
    nan = float('nan')
    s = rng.random((12, 4))
    t = np.eye(4, dtype=int)[rng.integers(0, 3, 12)]   # the fourth class has no positive
    AP = mean_average_precision
    def by_sklearn(s, t):
        return np.mean([average_precision_score(t[:,k], s[:,k]) for k in range(t.shape[1]) if t[:,k].any()])
    right = {   # what was computed, and what is right
        'a class without positives': (AP(s, t), by_sklearn(s, t)),
        'identical scores': (AP(s*0+.5, t), by_sklearn(s*0+.5, t)),
        'ties': (AP(s.round(1), t), by_sklearn(s.round(1), t)),
        'one video': (AP(s[:1], t[:1]), 1.),
        'one class': (AP(s[:,:1], t[:,:1]), by_sklearn(s[:,:1], t[:,:1])),
        'scores of 1e300': (AP(s*1e300, t), by_sklearn(s, t)),
        'scores of 1e-300': (AP(s*1e-300, t), by_sklearn(s, t)),
        'every video positive': (AP(s, np.ones_like(t)), 1.),
        'one step': (skip_ratios(np.ones((3, 1, 2)))[0], 0.),
        'one video, one step': (skip_ratios(np.zeros((1, 1, 2)))[1], 1.),
        'one video, accuracy': (accuracy(s[:1], s[:1].argmax(1)), 1.)}
    for k,(got,want) in right.items():
        assert np.allclose(got, want, atol=1e-12), k
    row = lambda **kw: dict(dict(id='v', path='v.mp4', split='training', labels='a'), **kw)
    make = lambda *rows, **kw: Manifest(pd.DataFrame(rows), **kw)
    model = HCMS(3, ('audio', 'motion'), in_sizes=(2, 3), proj_sizes=(2, 2), hidden_sizes=(2, 3))
    view = FeatureStore(tmp_path).extractor('audio', dict(model='x'))
    ones = torch.ones
    refused = {
        'NaN scores': lambda: AP(s*nan, t),
        'infinite scores': lambda: AP(s+inf, t),
        'no video': lambda: AP(s[:0], t[:0]),
        'no positive at all': lambda: AP(s, t*0),
        'a label too high': lambda: AP(s, np.full(12, 4)),
        'a label below 0': lambda: accuracy(s, np.full(12, -1)),
        'labels that are fractions': lambda: accuracy(s, np.full(12, .5)),
        'more labels than videos': lambda: accuracy(s, np.zeros(13, int)),
        'gates of 2': lambda: skip_ratios(np.full((2, 3, 2), 2.)),
        'NaN gates': lambda: skip_ratios(np.full((2, 3, 2), nan)),
        'a skip target of 60': lambda: usage_loss(torch.zeros(2, 3, 2), (60, 90)),
        'NaN features': lambda: view.put('v', torch.full((2, 3), nan)),
        'infinite features': lambda: view.put('v', torch.full((2, 3), inf)),
        'features too large for half precision':
            lambda: view.put('v', torch.full((2, 3), 1e5), dtype=torch.float16),
        'features of no step': lambda: view.put('v', ones(0, 3)),
        'duplicate ids': lambda: make(row(), row()),
        'an unknown label': lambda: make(row(), classes=['b']),
        'an empty label': lambda: make(row(labels='')),
        'an empty split': lambda: make(row()).split('testing'),
        'no row': lambda: hold_out(make(row())),
        'features of another size': lambda: model(ones(1, 2, 9), ones(1, 2, 3)),
        'features of no video': lambda: model(ones(0, 2, 2), ones(0, 2, 3)),
        'features of two lengths': lambda: model(ones(1, 2, 2), ones(1, 3, 3)),
        'gates of one half':
            lambda: model(ones(1, 2, 2), ones(1, 2, 3), gates=torch.full((1, 2, 1), .5))}
    for k,f in refused.items():
        assert isinstance(ends_well(f), InputError), k
    out = model.train()(torch.ones(1, 1, 2), torch.ones(1, 1, 3))
    (out.logits.sum()+usage_loss(out.gates, (.5,))).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    tally('numbers', 'one video, one step, one class, ties, classes without positives, huge and tiny scores',
        'right, by an independent computation', len(right)+1)
    tally('numbers', 'NaN, infinity, nothing at all, labels out of range, duplicates, wrong shapes',
        'refused with the reason', len(refused))

@pytest.mark.parametrize('videos,steps', [(1, 1), (1, 4), (3, 1)])
def test_training_and_tables_of_very_little(tally, videos, steps):
    "Two training videos, one to choose by, few to test on: numbers as defined, or a reason."
    from hcms.experiments.datasets import SimulatedDataset
    from hcms.experiments.runs import config_for
    from hcms.evaluation.costs import Predictions, headline
    from hcms.training.train import predict_split, train
    data = SimulatedDataset('activitynet', training=2, selection=1, evaluated=videos, steps=steps)
    c = config_for(data).model_copy(update=dict(epochs=1))   # HCMS takes more than the others there
    model,history = train(c, data.split('training'), data.split('selection'))
    test = data.split(data.evaluated)
    logits,gates = (o.numpy() for o in predict_split(model, c, test))
    p = Predictions(logits[:,-1], gates, test.y.numpy(), test.labels, logits)
    h = headline(p, model)
    present = test.labels.any(0)
    from sklearn.metrics import average_precision_score
    scores = torch.tensor(logits[:,-1]).softmax(-1)
    ap = [average_precision_score(test.labels[:,k], scores[:,k]) for k in np.flatnonzero(present)]
    assert h['mAP']==pytest.approx(np.mean(ap), abs=1e-6)
    assert np.isfinite([h['skip_appearance'], h['skip_motion']]).all() and len(history)==1
    tally('numbers', 'training and evaluation on 2 videos, with 1 and 4 time steps',
        'right, by an independent computation')

# determinism

def test_any_number_of_workers_and_any_order_give_the_same_bytes(tiny_home, tmp_path, tally, full):
    from hcms.extraction.extract import extract
    from hcms.data.manifests import read_manifest, Manifest
    from hcms.data.rendered import Recipe, render_demo
    recipe = Recipe(per_class=3, training=1, selection=1)
    for w in (1, 3):
        render_demo(tmp_path/f'r{w}', recipe, workers=w)
    assert snapshot(tmp_path/'r1')==snapshot(tmp_path/'r3')
    tally('determinism', 'the demo corpus, by 1 and by 3 processes', 'the same bytes', 2)
    demo = tiny_home/'data'/'demo'
    m = read_manifest(demo/'manifest.csv').select(read_manifest(demo/'manifest.csv').ids[::4])
    backwards = Manifest(m.df[::-1], m.classes, m.root)
    whole_set = [(0, 1)]   # shards
    ways = dict(one=(m, 1, whole_set), backwards=(backwards, 2, whole_set))
    if full:
        ways |= dict(three=(m, 3, whole_set), shards=(m, 1, [(2, 3), (0, 3), (1, 3)]))
    weights = demo/'backbones'/'finetuned'
    for k,(manifest,workers,shards) in ways.items():
        for s in shards:
            extract(manifest, FeatureStore(tmp_path/k), 'demo', weights, workers, shard=s)
    whole = snapshot(tiny_home/'data'/'demo'/'features')
    for k in ways:
        made = snapshot(tmp_path/k)
        assert made==snapshot(tmp_path/'one'), k
        assert all(whole[o]==v for o,v in made.items() if o.endswith('.safetensors')), k
    tally('determinism',
        'features, by 1, 2 and 3 processes, from a manifest in reverse, in shards out of order',
        'the same bytes', len(ways))

def test_training_by_any_number_of_workers_gives_the_same_bytes(tmp_path, tally):
    "On a stand-in; networks, predictions and histories."
    code = """
import sys
from hcms.experiments.datasets import SimulatedDataset
from hcms.experiments.runs import train_runs, variants
if __name__=='__main__':
    d = SimulatedDataset('activitynet', training=40, selection=8, evaluated=12, steps=8)
    kinds = [dict(), dict(model='early'), dict(model='adamml')]
    train_runs(d, variants(d, kinds, 2, epochs=2), int(sys.argv[1]))
"""
    (tmp_path/'go.py').write_text(code)
    for w in (1, 3):
        r = subprocess.run(
            [sys.executable, tmp_path/'go.py', str(w)], cwd=ROOT, env=env_of(tmp_path/f'w{w}'),
            capture_output=True, text=True)
        assert r.returncode==0, r.stderr[-2000:]
    a,b = (visible(tmp_path/f'w{w}') for w in (1, 3))
    assert a==b and sum(k.endswith('model.safetensors') for k in a)==6
    tally('determinism', 'trained models, predictions and histories, by 1 and by 3 processes',
        'the same bytes', 12)

# long runs

def usage(pid) -> dict:
    "Memory in MB, open files and threads of a process."
    d = Path('/proc')/str(pid)
    pages = int((d/'statm').read_text().split()[1])
    return dict(
        memory=pages*os.sysconf('SC_PAGE_SIZE')/2**20,
        files=len(list((d/'fd').iterdir())),
        threads=len(list((d/'task').iterdir())))

def children_of(pid) -> list:
    return [int(o) for o in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]

@pytest.mark.full
@pytest.mark.skipif(not Path('/proc/self/statm').is_file(), reason='reads memory in use from /proc')
def test_two_thousand_videos_leave_no_trace(tiny_home, tmp_path, tally):
    """One extraction of 2,000 videos: memory, files and threads of every process at its start and its end.

    And was the time left about right?"""
    import re
    from hcms.data.manifests import Manifest, read_manifest, write_manifest
    home = copy_home(tiny_home, tmp_path, 'features')
    demo = home/'data'/'demo'
    manifest = read_manifest(demo/'manifest.csv')
    some = manifest.df
    rows = [dict(some.iloc[i%len(some)], id=f'v{i:04d}', path=f'videos/v{i:04d}.mp4') for i in range(2000)]
    for i,r in enumerate(rows):
        os.link(demo/some.iloc[i%len(some)].path, demo/r['path'])
    write_manifest(Manifest(pd.DataFrame(rows), classes=manifest.classes), demo/'manifest.csv')
    with open(tmp_path/'log', 'wb') as log:
        command = [BIN/'hcms', 'extract', 'demo']
        p = subprocess.Popen(command, cwd=ROOT, env=env_of(home), stdout=log, stderr=log)
        seen = []
        since = time.time()
        while p.poll() is None:
            time.sleep(1)
            n = len(list((demo/'features').rglob('motion/**/*.safetensors')))
            pids = [p.pid, *children_of(p.pid)] if p.poll() is None else []
            try:
                seen.append((n, time.time()-since, {k: usage(k) for k in pids}))
            except (FileNotFoundError, ProcessLookupError):
                pass
    took = time.time()-since
    text = (tmp_path/'log').read_text()
    assert p.returncode==0 and '2000 videos extracted, 0 already there, 0 set aside' in text
    at = lambda share: min(seen, key=lambda o: abs(o[0]-share*2000))[2]
    early = at(.1)
    late = at(.95)
    same = [k for k in late if k in early]
    assert len(same)>=3
    for k in same:
        a = early[k]
        b = late[k]
        assert b['memory']<a['memory']+40, (a, b)
        assert b['files']<=a['files']+2 and b['threads']<=a['threads']+1, (a, b)
    def total(o):
        names = dict(memory='MB', files='open files', threads='threads')
        return ', '.join(f'{sum(o[k][u] for k in same):,.0f} {name}' for u,name in names.items())
    left = [(int(a), int(b)*60+int(c)) for a,b,c in re.findall(r'(\d+)/2000 \[\S+<(\d+):(\d\d),', text)]
    n,predicted = min(left, key=lambda o: abs(o[0]-500))
    true = took-next(s for m,s,_ in seen if m>=n)
    assert .6*true<predicted<1.6*true, (predicted, true)
    what = f'videos in one extraction; at a tenth of the way {total(early)}, at the end {total(late)}'
    tally('soak', what, f'all done; at a quarter it said {predicted} s to go, and it was {true:.0f} s', 2000)

def test_budgets_that_cannot_be_kept_are_refused_before_anything_is_trained(tmp_path, monkeypatch):
    "Some of them are left out; where gates and audio exceed all of them by little, the end says so."
    from hcms.experiments import conditioned
    from hcms.experiments.datasets import SimulatedDataset
    monkeypatch.setenv('HCMS_HOME', str(tmp_path))
    small = dict(training=24, selection=12, evaluated=12, steps=4)
    data = SimulatedDataset('activitynet', **small)
    trained = lambda: [*(tmp_path/'data').rglob('*.pt')]
    for budgets in ([], [1e-6], [float('nan')], [-1.]):
        with pytest.raises(InputError, match='budget'):
            conditioned.budget_runs(data, budgets, 1, 1, 1)
    with pytest.raises(InputError, match='budget'):
        conditioned.reached_budgets(data, 1, 1, 1, [1e-6])
    with pytest.raises(InputError, match='selection must be above 0'):
        conditioned.budget_runs(SimulatedDataset('activitynet', **small | dict(selection=0)), [100.], 1, 1, 1)
    assert not trained()
    audio = data.steps*data.charged['audio']
    just_above = audio*(1+1e-9)
    for measure in (lambda b: conditioned.budget_runs(data, b, 1, 1, 1),
                    lambda b: conditioned.reached_budgets(data, 1, 1, 1, b)):
        with pytest.raises(InputError, match='budget'):
            measure([just_above])
    assert [o.name for o in trained()]==['state.pt']
    got = conditioned.reached_budgets(data, 1, 1, 1, [200., just_above, 100., 100.])
    assert got.curves.budget.tolist()==[100., 200.] and len(got.changes)==2
