"""A file, a batch, a stream and the shell give the results of evaluation.

None of them ever costs more than its budget."""
import json, os
from pathlib import Path
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from helpers import hcms

def test_files_say_what_stored_features_say(trained, full):
    """Same gates, probabilities within 1e-4, alone, in batches, at every step.

    The long form tests every video of the test split."""
    r,said = trained
    paths = said['paths'].tolist()[:None if full else 7]
    alone = [r.predict(p) for p in paths]
    for many in (alone, list(r.predict_many(paths, batch=5))):
        for i,o in enumerate(many):
            assert o.path==paths[i] and (o.gates==said['gates'][i]).all()
            assert np.abs(o.probabilities-said['p'][i,-1]).max()<1e-4
            assert np.abs(o.step_probabilities-said['p'][i]).max()<1e-4

def test_a_stream_says_what_the_file_says(trained):
    "Audio pushed a thousandth of a second at a time, pictures one by one."
    import av
    from hcms.media.files import probe
    r,said = trained
    path = said['paths'].tolist()[0]
    info = probe(path)
    pieces = []
    with av.open(path) as c:
        for pk in c.demux():
            for o in pk.decode():
                at = o.time-info.start
                if isinstance(o, av.VideoFrame):
                    pieces.append((at, 'see', o))
                    continue
                for n in range(0, o.samples, 16):
                    pieces.append((at+n/o.sample_rate, 'hear', o.to_ndarray()[0,n:n+16]))
    stream = r.stream(duration=info.duration)
    for t,what,x in sorted(pieces, key=lambda o: o[0]):
        getattr(stream, what)(x, t)
    stream.end()
    a = stream.answer()
    b = r.predict(path)
    assert a.steps==32 and a.gflops==b.gflops and np.abs(a.probabilities-b.probabilities).max()<1e-4

@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.floats(1e-6, 100), min_size=3, max_size=3),
       st.permutations(['audio', 'appearance', 'motion']), st.booleans(), st.floats(0, 1.2), st.booleans())
def test_a_budget_is_kept_to_the_last_multiply_accumulate(seed, prices, order, nested, share, each_second):
    "Over random gates, prices, orders and budgets; with a budget for each second at every step."
    from hcms.evaluation.costs import budget_macs, gflops_per_video, within_budget
    from hcms.method.hlstm import HCMS
    from hcms.inference.infer import Conditional, Meter, Walk
    torch.manual_seed(seed)
    net = HCMS(3, order, in_sizes=(4, 5, 6), proj_sizes=(3, 3, 3), hidden_sizes=(2, 3, 4), nested=nested)
    prices = dict(zip(order, prices))
    gates = (torch.rand(1, 6, 2)<torch.rand(2)).float()
    if nested:
        gates[...,1] *= gates[...,0]
    class Features:
        def has(self, k, b): return True
        def __call__(self, k, rows): return torch.zeros(len(rows), 4+k)
    whole = gflops_per_video(gates, prices, net).total[0]
    run = Conditional(net, prices)
    walk = Walk(Meter(run.costs, None if each_second else share*whole))
    state = net.init_state(1)
    for t in range(6):
        if each_second:
            walk.meter.allowance = budget_macs(share*whole*(t+1)/6)
        state = run.step(state, [walk], Features(), gates[:,t])
        if each_second:
            assert walk.meter.total<=budget_macs(share*whole*(t+1)/6)
    if walk.steps:
        walk.meter.read()
    if each_second:
        return
    assert walk.meter.total<=budget_macs(share*whole)
    want = within_budget(gates, share*whole, run.costs)
    assert walk.steps==want.steps[0] and (not walk.steps or walk.meter.total==round(want.gflops[0]*1e9))

def test_the_command(trained, trained_home, tmp_path):
    "A folder with a broken file: a line of JSON each, the reason for the broken one, exit code 1; and plots."
    _,said = trained
    for i,p in enumerate(said['paths'].tolist()[:2]):
        (tmp_path/f'-v{i} ü.mp4').write_bytes(Path(p).read_bytes())
    (tmp_path/'broken.mp4').write_text('<html>404</html>')
    r = hcms('predict', tmp_path, '--json', '--plot', tmp_path/'plots', home=trained_home, check=False)
    lines = [json.loads(o) for o in r.stdout.splitlines()]
    names = [Path(o['path']).name for o in lines]
    assert r.returncode==1 and names==['-v0 ü.mp4', '-v1 ü.mp4', 'broken.mp4'], r.stderr[-2000:]
    assert 'is text' in lines[2]['error'] and 'is text' in r.stderr
    for o,gates in zip(lines[:2], said['gates']):
        assert o['gates']==gates.astype(int).tolist()
    assert sorted(o.name for o in (tmp_path/'plots').glob('*.png'))==['-v0 ü.png', '-v1 ü.png']
    few = hcms('predict', '--budget', 0.01, '--top', 2, '--', tmp_path/'-v0 ü.mp4', home=trained_home)
    assert 'stopped by the budget' in few.stdout and few.stdout.count('%')==2
    none = hcms('predict', tmp_path/'plots', home=trained_home, check=False)
    assert none.returncode==2 and 'holds no video' in none.stderr

# clocks of live sources

def live_steps(**kw):
    from hcms.media.live import LiveSteps, steps_every
    from hcms.media.files import MediaSpec
    spec = MediaSpec(steps=1, frame_size=16, clip_size=16, clip_frames=2, clip_seconds=.2)
    return LiveSteps(spec, steps_every(.5), **kw)

GREY = np.full((16, 16, 3), 90, np.uint8)
QUIET = np.zeros(1600, 'f4')
WHAT = st.sampled_from(['see', 'hear'])

def pushed(live, events):
    "The steps that come of (what, stamp) events, and of the end; each push completes few."
    from hcms.media.files import MAX_PAUSE
    out = []
    for what,t in events:
        if what=='see':
            live.see(GREY, t)
        else:
            live.hear(QUIET, t)
        new = list(live.ready())
        assert len(new)<=(MAX_PAUSE+3)/.5 and len(live.open)<=(MAX_PAUSE+3)/.5
        out += new
    live.end()
    return out+list(live.ready())

STAMPS = st.lists(st.tuples(WHAT, st.integers(0, 256)), min_size=1, max_size=30)   # in 64ths of a second

@settings(max_examples=60, deadline=None)
@given(st.integers(-10**10, 10**10), STAMPS)
def test_a_stream_begins_at_its_first_stamp(zero, events):
    """Pictures or audio first, from any time on: the same steps at the same times.

    Stamps and their differences are exact, so the end of a step is one moment for both."""
    plain = live_steps()
    later = live_steps()
    first = events[0][1]
    a = pushed(plain, [(k, (t-first)/64) for k,t in events])
    b = pushed(later, [(k, zero+(t-first)/64) for k,t in events])
    assert [(o.index, o.time, o.frame is None) for o in a]==[(o.index, o.time, o.frame is None) for o in b]
    assert abs(plain.clock.now-later.clock.now)<1e-3 and plain.late_pictures==later.late_pictures

@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(WHAT, st.floats(allow_nan=False, allow_infinity=False)), min_size=1, max_size=20))
def test_no_number_in_a_stamp_makes_work(events):
    "Any stamps at all: time passes by a minute a push at most, and never backwards."
    from hcms.media.files import MAX_PAUSE
    live = live_steps()
    n = len(pushed(live, events))
    assert n<=len(events)*(MAX_PAUSE+1)/.5+3 and live.clock.now<=len(events)*(MAX_PAUSE+1)
    assert len(live.heard.chunks)<=len(events) and len(live.clock.spans)<=3

@pytest.mark.parametrize('jump', [120, 3600, 1.7e9, -30, -3600, -1.7e9])
@pytest.mark.parametrize('first', ['see', 'hear'])
def test_a_clock_that_is_set_anew_is_followed_by_both(jump, first):
    "Whichever of the two jumps first, they stay side by side: a click is heard when its picture is shown."
    at = [i/10 for i in range(400)]
    live = live_steps()
    steps = []
    for i,t in enumerate(at):
        t += jump*(i>=350)
        picture = GREY+np.uint8(100*(i==370))
        audio = QUIET+np.float32(.9*(i==370))
        for what in (first, 'hear' if first=='see' else 'see'):
            if what=='see':
                live.see(picture, t)
            else:
                live.hear(audio, t)
        steps += live.ready()
    live.end()
    steps += live.ready()
    assert abs(live.clock.now-40)<.2 and not live.late_pictures and not live.late_sounds
    loud = [o.time for o in steps if o.patch.max()>-1]
    assert loud and abs(np.mean(loud)-37.05)<.3 and all(o.frame is not None for o in steps)

def test_stamps_that_are_no_numbers_are_refused():
    from hcms.core import InputError
    live = live_steps()
    for bad in (float('nan'), float('inf'), -float('inf'), None, 'soon', [1.], 1j):
        with pytest.raises(InputError, match='time'):
            live.see(GREY, bad)
        with pytest.raises(InputError, match='time'):
            live.hear(QUIET, bad)
    live.see(GREY, 5.)
    live.see(GREY, 5.1)
    assert (live.late_pictures, round(live.clock.now, 3)) == (0, .1)

# play

class Camera:
    "A stream that notes what arrives."
    def __init__(self):
        self.seen = []
        self.heard = []
    def see(self, o, t):
        self.seen.append(t)
        return 0
    def hear(self, o, t):
        self.heard.append(t)
        return 0
    def end(self): return 0

@pytest.mark.parametrize('name,kw', [
    ('plain.mp4', {}), ('12:30:00.mp4', {}), ('file:x.mp4', {}), ('http:x.mkv', {}), ('-i.mp4', {}),
    ('raw.h264', {}), ('raw.hevc', dict(vcodec='libx265')), ('b.avi', dict(vcodec='mpeg4')), ('x264.avi', {}),
    ('raw.m2v', dict(vcodec='mpeg2video', options={})), ('v.ts', {}),
    ('v.webm', dict(vcodec='libvpx', options={}))])
def test_play_takes_what_the_reader_takes(tmp_path, monkeypatch, name, kw):
    "As many pictures, in order, at the times of the reader's clock; and no error."
    from hcms.inference.infer import play
    from hcms.media.files import MediaSpec, read_steps, write_video
    monkeypatch.chdir(tmp_path)
    kw = dict(options=dict(bf='2')) | kw
    bare = name.startswith('raw') or name.endswith('.webm')
    pictures = np.random.default_rng(0).integers(0, 255, (30, 64, 64, 3), dtype=np.uint8)
    audio = None if bare else np.zeros(19_200, 'f4')
    src = write_video(tmp_path/f'src{Path(name).suffix}', pictures, 25, audio, crf=None, preset=None, **kw)
    src.rename(tmp_path/name)
    info = read_steps(Path(name), MediaSpec(steps=2, frame_size=16)).info
    camera = Camera()
    assert not list(play(Path(name), camera))
    assert len(camera.seen)==info.frames_decoded==30 and camera.seen==sorted(camera.seen)
    assert min(camera.seen+camera.heard)>=-.1 and bool(camera.heard)==info.has_audio
    assert camera.seen[-1]<info.duration<=camera.seen[-1]+.2

def test_play_refuses_what_the_reader_refuses(tmp_path):
    from hcms.core import InputError
    from hcms.inference.infer import play
    (tmp_path/'page.mp4').write_text('<html>404</html>')
    (tmp_path/'list.m3u8').write_text('#EXTM3U\n#EXTINF:3,\nv.ts\n#EXT-X-ENDLIST\n')
    (tmp_path/'empty.mp4').touch()
    for name in ('page.mp4', 'list.m3u8', 'empty.mp4', 'absent.mp4', ''):
        with pytest.raises(InputError):
            list(play(tmp_path/name, Camera()))

@pytest.mark.full
def test_memory_stays_flat_over_an_hour_of_stream(trained):
    import psutil
    r,_ = trained
    rss = lambda: psutil.Process().memory_info().rss/2**20
    rng = np.random.default_rng(0)
    stream = r.stream(every=3.6)
    at = {}
    pictures = rng.integers(0, 255, (16, 96, 128, 3), dtype=np.uint8)
    audio = (rng.standard_normal(16_000)/8).astype('float32')
    for s in range(3600):
        for i in range(8):
            stream.see(pictures[(8*s+i)%16], s+i/8)
        stream.hear(audio, s)
        if s in (600, 3599):
            at[s] = rss()
    assert stream.answer().steps>=990 and at[3599]-at[600]<8, at

def test_an_odd_file_gives_a_result_or_a_reason(trained, tmp_path):
    "Folders of real clips, named by HCMS_REAL_CLIPS: none ends the run."
    if not os.environ.get('HCMS_REAL_CLIPS'):
        pytest.skip('HCMS_REAL_CLIPS names no folder of real clips')
    from hcms.core import InputError
    r,_ = trained
    folders = os.environ['HCMS_REAL_CLIPS'].split(os.pathsep)
    found = [o for d in folders for o in Path(d).rglob('*') if o.is_file()]
    files = sorted(o for o in found if o.suffix not in ('.csv', '.md', '.txt', '.json'))
    for f,o in zip(files, r.predict_many(files, batch=4), strict=True):
        if isinstance(o, InputError):
            assert f.name in str(o)
        else:
            assert np.isfinite(o.probabilities).all()
