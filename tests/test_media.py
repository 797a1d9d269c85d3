"""Odd files of every kind, made here, through one reader.

HCMS_REAL_CLIPS names a folder of real clips to try as well; without it that test is skipped."""
import os
from fractions import Fraction
from functools import partial
from pathlib import Path
import av, numpy as np, pytest
from hypothesis import given, settings, strategies as st
from hcms.core import MODALITIES, InputError
from hcms.media.live import LiveSteps, steps_every
from hcms.media.files import (MAX_PAUSE, PATCH_SAMPLES, RATE, MediaError, MediaSpec, StepReader,
    audio_samples, clip_times, decoded, log_mel_patches, probe, read_steps, write_video)

SPEC = MediaSpec(steps=6, frame_size=32, clip_size=32, clip_frames=4, clip_seconds=.6)
HALF = PATCH_SAMPLES/2/RATE

def coded(n, size=64):
    "Pictures that carry their number as eight black or white bars."
    bits = (np.arange(n)[:,None]>>np.arange(8)&1).astype(np.uint8)*255
    bars = np.repeat(bits, size//8, axis=1)[:,None,:,None]
    return np.ascontiguousarray(np.broadcast_to(bars, (n, size, size, 3)))

def number(img):
    bars = np.asarray(img, dtype=float).mean((-3, -1)).reshape(*img.shape[:-3], 8, -1).mean(-1)
    return (bars>127)@(1<<np.arange(8))

def click(at, seconds, rate=RATE, channels=1):
    x = np.zeros((int(seconds*rate), channels), dtype=np.float32)
    x[int(at*rate):int(at*rate)+rate//400] = .9
    return x

def heard_at(path, spec=MediaSpec(steps=9)):
    s = read_steps(path, spec, ['audio'])
    t,w = np.unravel_index(s.patches.sum(2).argmax(), s.patches.shape[:2])
    return s.times[t]-HALF+(w*160+200)/RATE

def shown(stamps, t): return np.maximum(0, np.searchsorted(stamps, np.asarray(t)+1e-6, side='right')-1)

def check_pictures(path, stamps, spec=SPEC, read=read_steps):
    """The pictures that were picked are those that the rule names.

    Stamps are in seconds since the first picture or audio."""
    s = read(path, spec)
    if path.suffix=='.ts':
        stamps = stamps+1024/RATE      # a transport stream keeps the silence with which AAC begins
    assert (number(s.frames)==shown(stamps, s.times)).all()
    assert (number(s.clips)==shown(stamps, clip_times(spec, s.times, stamps))).all()
    return s

def check_sane(s, spec=SPEC):
    assert len(s)==len(s.frames)==len(s.clips)==spec.steps
    assert np.isfinite(s.patches).all()
    assert 0<s.info.decoded_share<=1 and s.info.duration>0 and s.info.status in ('ok', 'partial')

# pictures

@pytest.mark.parametrize('vcodec,suffix,kw', [
    ('libx264', '.mp4', {}), ('libx264', '.mkv', {}), ('libx264', '.mov', {}), ('libx264', '.ts', {}),
    ('libx264', '.mp4', dict(pix_fmt='yuv444p')), ('libx264', '.mp4', dict(options=dict(bf='0', g='250'))),
    ('libx265', '.mp4', {}), ('mpeg4', '.avi', dict(crf=None, preset=None, acodec='pcm_s16le')),
    ('libvpx', '.webm', dict(preset=None, acodec='libopus', rate=48_000)),
    ('libvpx-vp9', '.webm', dict(preset=None, acodec='libopus', rate=48_000)),
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
def test_any_rate_varying(tmp_path, ends, seed, suffix):
    stamps = np.r_[0, np.cumsum(np.random.default_rng(seed).uniform(.02, .4, 50))]
    p = write_video(tmp_path/f'v{suffix}', coded(50), stamps)
    D = probe(p).duration
    assert D == pytest.approx(stamps[-1], abs=.4)      # how long the last picture lasts is not stored
    # times within a millisecond of a stamp depend on how the container rounds it: they are left out
    spec = MediaSpec(steps=23, frame_size=16, clip_size=16, clip_frames=3, clip_seconds=.41)
    t = (np.arange(23)+.5)*D/23
    # mkv rounds to milliseconds, which may move a picture across the border of a clip
    stored = StepReader(p, spec)._shown
    assert np.abs(stored-stamps[:-1]).max()<1e-3
    times = np.r_[t, clip_times(spec, t, stored).ravel()]
    far = np.abs(times[:,None]-stamps[:-1]).min(1)>1.5e-3
    s = ends('rate varies', p, spec, ['appearance', 'motion'])
    got = np.r_[number(s.frames), number(s.clips).ravel()]
    assert far.mean()>.8 and (got==shown(stamps[:-1], times))[far].all()

def test_a_step_may_fall_exactly_on_a_stamp(tmp_path):
    p = write_video(tmp_path/'v.mp4', coded(60), Fraction(30_000, 1001))
    # each centre is the border of two pictures
    s = read_steps(p, MediaSpec(steps=30, frame_size=16), ['appearance'])
    assert number(s.frames).tolist() == list(range(1, 60, 2))

def test_late_pictures_and_ts_offset(tmp_path, ends):
    p = write_video(tmp_path/'v.mkv', coded(20), .5+np.arange(21)/10, click(1.2, 3))
    s = check_pictures(p, .5+np.arange(20)/10, read=partial(ends, 'sound begins before the pictures'))
    assert number(s.frames)[0]==0 and s.info.start == pytest.approx(0, abs=.01)
    assert heard_at(p) == pytest.approx(1.2, abs=.02)
    ts = write_video(tmp_path/'v.ts', coded(20), 10, click(1.2, 2))
    assert probe(ts).start>.1 and heard_at(ts) == pytest.approx(1.2+1024/RATE, abs=.03)

def test_no_time_stamps_at_all(tmp_path, ends):
    p = write_video(tmp_path/'v.h264', coded(30), 25)
    s = ends('no time stamps', p, SPEC)
    assert s.info.frames_decoded==30 and s.info.duration == pytest.approx(30/25, rel=.05)
    assert (np.diff(number(s.frames))>0).all()

def test_ticks_without_a_picture_are_not_missing(tmp_path):
    """An AVI counts ticks.

    Where its audio begins before its pictures, the first picture lasts longer, and the count is higher."""
    kw = dict(vcodec='mpeg4', crf=None, preset=None)
    i = read_steps(write_video(tmp_path/'v.avi', coded(40), 20, click(.7, 2), **kw), SPEC).info
    assert (i.frames_expected, i.frames_decoded, i.status) == (40, 40, 'ok')

def test_stamps_that_start_again(tmp_path, ends):
    parts = []
    for rate,channels in ((44_100, 2), (48_000, 1)):     # rate and channels change in mid-file as well
        p = write_video(tmp_path/f'{rate}.ts', coded(30), 15, click(.5, 2, rate, channels), rate=rate)
        parts.append(p.read_bytes())
    (tmp_path/'v.ts').write_bytes(b''.join(parts))
    s = ends('time stamps go back to zero, sound changes its rate', tmp_path/'v.ts', SPEC)
    check_sane(s)
    assert s.info.frames_decoded==60 and s.audio_mask.all()

def test_size_changes_midway(tmp_path, ends):
    parts = [write_video(tmp_path/f'{n}.ts', coded(20, n), 10).read_bytes() for n in (64, 128)]
    (tmp_path/'v.ts').write_bytes(b''.join(parts))
    check_sane(ends('size changes midway', tmp_path/'v.ts', SPEC))

@pytest.mark.parametrize('n', [1, 2, 5])
def test_very_short(tmp_path, ends, n):
    for suffix in ('.mp4', '.mkv', '.avi'):
        p = write_video(tmp_path/f'v{suffix}', coded(n), 16, vcodec='mpeg4', crf=None, preset=None)
        s = ends(f'{n} picture{"s"[:n>1]}, {n/16:.1f} s', p, SPEC)
        check_sane(s)
        assert set(number(s.frames))<=set(range(n)) and number(s.frames)[-1]==n-1

def test_hidden_start_is_not_missing(tmp_path):
    "An edit list hides the first pictures: they are neither shown nor counted as lost."
    src = write_video(tmp_path/'src.mp4', coded(40), 20, options=dict(g='10'))
    options = dict(avoid_negative_ts='disabled')
    with av.open(str(src)) as i, av.open(str(tmp_path/'v.mp4'), 'w', options=options) as o:
        v = o.add_stream_from_template(i.streams.video[0])
        for pk in i.demux(video=0):
            if not pk.size:
                continue
            shift = round(.7/pk.time_base)
            pk.pts -= shift
            pk.dts -= shift
            pk.stream = v
            o.mux(pk)
    s = read_steps(tmp_path/'v.mp4', SPEC)
    assert (number(s.clips)==14+shown(np.arange(26)/20, clip_times(SPEC, s.times, np.arange(26)/20))).all()
    assert s.info.status=='ok' and s.info.duration == pytest.approx(1.3, abs=.01)

@pytest.mark.parametrize('k', range(4))
@pytest.mark.parametrize('hflip', [False, True])
def test_the_eight_ways_to_hold_a_phone(tmp_path, ends, k, hflip):
    img = np.zeros((48, 64, 3), dtype=np.uint8)
    img[:16,:16,0] = 255
    img[32:,:16,1] = 255
    img[:16,48:,2] = 255
    with av.open(str(tmp_path/'v.mp4'), 'w') as o:
        v = o.add_stream('libx264', rate=10, options=dict(crf='4'))
        v.width = 64
        v.height = 48
        v.pix_fmt = 'yuv444p'
        v.set_display_rotation(90*k, hflip=hflip)
        for i in range(3):
            o.mux(v.encode(av.VideoFrame.from_ndarray(img)))
        o.mux(v.encode(None))
    one = MediaSpec(steps=1, frame_size=48)
    got = ends('rotated or mirrored', tmp_path/'v.mp4', one, ['appearance']).frames[0]
    want = np.rot90(img, k)
    if hflip:
        want = want[:,::-1]
    y = (want.shape[0]-48)//2
    x = (want.shape[1]-48)//2
    assert np.abs(got.astype(int)-want[y:y+48, x:x+48]).mean()<4

def test_sizes(tmp_path):
    for h,w in ((16, 128), (128, 16), (18, 34)):
        s = read_steps(write_video(tmp_path/'v.mp4', np.full((4, h, w, 3), 200, np.uint8)), SPEC)
        assert s.frames.shape==(6, 32, 32, 3) and abs(s.frames.mean()-200)<4

# audio

@pytest.mark.parametrize('rate,channels', [(8_000, 1), (16_000, 2), (22_050, 1), (44_100, 2), (48_000, 6)])
def test_rates_and_channels(tmp_path, ends, rate, channels):
    wave = click(1.9, 3, rate, channels)
    codecs = {'.mp4': 'aac', '.mkv': 'pcm_s16le', '.mov': 'pcm_s16be', '.avi': 'pcm_s16le'}
    for suffix,codec in codecs.items():
        p = write_video(tmp_path/f'v{suffix}', coded(30), 10, wave, rate=rate, acodec=codec)
        assert heard_at(p) == pytest.approx(1.9, abs=.02)
        i = ends('audio of 8 to 48 kHz, 1, 2 or 5.1 channels', p, SPEC, ['audio']).info
        assert i.audio_seconds == pytest.approx(3, abs=.1) and i.packet_errors==0

def test_loudness_does_not_depend_on_channels(tmp_path):
    x = np.random.default_rng(0).standard_normal((2*RATE, 1)).astype(np.float32)*.05
    one = log_mel_patches(x[RATE-PATCH_SAMPLES//2:RATE+PATCH_SAMPLES//2,0])[0]
    for c in (1, 2, 6):
        p = write_video(tmp_path/'v.mkv', coded(20), 10, np.repeat(x, c, 1), acodec='pcm_f32le')
        got = read_steps(p, MediaSpec(steps=1), ['audio']).patches[0]
        assert np.abs(got-one).max()<1e-3

def test_sound_shorter_and_longer_than_the_pictures(tmp_path, ends):
    short = ends('sound ends early', write_video(tmp_path/'a.mp4', coded(60), 20, click(.2, .9)), SPEC)
    assert (short.audio_mask==(short.times-HALF<.9+.1)).all()
    assert (number(short.frames)==shown(np.arange(60)/20, short.times)).all()
    long = ends('sound ends late', write_video(tmp_path/'b.mp4', coded(20), 20, click(2.5, 3)), SPEC)
    assert long.info.duration == pytest.approx(3, abs=.1)
    assert number(long.frames)[-1]==19 and long.audio_mask.all()

def test_gap_in_the_sound(tmp_path, ends):
    x = click(.1, 1)
    with av.open(str(tmp_path/'v.mkv'), 'w') as o:
        v = o.add_stream('libx264', rate=10)
        a = o.add_stream('pcm_s16le', rate=RATE, layout='mono')
        v.width = v.height = 64
        v.pix_fmt = 'yuv420p'
        for i,img in enumerate(coded(50)):
            if i in (0, 30):
                f = av.AudioFrame.from_ndarray((x.T*32767).astype(np.int16), format='s16', layout='mono')
                f.rate = RATE
                f.pts = i*RATE//10
                f.time_base = Fraction(1, RATE)
                for pk in a.encode(f):
                    o.mux(pk)
            o.mux(v.encode(av.VideoFrame.from_ndarray(img)))
        o.mux(v.encode(None))
    s = ends('a gap in the audio', tmp_path/'v.mkv', MediaSpec(steps=10), ['audio'])
    loud = s.patches.max((1, 2))>-2
    holds = lambda t: np.abs(s.times-t)<HALF
    assert (loud==(holds(.1)|holds(3.1))).all()
    assert (s.audio_mask==((s.times-HALF<1)|((s.times+HALF>3)&(s.times-HALF<4)))).all()

def test_silence_is_not_absence(tmp_path, ends):
    none = ends('no audio', write_video(tmp_path/'a.mp4', coded(20)), SPEC)
    mute = ends('silence', write_video(tmp_path/'b.mp4', coded(20), 16, np.zeros(20_000)), SPEC)
    assert not none.info.has_audio and not none.audio_mask.any() and none.info.audio_seconds==0
    assert mute.info.has_audio and mute.audio_mask.all() and np.allclose(none.patches, mute.patches, atol=.01)

# broken files

@pytest.fixture(scope='module')
def good(tmp_path_factory):
    d = tmp_path_factory.mktemp('good')
    noise = np.random.default_rng(0)
    img = noise.integers(0, 255, (60, 64, 64, 3)).astype(np.uint8)
    x = (noise.standard_normal((int(3*RATE), 2))*.1).astype(np.float32)
    files = {}
    for suffix,codec in {'.mp4': 'libx264', '.mkv': 'libx264', '.ts': 'libx264', '.avi': 'mpeg4'}.items():
        p = write_video(d/f'v{suffix}', img, 20, x, vcodec=codec, crf=None, preset=None)
        files[suffix] = p.read_bytes()
    return files

@pytest.mark.parametrize('suffix', ['.mp4', '.mkv', '.ts', '.avi'])
def test_cut_short_at_every_tenth(tmp_path, good, ends, suffix):
    for tenth in range(1, 10):
        p = tmp_path/f'v{suffix}'
        share = tenth/10
        p.write_bytes(good[suffix][:int(share*len(good[suffix]))])
        s = ends(f'cut short at a tenth to nine tenths, {suffix}', p, SPEC)
        if isinstance(s, MediaError):   # nothing but its head is there
            assert tenth<4
            continue
        check_sane(s)
        assert s.info.duration == pytest.approx(3*share, abs=.4)
        if suffix!='.ts':       # a transport stream has no header that tells what there should have been
            assert s.info.status=='partial'
            assert s.info.decoded_share == pytest.approx(share, abs=.15)
            assert s.info.frames_expected == pytest.approx(60, abs=3)

@pytest.mark.parametrize('suffix', ['.mp4', '.mkv', '.ts', '.avi'])
def test_rot_is_survived_and_counted(tmp_path, good, ends, full, suffix):
    hurt = 0
    for seed in range(100 if full else 6):
        b = bytearray(good[suffix])
        rng = np.random.default_rng(seed)
        for i in rng.integers(6000, len(b)-3000, 100):
            b[i] ^= 1<<rng.integers(8)
        p = tmp_path/f'v{suffix}'
        p.write_bytes(b)
        s = ends('a hundred bits flipped', p, SPEC)
        if not isinstance(s, MediaError):
            hurt += s.info.packet_errors + (s.info.status=='partial')
    assert hurt

def test_rot_in_the_head_is_never_a_crash(tmp_path, good, ends, full):
    spec = MediaSpec(steps=3, frame_size=16, clip_size=16, clip_frames=2, clip_seconds=.2)
    for suffix,data in good.items():
        for seed in range(200 if full else 12):
            b = bytearray(data[:40_000])
            rng = np.random.default_rng(seed)
            for i in rng.integers(0, 5000, 25):
                b[i] = rng.integers(256)
            p = tmp_path/f'v{suffix}'
            p.write_bytes(b)
            ends('25 bytes of the head are random', p, spec)

def not_videos(mp4) -> dict:   # name -> bytes
    "Files that are no video, some of them parts of a good one."
    i = mp4.rindex(b'mdat')
    return {
        'page.mp4': b'<html>\n<body>Not found</body></html>',
        'text.mp4': 'Überall Text\n'.encode()*50,
        'zero.mp4': b'',
        'nulls.mp4': bytes(5000),
        'random.mp4': np.random.default_rng(0).bytes(5000),
        'list.m3u8': b'#EXTM3U\n#EXTINF:3,\nv.ts\n#EXT-X-ENDLIST\n',
        'list.ffconcat': b"ffconcat version 1.0\nfile 'v.ts'\n",
        'noindex.mp4': mp4[i-4:],
        'head.mp4': mp4[:i+4],
        'screen.txt': b'hello\n'*200}

def test_what_is_no_video(tmp_path, good, ends):
    d = tmp_path
    with av.open(str(d/'sound.m4a'), 'w') as o:
        a = o.add_stream('aac', rate=RATE, layout='mono')
        f = av.AudioFrame.from_ndarray(click(.1, 1).T, format='fltp', layout='mono')
        f.rate = RATE
        o.mux(a.encode(f))
        o.mux(a.encode(None))
    os.rename(d/'sound.m4a', d/'sound.mp4')
    files = not_videos(good['.mp4'])
    for k,v in files.items():
        (d/k).write_bytes(v)
    (d/'v.ts').write_bytes(good['.ts'])
    (d/'folder.mp4').mkdir()
    os.mkfifo(d/'pipe.mp4')
    for k in [*files, 'sound.mp4', 'folder.mp4', 'absent.mp4', 'pipe.mp4']:
        assert isinstance(ends(f'no video: {k}', d/k, SPEC), MediaError)
    for k in ('page.mp4', 'text.mp4'):
        with pytest.raises(MediaError, match='is text'):
            probe(d/k)
    with pytest.raises(MediaError, match='no video stream'):
        probe(d/'sound.mp4')

ODD_NAMES = ('-rf.mp4', 'a:b.mp4', 'http:x.mp4', 'ä ö%d.mp4', "it's.mp4", 'a"b.mp4', 'two\nlines.mp4',
             os.fsdecode(b'\xff\xfe.mp4'), '文.mp4', 'no suffix', 'v.mkv', 'v.txt', 'v.avi')

def test_odd_names(tmp_path, good, ends, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ODD_NAMES:
        Path(name).write_bytes(good['.mp4'])
        assert ends('odd names, and suffixes that are wrong', Path(name), SPEC).info.frames_expected==60

def mux(src, dst, shift=0., **options):
    "Copy a file's packets, their stamps moved by so many seconds."
    options = dict(avoid_negative_ts='disabled', **options)
    with av.open(str(src)) as i, av.open(str(dst), 'w', options=options) as o:
        streams = {s.index: o.add_stream_from_template(s) for s in i.streams}
        for pk in i.demux():
            if not pk.size:
                continue
            by = round(shift/pk.time_base)
            pk.pts += by
            pk.dts = pk.pts if pk.dts is None else pk.dts+by
            pk.stream = streams[pk.stream.index]
            o.mux(pk)
    return dst

@pytest.mark.parametrize('suffix,shift', [
    ('.mkv', 100_000), ('.mp4', 100_000), ('.ts', 50_000),
    ('.ts', 2**33/90_000-1)])   # the 33 bits of a transport stream overflow midway
def test_stamps_far_from_zero(tmp_path, ends, suffix, shift):
    wave = click(.7, 2) if suffix=='.ts' else None
    src = write_video(tmp_path/f'src{suffix}', coded(40), 20, wave, options=dict(bf='0'))
    read = partial(ends, 'time stamps far from zero, or past their end')
    s = check_pictures(mux(src, tmp_path/f'v{suffix}', shift), np.arange(40)/20, read=read)
    assert s.info.duration == pytest.approx(2, abs=.15) and s.info.status=='ok'

def test_ten_bits(tmp_path, ends):
    for codec,kw in dict(libx264={}, libx265={}).items():
        p = write_video(tmp_path/f'{codec}.mp4', coded(40), 20, vcodec=codec, pix_fmt='yuv420p10le', **kw)
        check_pictures(p, np.arange(40)/20, read=partial(ends, '10-bit pictures'))

def test_notes_that_are_not_unicode(tmp_path, ends):
    for suffix in ('.mp4', '.mkv', '.avi'):
        p = tmp_path/f'v{suffix}'
        with av.open(str(p), 'w') as o:
            o.metadata['title'] = 'TITLE-TITLE'
            v = o.add_stream('mpeg4', rate=20)
            v.width = v.height = 64
            v.pix_fmt = 'yuv420p'
            for img in coded(40):
                o.mux(v.encode(av.VideoFrame.from_ndarray(img)))
            o.mux(v.encode(None))
        data = p.read_bytes()
        assert b'TITLE-TITLE' in data
        p.write_bytes(data.replace(b'TITLE-TITLE', b'\xff\xfe\xc3\x28\xa0\xa1\xe2\x82\xf0\x28\x8c'))
        check_pictures(p, np.arange(40)/20, read=partial(ends, 'metadata that are not UTF-8'))

def claiming(pk, size):
    "A packet of Motion JPEG whose picture claims another size (height, width)."
    b = bytearray(bytes(pk))
    at = b.index(b'\xff\xc0')+5
    b[at:at+4] = size[0].to_bytes(2, 'big')+size[1].to_bytes(2, 'big')
    new = av.Packet(bytes(b))
    new.pts = pk.pts
    new.dts = pk.dts
    new.time_base = pk.time_base
    new.stream = pk.stream
    return new

def jpegs(path, n, size, claims=None):
    "Motion JPEG; the pictures may claim another size (height, width)."
    with av.open(str(path), 'w') as o:
        v = o.add_stream('mjpeg', rate=10)
        v.height,v.width = size
        v.pix_fmt = 'yuvj420p'
        for k in range(n):
            packets = v.encode(av.VideoFrame.from_ndarray(np.full((*size, 3), 90, np.uint8)))
            if k==n-1:
                packets += v.encode(None)
            for pk in packets:
                o.mux(pk if claims is None else claiming(pk, claims))
    return path

def test_huge_pictures(tmp_path, ends, full):
    for claims in ((65_500, 65_500), (30_000, 30_000), (65_500, 16)):
        ends('pictures that claim a huge size', jpegs(tmp_path/'v.avi', 4, (64, 64), claims), SPEC)
    size = (8000, 8000) if full else (2160, 3840)
    spec = MediaSpec(steps=2, frame_size=32, clip_size=32, clip_frames=2, clip_seconds=.2)
    s = ends('pictures of 3840 x 2160 and more', jpegs(tmp_path/'w.avi', 2, size), spec)
    assert abs(s.frames.mean()-90)<4

SUFFIXES = ('.mkv', '.mp4', '.avi', '.mov', '.ts', '.nut', '.webm', '.flv', '.mpg', '.asf', '.wmv', '.mxf',
            '.3gp', '.ogv', '.m4v', '.gif', '.y4m', '.f4v', '.vob')
HARDWARE = ('nvenc', 'qsv', 'vaapi', 'v4l2', 'amf', '_mf', 'vulkan', 'toolbox', 'omx', 'mediacodec', 'd3d')

def encoders() -> list:
    "Every encoder of pictures that the wheel has and that needs no hardware."
    out = []
    for n in sorted(av.codecs_available):
        try:
            c = av.Codec(n, 'w')
        except (ValueError, av.error.FFmpegError):
            continue
        if c.type=='video' and not any(o in n for o in HARDWARE):
            out.append(c)
    return out

def written(path, codec):
    "40 pictures at 25 a second, or nothing where the wheel cannot write that."
    formats = [f.name for f in codec.video_formats or []]
    pix_fmt = 'yuv420p' if 'yuv420p' in formats or not formats else formats[0]
    try:
        return write_video(path, coded(40), 25, vcodec=codec.name, crf=None, preset=None, pix_fmt=pix_fmt)
    except (av.error.FFmpegError, ValueError, OSError, RuntimeError, TypeError, AttributeError):
        return None

def test_every_codec_and_container_that_can_be_written(tmp_path, ends, full):
    """Each codec in the first container that takes it, each container with the first codec.

    In full, every pair."""
    made = {}
    for c in encoders():
        for suffix in SUFFIXES:
            if not full and any(a==c.name for a,_ in made) and any(b==suffix for _,b in made):
                continue
            p = written(tmp_path/f'{c.name}{suffix}', c)
            if p is None:
                continue
            what = 'every codec in every other container'
            if suffix in ('.ts', '.mpg', '.vob'):
                what = 'every codec in .ts, .mpg and .vob, which have names for a few'
            made[c.name,suffix] = s = ends(what, p, SPEC)
            if not isinstance(s, MediaError):
                check_sane(s)
            p.unlink()
    # the others are a stream that its container cannot name, or empty
    read = {k: s for k,s in made.items() if not isinstance(s, MediaError)}
    for k,s in read.items():
        off = np.abs(number(s.frames).astype(int)-shown(np.arange(40)/25, s.times))
        most = 3 if k[1]=='.mxf' else 1   # MXF keeps the stamps of B-frames in the order of decoding
        assert (off<=most).all(), k
    assert len({a for a,_ in read})>=12 and len({b for _,b in read})>=9 and len(read)>.5*len(made)

# lengths: only the streams in use count

LENGTHS = [*((o, 'libx264', 'aac', RATE) for o in ('.mkv', '.mp4', '.mov', '.ts', '.flv')),
           *((o, 'libvpx', 'libopus', 48_000) for o in ('.webm', '.ogv')),
           ('.avi', 'mpeg4', 'pcm_s16le', RATE)]

def side_by_side(dst, first, *others):
    "All streams of `first` and one each of `others` (file, kind) in one file, in the order of time."
    sources = [(first, s) for s in ('video', 'audio')]+list(others)
    with av.open(str(dst), 'w') as o:
        packets = []
        for path,kind in sources:
            with av.open(str(path)) as c:
                if not getattr(c.streams, kind):
                    continue
                out = o.add_stream_from_template(getattr(c.streams, kind)[0])
                for pk in c.demux(getattr(c.streams, kind)[0]):
                    if not pk.size:
                        continue
                    if pk.dts is None:
                        pk.dts = pk.pts
                    packets.append((float(pk.dts*pk.time_base), len(packets), pk, out))
        for _,_,pk,out in sorted(packets, key=lambda q: q[:2]):
            pk.stream = out
            o.mux(pk)
    return dst

def subtitles(path):
    path.write_text('1\n00:00:01,000 --> 00:00:02,000\nhello\n\n2\n00:00:02,500 --> 00:00:30,000\nthanks\n\n')
    return path

def noise(n, size=64): return np.random.default_rng(0).integers(0, 255, (n, size, size, 3)).astype(np.uint8)

def cut(path, share):
    p = path.with_name(f'cut{path.suffix}')
    data = path.read_bytes()
    p.write_bytes(data[:int(share*len(data))])
    return p

@pytest.mark.parametrize('suffix,vcodec,acodec,rate', LENGTHS)
@pytest.mark.parametrize('more', ['audio', 'video', 'subtitle'])
def test_other_streams_may_be_longer(tmp_path, ends, suffix, vcodec, acodec, rate, more):
    if more=='subtitle' and suffix not in ('.mkv', '.ts'):
        pytest.skip('no srt in this container')
    kw = dict(rate=rate, vcodec=vcodec, acodec=acodec, crf=None, preset=None)
    v = write_video(tmp_path/f'v{suffix}', noise(30), 10, click(1, 3, rate), **kw)
    alone = probe(v)
    if more=='subtitle':
        other = subtitles(tmp_path/'s.srt'),'subtitles'
    else:
        other = write_video(tmp_path/f'o{suffix}', noise(80, 32), 10, click(6, 8, rate), **kw),more
    both = side_by_side(tmp_path/f'both{suffix}', v, other)
    s = ends('another stream ends later', both, SPEC)
    n = 30 if s.info.width==64 else 80     # FFmpeg's choice of two videos
    assert (s.info.frames_decoded, s.info.frames_expected, s.info.status) == (n, n, 'ok')
    with av.open(str(both)) as c:
        audio = c.streams.best('audio').index
    longer = n==80 or (more=='audio' and audio==2)
    assert s.info.duration == pytest.approx(8 if longer else alone.duration, abs=.15)
    assert s.info.fps == pytest.approx(10, rel=.05)
    if suffix in ('.mkv', '.webm', '.flv') and more!='video':
        half = ends('another stream ends later, cut short', cut(both, .4), SPEC)
        assert half.info.status=='partial' and half.info.frames_decoded<25

@pytest.mark.parametrize('suffix', ['.mkv', '.webm'])
def test_matroska_without_notes_of_each_streams_length(tmp_path, suffix):
    "As some writers make it; then the one length of the file is of whichever stream reaches it."
    kw = dict(rate=48_000, vcodec='libvpx', acodec='libopus', crf=None, preset=None)
    v = write_video(tmp_path/f'v{suffix}', noise(30), 10, click(1, 3, 48_000), **kw)
    other = write_video(tmp_path/f'o{suffix}', noise(2, 32), 10, click(6, 8, 48_000), **kw)
    both = side_by_side(tmp_path/f'both{suffix}', v, (other, 'audio'))
    for p,whole in ((v, True), (both, True), (cut(v, .5), False), (cut(both, .4), False)):
        p.write_bytes(p.read_bytes().replace(b'DURATION', b'DURATIOX'))
        assert (probe(p).status=='ok')==whole, p

def test_an_audio_track_without_packets(tmp_path, ends):
    for suffix in ('.mkv', '.mp4', '.avi', '.ts', '.flv'):
        v = write_video(tmp_path/f'v{suffix}', noise(20), 10, click(1, 2), crf=None, preset=None)
        with av.open(str(v)) as i, av.open(str(tmp_path/f'w{suffix}'), 'w') as o:
            out = [o.add_stream_from_template(s) for s in i.streams][0]
            for pk in i.demux(video=0):
                if not pk.size:
                    continue
                pk.stream = out
                o.mux(pk)
        s = ends('an audio track without a packet', tmp_path/f'w{suffix}', SPEC)
        assert (s.info.frames_expected, s.info.has_audio, s.info.status) == (20, False, 'ok'), suffix

def test_chapters_play_no_part(tmp_path):
    for suffix in ('.mkv', '.mp4', '.mov'):
        v = write_video(tmp_path/f'v{suffix}', noise(30), 10, click(1, 3))
        with av.open(str(v)) as i, av.open(str(tmp_path/f'c{suffix}'), 'w') as o:
            streams = {s.index: o.add_stream_from_template(s) for s in i.streams}
            ms = Fraction(1, 1000)
            o.set_chapters([dict(id=0, start=0, end=2000, time_base=ms, metadata={}),
                            dict(id=1, start=2000, end=60_000, time_base=ms, metadata={})])
            for pk in i.demux():
                if not pk.size:
                    continue
                pk.stream = streams[pk.stream.index]
                o.mux(pk)
        got = probe(tmp_path/f'c{suffix}')
        assert (got.frames_expected, got.status) == (30, 'ok')
        assert got.duration == pytest.approx(probe(v).duration, abs=.05)

def test_a_short_file_with_longer_audio_is_whole(tmp_path):
    for suffix in ('.mkv', '.mp4', '.ts', '.avi'):
        kw = dict(vcodec='mpeg4', crf=None, preset=None)
        v = write_video(tmp_path/f'v{suffix}', coded(6), 20, click(.1, .5), **kw)
        i = read_steps(v, SPEC).info
        assert (i.frames_expected, i.status) == (6, 'ok'), suffix

# clocks that jump

def moved(b, ticks):
    "The five bytes of a transport stream's stamp, some ticks later."
    t = (b[0]>>1&7)<<30 | b[1]<<22 | (b[2]>>1)<<15 | b[3]<<7 | b[4]>>1
    t = (t+ticks)%2**33
    return bytes([b[0]&0xf1 | (t>>30&7)<<1, t>>22&255, (t>>15&127)<<1|1, t>>7&255, (t&127)<<1|1])

def restamp(data, shift):
    "A transport stream in which the n-th packet of a kind is stamped `shift(kind, n)` seconds later."
    b = bytearray(data)
    n = {}
    for o in range(0, len(b), 188):
        a = o+4+(1+b[o+4] if b[o+3]&0x20 else 0)
        if not b[o+1]&0x40 or b[a:a+3]!=b'\0\0\1':
            continue
        kind = {0xe0: 'video', 0xc0: 'audio'}.get(b[a+3]&0xf0)
        n[kind] = n.get(kind, -1)+1
        ticks = round(shift(kind, n[kind])*90_000)
        for flag,at in ((0x80, a+9), (0x40, a+14)):
            if kind and ticks and b[a+7]&flag:
                b[at:at+5] = moved(b[at:at+5], ticks)
    return bytes(b)

DENSE = MediaSpec(steps=40, frame_size=32)

@pytest.mark.parametrize('bf', [0, 2])
@pytest.mark.parametrize('wrong', [
    lambda k,n: 3600*(k=='video' and n==20), lambda k,n: 80_000*(k=='video' and n==20),
    lambda k,n: -1.5*(k=='video' and n==40), lambda k,n: 3600*(k=='audio' and n==3),
    lambda k,n: 3600*(k=='video' and 20<=n<23), lambda k,n: 7200*(k=='video' and n==1),
    lambda k,n: 2**33/90_000-1.2])
def test_a_few_stamps_that_are_wrong_change_little(tmp_path, ends, bf, wrong):
    src = write_video(tmp_path/'src.ts', coded(60), 20, click(2, 3), options=dict(bf=str(bf)))
    (tmp_path/'v.ts').write_bytes(restamp(src.read_bytes(), wrong))
    want = read_steps(src, DENSE)
    s = ends('a few stamps hours ahead or behind', tmp_path/'v.ts', DENSE)
    assert (s.info.frames_decoded, s.info.status) == (60, 'ok')
    assert s.info.duration == pytest.approx(want.info.duration, abs=.01)
    off = np.abs(number(s.frames).astype(int)-number(want.frames))
    assert (off>0).mean()<=.15 and off.max()<=5
    assert heard_at(tmp_path/'v.ts') == pytest.approx(heard_at(src), abs=.02)

@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(-90_000, 90_000), st.floats(0, .5))
def test_whatever_the_stamps_say_a_file_is_read_and_bounded(tmp_path_factory, seed, far, share):
    "Random stamps of a share of the packets: all pictures come, in the order of their clock; bounded."
    d = tmp_path_factory.getbasetemp()/'restamped'
    d.mkdir(exist_ok=True)
    src = d/'src.ts'
    if not src.exists():
        write_video(src, coded(30), 20, click(1, 1.5))
    rng = np.random.default_rng(seed)
    (d/'v.ts').write_bytes(restamp(src.read_bytes(), lambda k,n: far*(rng.random()<share)))
    s = read_steps(d/'v.ts', SPEC)
    assert s.info.frames_decoded==30 and 0<s.info.duration<31*MAX_PAUSE
    times = [t for o,t in decoded(d/'v.ts') if isinstance(o, av.VideoFrame)]
    assert len(times)==30 and times==sorted(times) and np.isfinite(times).all()

JOINED = [(s, n) for s in ('.ts', '.mkv', '.mpg') for n in ((40, 40), (20, 60), (60, 20), (20, 20, 20))]

JOINED.remove(('.mkv', (20, 20, 20)))     # FFmpeg reads two of them

@pytest.mark.parametrize('suffix,lengths', JOINED)
def test_recordings_that_were_joined_follow_each_other(tmp_path, ends, lengths, suffix):
    "Pictures and audio of each keep their places beside each other."
    kw = dict(vcodec='libx264', acodec='aac', rate=RATE)
    if suffix=='.mpg':
        kw = dict(vcodec='mpeg2video', acodec='mp2', rate=48_000, crf=None, preset=None)
    at = 0
    parts = []
    frames = coded(80)
    for n in lengths:
        part = write_video(tmp_path/f'part{suffix}', frames[at:at+n], 20, click(.5, n/20, kw['rate']), **kw)
        parts.append(part.read_bytes())
        at += n
    p = tmp_path/f'v{suffix}'
    p.write_bytes(b''.join(parts))
    s = ends('recordings joined with cat', p, DENSE)
    assert (s.info.frames_decoded, s.info.status) == (at, 'ok')
    assert s.info.duration == pytest.approx(at/20, abs=.1*len(lengths))     # AAC begins with silence
    assert np.abs(number(s.frames)-s.times*20).max()<=2+len(lengths) and s.audio_mask.all()
    clicks = np.cumsum([0, *lengths[:-1]])/20+.5
    loud = s.patches.max((1, 2))>-1
    near = np.abs(s.times[:,None]-clicks).min(1)
    assert loud[near<.3].all() and not loud[near>.75].any()

def test_a_recording_that_goes_on_hours_later(tmp_path):
    src = write_video(tmp_path/'a.ts', coded(40), 20, click(1, 2)).read_bytes()
    for shift in (100, 7200, 2**33/90_000-3):
        later = restamp(src, lambda k,n: shift)
        for parts in ([src, later], [later, src]):
            if parts[0] is later and shift>80_000:   # FFmpeg sees an overflow of 33 bits and a pause
                continue
            (tmp_path/'v.ts').write_bytes(b''.join(parts))
            s = read_steps(tmp_path/'v.ts', DENSE)
            shown_at = number(s.frames)+40*(s.times>=s.info.duration/2)
            assert s.info.duration == pytest.approx(4, abs=.2)
            assert np.abs(shown_at-s.times*80/s.info.duration).max()<=3

@pytest.mark.parametrize('suffix', ['.mp4', '.mkv', '.mov'])
def test_a_last_picture_hours_later(tmp_path, suffix):
    "The one before it then claims to last for hours."
    src = write_video(tmp_path/f'src{suffix}', coded(40), 20, click(1, 2), options=dict(bf='0'))
    with av.open(str(src)) as i, av.open(str(tmp_path/f'v{suffix}'), 'w') as o:
        streams = {s.index: o.add_stream_from_template(s) for s in i.streams}
        n = 0
        for pk in i.demux():
            if not pk.size:
                continue
            n += pk.stream.type=='video'
            if n==40 and pk.stream.type=='video':
                pk.pts += round(7200/pk.time_base)
                pk.dts = pk.pts
            pk.stream = streams[pk.stream.index]
            o.mux(pk)
    s = read_steps(tmp_path/f'v{suffix}', DENSE)
    assert (s.info.frames_decoded, s.info.status) == (40, 'ok')
    assert s.info.duration == pytest.approx(2, abs=.15)
    assert np.abs(number(s.frames)-s.times*20).max()<=3

def test_long_stills_are_believed_while_audio_goes_on(tmp_path):
    "Two slides of 100 s each with speech; three of 200 s without it, which last for a minute at most."
    talk = np.random.default_rng(0).standard_normal(200*8000).astype('f4')/10
    slides = [np.full((64, 64, 3), o, np.uint8) for o in (10, 240)]
    for suffix in ('.mp4', '.mkv'):
        v = write_video(tmp_path/f'talk{suffix}', slides, [0, 100, 200], talk, 8000, options=dict(bf='0'))
        i = probe(v)
        assert i.duration == pytest.approx(200, abs=.3) and i.start==0
    s = read_steps(tmp_path/'talk.mp4', DENSE, ['appearance'])
    assert (s.frames.mean((1, 2, 3))>128).tolist()==(s.times>=100).tolist()
    v = write_video(tmp_path/'mute.mp4', [*slides, slides[0]], [0, 200, 400, 600], options=dict(bf='0'))
    mute = read_steps(v, DENSE, ['appearance'])
    assert 2*MAX_PAUSE<=mute.info.duration<=3*MAX_PAUSE and mute.info.frames_decoded==3
    second = (mute.times>=MAX_PAUSE) & (mute.times<2*MAX_PAUSE)
    assert (mute.frames.mean((1, 2, 3))>128).tolist()==second.tolist()

# AVI keeps no time of display

@pytest.mark.parametrize('vcodec', ['mpeg4', 'libx264'])
@pytest.mark.parametrize('bf', [0, 1, 3])
@pytest.mark.parametrize('acodec', [None, 'pcm_s16le', 'mp2'])
def test_avi_shows_pictures_when_mp4_does(tmp_path, vcodec, bf, acodec):
    rate = 48_000
    kw = dict(vcodec=vcodec, acodec=acodec or 'aac', rate=rate, crf=None, preset=None)
    kw['options'] = dict(bf=str(bf))
    sound = None if acodec is None else click(1.2, 2, rate)
    avi,mp4 = (write_video(tmp_path/f'v{o}', coded(40), 20, sound, **kw) for o in ('.avi', '.mp4'))
    for p in (avi, mp4):
        at = [t for o,t in decoded(p) if isinstance(o, av.VideoFrame)]
        assert np.abs(np.array(at)-np.arange(40)/20).max()<2e-3, p
    check_pictures(avi, np.arange(40)/20)
    if acodec:
        assert heard_at(avi) == pytest.approx(heard_at(mp4), abs=.02)

def place(bits):
    "A packet of MPEG-4 that holds no picture: not coded."
    b = '01'+'0'+'1'+'0'*bits+'1'+'0'+'0'
    return b'\0\0\1\xb6'+int(b+'1'*(-len(b)%8), 2).to_bytes(-(-len(b)//8), 'big')

def divx(path, pictures, how):
    """An AVI as DivX and Xvid write it.

    'packed' puts a B-frame into the packet before; 'lag', 'dropped' and 'uncoded' hold places."""
    options = dict(bf=str(int(how in ('packed', 'lag'))), g='300')
    kw = dict(vcodec='mpeg4', crf=None, preset=None, options=options)
    src = write_video(path.with_name('src.avi'), pictures, 20, **kw)
    with av.open(str(src)) as i, av.open(str(path), 'w') as o:
        out = o.add_stream_from_template(i.streams.video[0])
        packets = [bytes(pk) for pk in i.demux(video=0) if pk.size]
        at = packets[0].index(b'\0\0\1\xb6')
        packets[0] = packets[0][:at]+b'\0\0\1\xb2DivX503b1393'+b'p'*(how=='packed')+packets[0][at:]
        made = packets[:1]
        k = 1
        while k<len(packets):
            twice = how=='packed' and k+1<len(packets) and packets[k+1][4]>>6==2
            made += [packets[k]+packets[k+1], place(5)] if twice else [packets[k]]
            k += 1+twice
            if how=='lag' and k==2:
                made.insert(1, b'\x7f')
            if k%3 or k>=len(packets):
                continue
            if how=='dropped':
                made.append(b'\x7f')
            if how=='uncoded':
                made.append(place(5))
        for t,b in enumerate(made):
            pk = av.Packet(b)
            pk.pts = pk.dts = t
            pk.duration = 1
            pk.time_base = Fraction(1, 20)
            pk.stream = out
            pk.is_keyframe = t==0
            o.mux(pk)
    return path

@pytest.mark.parametrize('n', [5, 10, 30])
@pytest.mark.parametrize('how', ['packed', 'lag', 'dropped', 'uncoded'])
def test_packets_that_hold_a_place_are_not_missing_pictures(tmp_path, ends, n, how):
    v = divx(tmp_path/'v.avi', coded(n), how)
    reader = StepReader(v, MediaSpec(steps=n, frame_size=32), ['appearance'])
    for _ in range(2):     # counted once, however often it is read
        got = number(np.stack([o.frame for o in reader]))
        i = reader.info
        assert (i.frames_decoded, i.frames_expected, i.status, i.packet_errors) == (n, n, 'ok', 0)
    assert (np.diff(got.astype(int))>=0).all() and (how!='packed' or got.tolist()==list(range(n)))

def test_places_hide_no_loss(tmp_path):
    "Of a file cut in half, the other half is missing, with or without them."
    for how in ('packed', 'dropped'):
        i = read_steps(cut(divx(tmp_path/'v.avi', noise(30), how), .6), SPEC).info
        assert i.status=='partial', how

def test_fps_counts_what_is_shown(tmp_path):
    src = write_video(tmp_path/'src.mp4', coded(40), 20, options=dict(g='10', bf='0'))
    for hidden in (.3, .7, 1.2):
        options = dict(avoid_negative_ts='disabled')
        with av.open(str(src)) as i, av.open(str(tmp_path/'v.mp4'), 'w', options=options) as o:
            v = o.add_stream_from_template(i.streams.video[0])
            for pk in i.demux(video=0):
                if not pk.size:
                    continue
                pk.pts -= round(hidden/pk.time_base)
                pk.dts = pk.pts
                pk.stream = v
                o.mux(pk)
        assert probe(tmp_path/'v.mp4').fps == pytest.approx(20, rel=.01)

# samples of any type, everywhere

SCALES = dict(i1=(2**7, 0), u1=(2**7, 2**7), i2=(2**15, 0), u2=(2**15, 2**15), i4=(2**31, 0))

def of_type(x, kind):
    "The same audio as integers."
    half,middle = SCALES[kind]
    return np.clip(np.round(x.astype('f8')*half), -half, half-1).astype('i8').__add__(middle).astype(kind)

def through_a_stream(x):
    live = LiveSteps(SPEC, steps_every(1.))
    live.hear(x, 0.)
    live.end()
    return next(live.ready()).patch

@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(sorted(SCALES)), st.floats(.05, .9), st.sampled_from('<>'))
def test_the_same_audio_in_all_types_is_the_same_patch(seed, kind, loud, order):
    "Integers are refused, with the way to scale them; scaled they differ by quantisation alone."
    x = np.random.default_rng(seed).uniform(-loud, loud, 2*RATE).astype('f4')
    pcm = of_type(x, kind).astype(np.dtype(kind).newbyteorder(order))
    half,_ = SCALES[kind]
    for f in (lambda o: log_mel_patches(o)[0], through_a_stream):
        with pytest.raises(InputError, match='audio_samples'):
            f(pcm)
        noise = 40/half      # of rounding, in a mel band
        assert np.abs(np.exp(f(audio_samples(pcm)))-np.exp(f(x))).max()<=noise*4+1e-3
    assert np.abs(audio_samples(pcm)-x).max()<=1.01/half
    assert (audio_samples(x)==audio_samples(x.astype('f8'))).all()

BAD_SOUND = [[], np.zeros((0,), 'f4'), np.zeros((9, 2)), np.zeros((2, 9, 2)), np.zeros(9, 'c8'),
             np.array([.1, np.nan]), np.array([np.inf]), np.full(9, 3e4), np.arange(9), np.zeros(9, 'i2'),
             np.zeros(9, '?'), ['a'], None, [[.1], [.1, .2]], np.float32(.5)]

def test_every_function_that_takes_audio_refuses_what_is_none(tmp_path):
    live = LiveSteps(SPEC, steps_every(1.))
    for bad in BAD_SOUND:
        with pytest.raises(InputError, match='samples'):
            live.hear(bad, 0.)
    for bad in BAD_SOUND[2:]:     # no audio at all is one patch of silence
        with pytest.raises(InputError, match='samples'):
            log_mel_patches(bad)
    for bad in [*BAD_SOUND[:2], *BAD_SOUND[3:]]:     # two channels can be written
        if bad is None:
            continue
        with pytest.raises(InputError, match='sound'):
            write_video(tmp_path/'v.mp4', coded(2), sound=bad)
    for rate in (0, -1, np.nan, np.inf, 16_000.5, '16000', None, True, 10**12):
        with pytest.raises(InputError, match='rate'):
            live.hear(np.zeros(9, 'f4'), 0., rate)
        with pytest.raises(InputError, match='rate'):
            write_video(tmp_path/'v.mp4', coded(2), sound=np.zeros(99, 'f4'), rate=rate)
    assert not any(tmp_path.iterdir()) and not live.heard.chunks

# one opener

def test_files_are_opened_in_one_place():
    "Every other door would need the guards again."
    import hcms
    package = Path(hcms.__file__).parent
    for p in package.rglob('*.py'):
        n = p.read_text(encoding='utf-8').count('av.open(')
        assert n==(2 if p==package/'media'/'files.py' else 0), p.name

def test_decoded_gives_what_the_reader_reads(tmp_path, good):
    for suffix,data in good.items():
        p = tmp_path/f'v{suffix}'
        p.write_bytes(data)
        at = [t for o,t in decoded(p) if isinstance(o, av.VideoFrame)]
        i = read_steps(p, SPEC).info
        assert len(at)==i.frames_decoded and at==sorted(at) and at[-1]<i.duration
    for name in ('page.mp4', 'absent.mp4', 'folder.mp4'):
        if name.startswith('page'):
            (tmp_path/name).write_text('<html></html>')
        if name.startswith('folder'):
            (tmp_path/name).mkdir()
        with pytest.raises(MediaError, match=name):
            next(decoded(tmp_path/name))

# the reader as a whole

def test_steps_come_early_and_little_is_kept(tmp_path):
    p = write_video(tmp_path/'v.mp4', coded(250, 32), 25, click(5, 10))
    reader = StepReader(p, MediaSpec(steps=40, frame_size=16, clip_size=16, clip_frames=8, clip_seconds=.5))
    kept = []
    seen = []
    for s in reader:
        kept.append(reader._decoders.pictures.held)
        seen.append(reader._decoders.pictures.n)
    assert max(kept)<30 and seen[0]<60 and seen[20]<200
    assert reader.info.frames_decoded==250

@pytest.mark.skipif(not Path('/proc/self/statm').is_file(), reason='reads memory in use from /proc')
def test_decoded_pictures_are_let_go_at_once(tmp_path):
    "Not when Python's garbage collector happens to run: 150 pictures of 1.4 MB would be 200 MB."
    import gc
    grey = np.broadcast_to(np.uint8(90), (150, 720, 1280, 3))
    p = write_video(tmp_path/'v.mp4', grey, 25, preset='ultrafast')
    used = lambda: int(Path('/proc/self/statm').read_text().split()[1])*os.sysconf('SC_PAGE_SIZE')/2**20
    read_steps(p, SPEC, ['appearance'])
    gc.collect()
    gc.disable()
    try:
        before = used()
        for _ in StepReader(p, MediaSpec(steps=150, frame_size=32), ['appearance']):
            pass
        assert used()-before<70
    finally:
        gc.enable()

def test_sound_that_ends_early_keeps_nothing_waiting(tmp_path):
    p = write_video(tmp_path/'v.mp4', coded(250, 32), 25, click(.5, 1))
    reader = StepReader(p, MediaSpec(steps=40, frame_size=16, clip_size=16, clip_frames=8, clip_seconds=.5))
    assert max(reader._decoders.pictures.held for _ in reader)<30

def test_a_reader_can_be_used_twice_and_left_early(tmp_path):
    reader = StepReader(write_video(tmp_path/'v.mp4', coded(40), 20, click(1, 2)), SPEC)
    next(iter(reader))
    a = list(reader)
    b = list(reader)
    assert all((x.clip==y.clip).all() and (x.patch==y.patch).all() for x,y in zip(a, b)) and len(a)==len(b)==6

@pytest.mark.parametrize('wanted', [(o,) for o in MODALITIES]+[MODALITIES[1:], ()])
def test_only_what_is_asked_for(tmp_path, wanted):
    p = write_video(tmp_path/'v.mp4', coded(40), 20, click(1, 2))
    full = list(StepReader(p, SPEC))
    for s,f in zip(StepReader(p, SPEC, wanted), full, strict=True):
        for m,k in dict(audio='patch', appearance='frame', motion='clip').items():
            assert getattr(s, k) is None if m not in wanted else (getattr(s, k)==getattr(f, k)).all()
    with pytest.raises(ValueError, match='appearance'):
        read_steps(p, SPEC, ['apearance'])

@pytest.mark.skipif(not Path('/proc/self/fd').is_dir(), reason='counts open files in /proc')
def test_nothing_stays_open_and_nothing_is_printed(tmp_path, good, capfd):
    b = bytearray(good['.mp4'])
    b[len(b)//2:len(b)//2+2000] = bytes(2000)
    (tmp_path/'v.mp4').write_bytes(b)
    (tmp_path/'bad.mp4').write_bytes(b'\0'*999)
    n = None
    for i in range(12):
        read_steps(tmp_path/'v.mp4', SPEC)
        next(iter(StepReader(tmp_path/'v.mp4', SPEC)))
        with pytest.raises(MediaError):
            probe(tmp_path/'bad.mp4')
        if i==1:
            n = len(os.listdir('/proc/self/fd')),len(os.listdir('/proc/self/task'))
    assert (len(os.listdir('/proc/self/fd')),len(os.listdir('/proc/self/task')))==n
    assert capfd.readouterr()==('', '')

def test_writing_is_repeatable(tmp_path):
    x = click(.5, 2, 44_100, 2)
    for suffix,kw in (('.mp4', {}), ('.mkv', {}), ('.mp4', dict(rotation=90, sound_start=.3))):
        made = [write_video(tmp_path/f'{n}{suffix}', coded(30), 15, x, rate=44_100, **kw) for n in 'ab']
        assert made[0].read_bytes()==made[1].read_bytes()

def clips(folders) -> list:
    "The files of some folders that may be clips."
    files = [p for d in folders.split(os.pathsep) for p in sorted(Path(d).iterdir()) if p.is_file()]
    return [p for p in files if p.suffix not in ('.csv', '.md')]

@pytest.mark.skipif(not os.environ.get('HCMS_REAL_CLIPS'),
                    reason='HCMS_REAL_CLIPS names no folder of real clips')
def test_real_clips(ends):
    "All of one or several folders: time steps, or a reason."
    spec = MediaSpec(steps=8, frame_size=48, clip_size=48, clip_frames=4)
    n = 0
    for p in clips(os.environ['HCMS_REAL_CLIPS']):
        s = ends('real clips, of folders named by HCMS_REAL_CLIPS', p, spec)
        n += 1
        if isinstance(s, MediaError):
            continue
        check_sane(s, spec)
        assert s.info.has_audio or not s.audio_mask.any(), p.name
        if s.info.status=='ok':
            assert s.frames.std()>1, p.name
    assert n
