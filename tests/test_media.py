"""Odd files of every kind, made here, through one reader.

HCMS_REAL_CLIPS names a folder of real clips to try as well; without it that test is skipped."""
import os
from fractions import Fraction
from pathlib import Path
import av, numpy as np, pytest
from hcms.core import MODALITIES
from hcms.media import (PATCH_SAMPLES, RATE, MediaError, MediaSpec, StepReader, clip_times, iter_steps, log_mel_patches,
                        probe, read_steps, write_video)

SPEC = MediaSpec(steps=6, frame_size=32, clip_size=32, clip_frames=4, clip_seconds=.6)
HALF = PATCH_SAMPLES/2/RATE

def coded(n, size=64):
    "Pictures that carry their number as eight black or white bars."
    bits = (np.arange(n)[:,None]>>np.arange(8)&1).astype(np.uint8)*255
    return np.ascontiguousarray(np.broadcast_to(np.repeat(bits, size//8, axis=1)[:,None,:,None], (n, size, size, 3)))

def number(img):
    return (np.asarray(img, dtype=float).mean((-3, -1)).reshape(*img.shape[:-3], 8, -1).mean(-1)>127)@(1<<np.arange(8))

def click(at, seconds, rate=RATE, channels=1):
    x = np.zeros((int(seconds*rate), channels), dtype=np.float32)
    x[int(at*rate):int(at*rate)+rate//400] = .9
    return x

def heard_at(path, spec=MediaSpec(steps=9)):
    s = read_steps(path, spec, ['audio'])
    t,w = np.unravel_index(s.patches.sum(2).argmax(), s.patches.shape[:2])
    return s.times[t]-HALF+(w*160+200)/RATE

def shown(stamps, t): return np.maximum(0, np.searchsorted(stamps, np.asarray(t)+1e-6, side='right')-1)

def check_pictures(path, stamps, spec=SPEC):
    "The pictures that were picked are those that the rule names; stamps in seconds since the first picture or sound."
    s = read_steps(path, spec)
    if path.suffix=='.ts': stamps = stamps+1024/RATE      # a transport stream keeps the silence with which AAC begins
    assert (number(s.frames)==shown(stamps, s.times)).all()
    assert (number(s.clips)==shown(stamps, clip_times(spec, s.times))).all()
    return s

def check_sane(s, spec=SPEC):
    assert len(s)==spec.steps and s.frames.shape[0]==s.clips.shape[0]==spec.steps and np.isfinite(s.patches).all()
    assert 0<s.info.decoded_share<=1 and s.info.duration>0 and s.info.status in ('ok', 'partial')

# pictures

@pytest.mark.parametrize('vcodec,suffix,kw', [
    ('libx264', '.mp4', {}), ('libx264', '.mkv', {}), ('libx264', '.mov', {}), ('libx264', '.ts', {}),
    ('libx264', '.mp4', dict(pix_fmt='yuv444p')), ('libx264', '.mp4', dict(options=dict(bf='0', g='250'))),
    ('libx265', '.mp4', {}), ('mpeg4', '.avi', dict(crf=None, preset=None, acodec='pcm_s16le')),
    ('libvpx', '.webm', dict(preset=None, acodec='libopus', rate=48_000)), ('libvpx-vp9', '.webm', dict(preset=None, acodec='libopus', rate=48_000)),
    ('libsvtav1', '.mkv', dict(preset=8))])
def test_codecs_and_containers(tmp_path, vcodec, suffix, kw):
    rate = kw.get('rate', RATE)
    p = write_video(tmp_path/f'v{suffix}', coded(40), 20, click(.7, 2, rate), vcodec=vcodec, **kw)
    s = check_pictures(p, np.arange(40)/20)
    assert (s.info.frames_decoded, s.info.status, s.info.has_audio) == (40, 'ok', True)
    assert s.info.duration == pytest.approx(2, abs=.13) and s.info.fps == pytest.approx(20, rel=.03)
    assert heard_at(p) == pytest.approx(.7 if suffix!='.ts' else .7+1024/RATE, abs=.03)

@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('suffix', ['.mp4', '.mkv'])
def test_any_rate_varying(tmp_path, seed, suffix):
    stamps = np.r_[0, np.cumsum(np.random.default_rng(seed).uniform(.02, .4, 50))]
    p = write_video(tmp_path/f'v{suffix}', coded(50), stamps)
    D = probe(p).duration
    assert D == pytest.approx(stamps[-1], abs=.4)      # how long the last picture lasts is not stored
    # times that fall within a millisecond of a stamp depend on how the container rounds it: move away from them
    spec = MediaSpec(steps=23, frame_size=16, clip_size=16, clip_frames=3, clip_seconds=.41)
    t = (np.arange(23)+.5)*D/23
    times = np.r_[t, clip_times(spec, t).ravel()]
    far = np.abs(times[:,None]-stamps[:-1]).min(1)>1.5e-3
    s = read_steps(p, spec, ['appearance', 'motion'])
    got = np.r_[number(s.frames), number(s.clips).ravel()]
    assert far.mean()>.8 and (got==shown(stamps[:-1], times))[far].all()

def test_a_step_may_fall_exactly_on_a_stamp(tmp_path):
    p = write_video(tmp_path/'v.mp4', coded(60), Fraction(30_000, 1001))
    s = read_steps(p, MediaSpec(steps=30, frame_size=16), ['appearance'])     # each centre is the border of two pictures
    assert number(s.frames).tolist() == list(range(1, 60, 2))

def test_late_pictures_and_ts_offset(tmp_path):
    p = write_video(tmp_path/'v.mkv', coded(20), .5+np.arange(21)/10, click(1.2, 3))
    s = check_pictures(p, .5+np.arange(20)/10)
    assert number(s.frames)[0]==0 and s.info.start == pytest.approx(0, abs=.01)
    assert heard_at(p) == pytest.approx(1.2, abs=.02)
    ts = write_video(tmp_path/'v.ts', coded(20), 10, click(1.2, 2))
    assert probe(ts).start>.1 and heard_at(ts) == pytest.approx(1.2+1024/RATE, abs=.03)

def test_no_time_stamps_at_all(tmp_path):
    p = write_video(tmp_path/'v.h264', coded(30), 25)
    s = read_steps(p, SPEC)
    assert s.info.frames_decoded==30 and s.info.duration == pytest.approx(30/25, rel=.05)
    assert (np.diff(number(s.frames))>0).all()

def test_ticks_without_a_picture_are_not_missing(tmp_path):
    "An AVI counts ticks: where its sound begins before its pictures, the first picture lasts longer, and the count is higher."
    i = read_steps(write_video(tmp_path/'v.avi', coded(40), 20, click(.7, 2), vcodec='mpeg4', crf=None, preset=None), SPEC).info
    assert (i.frames_expected, i.frames_decoded, i.status) == (40, 40, 'ok')

def test_stamps_that_start_again(tmp_path):
    parts = [write_video(tmp_path/f'{r}.ts', coded(30), 15, click(.5, 2, r, c), rate=r).read_bytes() for r,c in ((44_100, 2), (48_000, 1))]
    (tmp_path/'v.ts').write_bytes(b''.join(parts))       # rate and channels change in mid-file as well
    s = read_steps(tmp_path/'v.ts', SPEC)
    check_sane(s)
    assert s.info.frames_decoded==60 and s.audio_mask.all()

def test_size_changes_midway(tmp_path):
    (tmp_path/'v.ts').write_bytes(b''.join(write_video(tmp_path/f'{n}.ts', coded(20, n), 10).read_bytes() for n in (64, 128)))
    check_sane(read_steps(tmp_path/'v.ts', SPEC))

@pytest.mark.parametrize('n', [1, 2, 5])
def test_very_short(tmp_path, n):
    for suffix in ('.mp4', '.mkv', '.avi'):
        s = read_steps(write_video(tmp_path/f'v{suffix}', coded(n), 16, vcodec='mpeg4', crf=None, preset=None), SPEC)
        check_sane(s)
        assert set(number(s.frames))<=set(range(n)) and number(s.frames)[-1]==n-1

def test_hidden_start_is_not_missing(tmp_path):
    "An edit list hides the first pictures: they are neither shown nor counted as lost."
    src = write_video(tmp_path/'src.mp4', coded(40), 20, options=dict(g='10'))
    with av.open(str(src)) as i, av.open(str(tmp_path/'v.mp4'), 'w', options=dict(avoid_negative_ts='disabled')) as o:
        v = o.add_stream_from_template(i.streams.video[0])
        for pk in i.demux(video=0):
            if not pk.size: continue
            shift = round(.7/pk.time_base)
            pk.pts -= shift; pk.dts -= shift; pk.stream = v
            o.mux(pk)
    s = read_steps(tmp_path/'v.mp4', SPEC)
    assert (number(s.clips)==14+shown(np.arange(26)/20, clip_times(SPEC, s.times))).all()
    assert s.info.status=='ok' and s.info.duration == pytest.approx(1.3, abs=.01)

@pytest.mark.parametrize('k', range(4))
@pytest.mark.parametrize('hflip', [False, True])
def test_the_eight_ways_to_hold_a_phone(tmp_path, k, hflip):
    img = np.zeros((48, 64, 3), dtype=np.uint8); img[:16,:16,0] = 255; img[32:,:16,1] = 255; img[:16,48:,2] = 255
    with av.open(str(tmp_path/'v.mp4'), 'w') as o:
        v = o.add_stream('libx264', rate=10, options=dict(crf='4'))
        v.width,v.height,v.pix_fmt = 64,48,'yuv444p'
        v.set_display_rotation(90*k, hflip=hflip)
        for i in range(3): o.mux(v.encode(av.VideoFrame.from_ndarray(img)))
        o.mux(v.encode(None))
    got = read_steps(tmp_path/'v.mp4', MediaSpec(steps=1, frame_size=48), ['appearance']).frames[0]
    want = np.rot90(img, k)
    if hflip: want = want[:,::-1]
    y,x = (want.shape[0]-48)//2,(want.shape[1]-48)//2
    assert np.abs(got.astype(int)-want[y:y+48, x:x+48]).mean()<4

def test_sizes(tmp_path):
    for h,w in ((16, 128), (128, 16), (18, 34)):
        s = read_steps(write_video(tmp_path/'v.mp4', np.full((4, h, w, 3), 200, np.uint8)), SPEC)
        assert s.frames.shape==(6, 32, 32, 3) and abs(s.frames.mean()-200)<4

# sound

@pytest.mark.parametrize('rate,channels', [(8_000, 1), (16_000, 2), (22_050, 1), (44_100, 2), (48_000, 6)])
def test_rates_and_channels(tmp_path, rate, channels):
    for suffix,codec in (('.mp4', 'aac'), ('.mkv', 'pcm_s16le'), ('.mov', 'pcm_s16be'), ('.avi', 'pcm_s16le')):
        p = write_video(tmp_path/f'v{suffix}', coded(30), 10, click(1.9, 3, rate, channels), rate=rate, acodec=codec)
        assert heard_at(p) == pytest.approx(1.9, abs=.02)
        i = read_steps(p, SPEC, ['audio']).info
        assert i.audio_seconds == pytest.approx(3, abs=.1) and i.packet_errors==0

def test_loudness_does_not_depend_on_channels(tmp_path):
    x = np.random.default_rng(0).standard_normal((2*RATE, 1)).astype(np.float32)*.05
    one = log_mel_patches(x[RATE-PATCH_SAMPLES//2:RATE+PATCH_SAMPLES//2,0])[0]
    for c in (1, 2, 6):
        p = write_video(tmp_path/'v.mkv', coded(20), 10, np.repeat(x, c, 1), acodec='pcm_f32le')
        got = read_steps(p, MediaSpec(steps=1), ['audio']).patches[0]
        assert np.abs(got-one).max()<1e-3

def test_sound_shorter_and_longer_than_the_pictures(tmp_path):
    short = read_steps(write_video(tmp_path/'a.mp4', coded(60), 20, click(.2, .9)), SPEC)
    assert (short.audio_mask==(short.times-HALF<.9+.1)).all() and (number(short.frames)==shown(np.arange(60)/20, short.times)).all()
    long = read_steps(write_video(tmp_path/'b.mp4', coded(20), 20, click(2.5, 3)), SPEC)
    assert long.info.duration == pytest.approx(3, abs=.1) and number(long.frames)[-1]==19 and long.audio_mask.all()

def test_gap_in_the_sound(tmp_path):
    x = click(.1, 1)
    with av.open(str(tmp_path/'v.mkv'), 'w') as o:
        v,a = o.add_stream('libx264', rate=10),o.add_stream('pcm_s16le', rate=RATE, layout='mono')
        v.width = v.height = 64; v.pix_fmt = 'yuv420p'
        for i,img in enumerate(coded(50)):
            if i in (0, 30):
                f = av.AudioFrame.from_ndarray((x.T*32767).astype(np.int16), format='s16', layout='mono')
                f.rate,f.pts,f.time_base = RATE,i*RATE//10,Fraction(1, RATE)
                for pk in a.encode(f): o.mux(pk)
            o.mux(v.encode(av.VideoFrame.from_ndarray(img)))
        o.mux(v.encode(None))
    s = read_steps(tmp_path/'v.mkv', MediaSpec(steps=10), ['audio'])
    loud = s.patches.max((1, 2))>-2
    holds = lambda t: np.abs(s.times-t)<HALF
    assert (loud==(holds(.1)|holds(3.1))).all()
    assert (s.audio_mask==((s.times-HALF<1)|((s.times+HALF>3)&(s.times-HALF<4)))).all()

def test_silence_is_not_absence(tmp_path):
    none = read_steps(write_video(tmp_path/'a.mp4', coded(20)), SPEC)
    mute = read_steps(write_video(tmp_path/'b.mp4', coded(20), 16, np.zeros(20_000)), SPEC)
    assert not none.info.has_audio and not none.audio_mask.any() and none.info.audio_seconds==0
    assert mute.info.has_audio and mute.audio_mask.all() and np.allclose(none.patches, mute.patches, atol=.01)

# broken files

@pytest.fixture(scope='module')
def good(tmp_path_factory):
    d,noise = tmp_path_factory.mktemp('good'),np.random.default_rng(0)
    img = noise.integers(0, 255, (60, 64, 64, 3)).astype(np.uint8)
    x = (noise.standard_normal((int(3*RATE), 2))*.1).astype(np.float32)
    return {s:write_video(d/f'v{s}', img, 20, x, vcodec=c, crf=None, preset=None).read_bytes() for s,c in (('.mp4', 'libx264'), ('.mkv', 'libx264'), ('.ts', 'libx264'), ('.avi', 'mpeg4'))}

@pytest.mark.parametrize('suffix', ['.mp4', '.mkv', '.ts', '.avi'])
def test_cut_short(tmp_path, good, suffix):
    for share in (.4, .7):
        p = tmp_path/f'v{suffix}'; p.write_bytes(good[suffix][:int(share*len(good[suffix]))])
        s = read_steps(p, SPEC)
        check_sane(s)
        assert s.info.duration == pytest.approx(3*share, abs=.4)
        if suffix!='.ts':       # a transport stream has no header that tells what there should have been
            assert s.info.status=='partial' and s.info.decoded_share == pytest.approx(share, abs=.12) and s.info.frames_expected == pytest.approx(60, abs=3)

@pytest.mark.parametrize('suffix', ['.mp4', '.mkv', '.ts', '.avi'])
def test_rot_is_survived_and_counted(tmp_path, good, suffix):
    hurt = 0
    for seed in range(6):
        b,rng = bytearray(good[suffix]),np.random.default_rng(seed)
        for i in rng.integers(6000, len(b)-3000, 100): b[i] ^= 1<<rng.integers(8)
        p = tmp_path/f'v{suffix}'; p.write_bytes(b)
        try: s = read_steps(p, SPEC)
        except MediaError: continue
        assert len(s)==6 and np.isfinite(s.patches).all() and s.frames.dtype==np.uint8
        hurt += s.info.packet_errors + (s.info.status=='partial')
    assert hurt

def test_rot_in_the_head_is_never_a_crash(tmp_path, good):
    for suffix,data in good.items():
        for seed in range(12):
            b,rng = bytearray(data[:40_000]),np.random.default_rng(seed)
            for i in rng.integers(0, 5000, 25): b[i] = rng.integers(256)
            p = tmp_path/f'v{suffix}'; p.write_bytes(b)
            try: s = read_steps(p, MediaSpec(steps=3, frame_size=16, clip_size=16, clip_frames=2, clip_seconds=.2))
            except MediaError as e: assert str(p) in str(e)
            else: assert len(s)==3 and np.isfinite(s.patches).all()

def test_what_is_no_video(tmp_path, good):
    d = tmp_path
    with av.open(str(d/'sound.m4a'), 'w') as o:
        a = o.add_stream('aac', rate=RATE, layout='mono')
        f = av.AudioFrame.from_ndarray(click(.1, 1).T, format='fltp', layout='mono'); f.rate = RATE
        o.mux(a.encode(f)); o.mux(a.encode(None))
    os.rename(d/'sound.m4a', d/'sound.mp4')
    i = good['.mp4'].rindex(b'mdat')
    files = {'page.mp4':b'<html>\n<body>Not found</body></html>', 'text.mp4':'Überall Text\n'.encode()*50, 'zero.mp4':b'', 'nulls.mp4':bytes(5000),
             'random.mp4':np.random.default_rng(0).bytes(5000), 'list.m3u8':b'#EXTM3U\n#EXTINF:3,\nv.ts\n#EXT-X-ENDLIST\n',
             'list.ffconcat':b"ffconcat version 1.0\nfile 'v.ts'\n", 'noindex.mp4':good['.mp4'][i-4:], 'head.mp4':good['.mp4'][:i+4], 'screen.txt':b'hello\n'*200}
    for k,v in files.items(): (d/k).write_bytes(v)
    (d/'v.ts').write_bytes(good['.ts'])
    (d/'folder.mp4').mkdir()
    os.mkfifo(d/'pipe.mp4')
    for k in [*files, 'sound.mp4', 'folder.mp4', 'absent.mp4', 'pipe.mp4']:
        with pytest.raises(MediaError, match=k.replace('.', r'\.')): read_steps(d/k, SPEC)
    for k in ('page.mp4', 'text.mp4'):
        with pytest.raises(MediaError, match='is text'): probe(d/k)
    with pytest.raises(MediaError, match='no video stream'): probe(d/'sound.mp4')

def test_odd_names(tmp_path, good, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('-rf.mp4', 'a:b.mp4', 'http:x.mp4', 'ä ö%d.mp4', "it's.mp4"):
        Path(name).write_bytes(good['.mp4'])
        assert probe(name).frames_expected==60

# the reader as a whole

def test_steps_come_early_and_little_is_kept(tmp_path):
    p = write_video(tmp_path/'v.mp4', coded(250, 32), 25, click(5, 10))
    reader = StepReader(p, MediaSpec(steps=40, frame_size=16, clip_size=16, clip_frames=8, clip_seconds=.5))
    kept,seen = [],[]
    for s in reader:
        kept.append(reader._decoders.pictures.held); seen.append(reader._decoders.pictures.n)
    assert max(kept)<30 and seen[0]<60 and seen[20]<200
    assert reader.info.frames_decoded==250

@pytest.mark.skipif(not Path('/proc/self/statm').is_file(), reason='reads memory in use from /proc')
def test_decoded_pictures_are_let_go_at_once(tmp_path):
    "Not when Python's garbage collector happens to run: 150 pictures of 1.4 MB would be 200 MB."
    import gc
    p = write_video(tmp_path/'v.mp4', np.broadcast_to(np.uint8(90), (150, 720, 1280, 3)), 25, preset='ultrafast')
    used = lambda: int(Path('/proc/self/statm').read_text().split()[1])*os.sysconf('SC_PAGE_SIZE')/2**20
    read_steps(p, SPEC, ['appearance'])
    gc.collect(); gc.disable()
    try:
        before = used()
        for _ in StepReader(p, MediaSpec(steps=150, frame_size=32), ['appearance']): pass
        assert used()-before<70
    finally: gc.enable()

def test_sound_that_ends_early_keeps_nothing_waiting(tmp_path):
    p = write_video(tmp_path/'v.mp4', coded(250, 32), 25, click(.5, 1))
    reader = StepReader(p, MediaSpec(steps=40, frame_size=16, clip_size=16, clip_frames=8, clip_seconds=.5))
    assert max(reader._decoders.pictures.held for _ in reader)<30

def test_a_reader_can_be_used_twice_and_left_early(tmp_path):
    reader = StepReader(write_video(tmp_path/'v.mp4', coded(40), 20, click(1, 2)), SPEC)
    next(iter(reader))
    a,b = list(reader),list(reader)
    assert all((x.clip==y.clip).all() and (x.patch==y.patch).all() for x,y in zip(a, b)) and len(a)==len(b)==6

@pytest.mark.parametrize('wanted', [(o,) for o in MODALITIES]+[MODALITIES[1:], ()])
def test_only_what_is_asked_for(tmp_path, wanted):
    p = write_video(tmp_path/'v.mp4', coded(40), 20, click(1, 2))
    full = list(iter_steps(p, SPEC))
    for s,f in zip(iter_steps(p, SPEC, wanted), full, strict=True):
        for m,k in dict(audio='patch', appearance='frame', motion='clip').items():
            assert getattr(s, k) is None if m not in wanted else (getattr(s, k)==getattr(f, k)).all()
    with pytest.raises(ValueError, match='appearance'): read_steps(p, SPEC, ['apearance'])

@pytest.mark.skipif(not Path('/proc/self/fd').is_dir(), reason='counts open files in /proc')
def test_nothing_stays_open_and_nothing_is_printed(tmp_path, good, capfd):
    b = bytearray(good['.mp4']); b[len(b)//2:len(b)//2+2000] = bytes(2000)
    (tmp_path/'v.mp4').write_bytes(b); (tmp_path/'bad.mp4').write_bytes(b'\0'*999)
    n = None
    for i in range(12):
        read_steps(tmp_path/'v.mp4', SPEC); next(iter_steps(tmp_path/'v.mp4', SPEC))
        with pytest.raises(MediaError): probe(tmp_path/'bad.mp4')
        if i==1: n = len(os.listdir('/proc/self/fd')),len(os.listdir('/proc/self/task'))
    assert (len(os.listdir('/proc/self/fd')),len(os.listdir('/proc/self/task')))==n
    assert capfd.readouterr()==('', '')

def test_writing_is_repeatable(tmp_path):
    x = click(.5, 2, 44_100, 2)
    for suffix,kw in (('.mp4', {}), ('.mkv', {}), ('.mp4', dict(rotation=90, sound_start=.3))):
        a,b = (write_video(tmp_path/f'{n}{suffix}', coded(30), 15, x, rate=44_100, **kw).read_bytes() for n in 'ab')
        assert a==b

@pytest.mark.skipif(not os.environ.get('HCMS_REAL_CLIPS'), reason='HCMS_REAL_CLIPS names no folder of real clips')
def test_real_clips():
    files = [p for p in sorted(Path(os.environ['HCMS_REAL_CLIPS']).iterdir()) if p.suffix in ('.mp4', '.mkv', '.webm', '.avi', '.mov', '.ts')]
    assert files
    for p in files:
        if not p.stat().st_size:
            with pytest.raises(MediaError, match=p.name): probe(p)
            continue
        s = read_steps(p, MediaSpec(steps=8, frame_size=48, clip_size=48, clip_frames=4))
        check_sane(s, MediaSpec(steps=8))
        assert s.info.decoded_share>.9 and s.audio_mask.all()==s.info.has_audio, p.name
        assert s.frames.std()>1, p.name
