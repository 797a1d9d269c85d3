"""Odd files of every kind, made here, through one reader.

HCMS_REAL_CLIPS names a folder of real clips to try as well; without it that test is skipped."""
import os
from fractions import Fraction
from functools import partial
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

def check_pictures(path, stamps, spec=SPEC, read=read_steps):
    "The pictures that were picked are those that the rule names; stamps in seconds since the first picture or sound."
    s = read(path, spec)
    if path.suffix=='.ts': stamps = stamps+1024/RATE      # a transport stream keeps the silence with which AAC begins
    assert (number(s.frames)==shown(stamps, s.times)).all()
    assert (number(s.clips)==shown(stamps, clip_times(spec, s.times, stamps))).all()
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
def test_any_rate_varying(tmp_path, ends, seed, suffix):
    stamps = np.r_[0, np.cumsum(np.random.default_rng(seed).uniform(.02, .4, 50))]
    p = write_video(tmp_path/f'v{suffix}', coded(50), stamps)
    D = probe(p).duration
    assert D == pytest.approx(stamps[-1], abs=.4)      # how long the last picture lasts is not stored
    # times that fall within a millisecond of a stamp depend on how the container rounds it: move away from them
    spec = MediaSpec(steps=23, frame_size=16, clip_size=16, clip_frames=3, clip_seconds=.41)
    t = (np.arange(23)+.5)*D/23
    stored = StepReader(p, spec)._shown                # mkv rounds to milliseconds, which may move a picture across the border of a clip
    assert np.abs(stored-stamps[:-1]).max()<1e-3
    times = np.r_[t, clip_times(spec, t, stored).ravel()]
    far = np.abs(times[:,None]-stamps[:-1]).min(1)>1.5e-3
    s = ends('rate varies', p, spec, ['appearance', 'motion'])
    got = np.r_[number(s.frames), number(s.clips).ravel()]
    assert far.mean()>.8 and (got==shown(stamps[:-1], times))[far].all()

def test_a_step_may_fall_exactly_on_a_stamp(tmp_path):
    p = write_video(tmp_path/'v.mp4', coded(60), Fraction(30_000, 1001))
    s = read_steps(p, MediaSpec(steps=30, frame_size=16), ['appearance'])     # each centre is the border of two pictures
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
    "An AVI counts ticks: where its sound begins before its pictures, the first picture lasts longer, and the count is higher."
    i = read_steps(write_video(tmp_path/'v.avi', coded(40), 20, click(.7, 2), vcodec='mpeg4', crf=None, preset=None), SPEC).info
    assert (i.frames_expected, i.frames_decoded, i.status) == (40, 40, 'ok')

def test_stamps_that_start_again(tmp_path, ends):
    parts = [write_video(tmp_path/f'{r}.ts', coded(30), 15, click(.5, 2, r, c), rate=r).read_bytes() for r,c in ((44_100, 2), (48_000, 1))]
    (tmp_path/'v.ts').write_bytes(b''.join(parts))       # rate and channels change in mid-file as well
    s = ends('time stamps go back to zero, sound changes its rate', tmp_path/'v.ts', SPEC)
    check_sane(s)
    assert s.info.frames_decoded==60 and s.audio_mask.all()

def test_size_changes_midway(tmp_path, ends):
    (tmp_path/'v.ts').write_bytes(b''.join(write_video(tmp_path/f'{n}.ts', coded(20, n), 10).read_bytes() for n in (64, 128)))
    check_sane(ends('size changes midway', tmp_path/'v.ts', SPEC))

@pytest.mark.parametrize('n', [1, 2, 5])
def test_very_short(tmp_path, ends, n):
    for suffix in ('.mp4', '.mkv', '.avi'):
        s = ends(f'{n} picture{"s"[:n>1]}, {n/16:.1f} s', write_video(tmp_path/f'v{suffix}', coded(n), 16, vcodec='mpeg4', crf=None, preset=None), SPEC)
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
    assert (number(s.clips)==14+shown(np.arange(26)/20, clip_times(SPEC, s.times, np.arange(26)/20))).all()
    assert s.info.status=='ok' and s.info.duration == pytest.approx(1.3, abs=.01)

@pytest.mark.parametrize('k', range(4))
@pytest.mark.parametrize('hflip', [False, True])
def test_the_eight_ways_to_hold_a_phone(tmp_path, ends, k, hflip):
    img = np.zeros((48, 64, 3), dtype=np.uint8); img[:16,:16,0] = 255; img[32:,:16,1] = 255; img[:16,48:,2] = 255
    with av.open(str(tmp_path/'v.mp4'), 'w') as o:
        v = o.add_stream('libx264', rate=10, options=dict(crf='4'))
        v.width,v.height,v.pix_fmt = 64,48,'yuv444p'
        v.set_display_rotation(90*k, hflip=hflip)
        for i in range(3): o.mux(v.encode(av.VideoFrame.from_ndarray(img)))
        o.mux(v.encode(None))
    got = ends('rotated or mirrored', tmp_path/'v.mp4', MediaSpec(steps=1, frame_size=48), ['appearance']).frames[0]
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
def test_rates_and_channels(tmp_path, ends, rate, channels):
    for suffix,codec in (('.mp4', 'aac'), ('.mkv', 'pcm_s16le'), ('.mov', 'pcm_s16be'), ('.avi', 'pcm_s16le')):
        p = write_video(tmp_path/f'v{suffix}', coded(30), 10, click(1.9, 3, rate, channels), rate=rate, acodec=codec)
        assert heard_at(p) == pytest.approx(1.9, abs=.02)
        i = ends('sound of 8 to 48 kHz, 1, 2 or 5.1 channels', p, SPEC, ['audio']).info
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
    assert (short.audio_mask==(short.times-HALF<.9+.1)).all() and (number(short.frames)==shown(np.arange(60)/20, short.times)).all()
    long = ends('sound ends late', write_video(tmp_path/'b.mp4', coded(20), 20, click(2.5, 3)), SPEC)
    assert long.info.duration == pytest.approx(3, abs=.1) and number(long.frames)[-1]==19 and long.audio_mask.all()

def test_gap_in_the_sound(tmp_path, ends):
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
    s = ends('a gap in the sound', tmp_path/'v.mkv', MediaSpec(steps=10), ['audio'])
    loud = s.patches.max((1, 2))>-2
    holds = lambda t: np.abs(s.times-t)<HALF
    assert (loud==(holds(.1)|holds(3.1))).all()
    assert (s.audio_mask==((s.times-HALF<1)|((s.times+HALF>3)&(s.times-HALF<4)))).all()

def test_silence_is_not_absence(tmp_path, ends):
    none = ends('no sound', write_video(tmp_path/'a.mp4', coded(20)), SPEC)
    mute = ends('silence', write_video(tmp_path/'b.mp4', coded(20), 16, np.zeros(20_000)), SPEC)
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
def test_cut_short_at_every_tenth(tmp_path, good, ends, suffix):
    for tenth in range(1, 10):
        p,share = tmp_path/f'v{suffix}',tenth/10
        p.write_bytes(good[suffix][:int(share*len(good[suffix]))])
        s = ends(f'cut short at a tenth to nine tenths, {suffix}', p, SPEC)
        if isinstance(s, MediaError): assert tenth<4; continue   # nothing but its head is there
        check_sane(s)
        assert s.info.duration == pytest.approx(3*share, abs=.4)
        if suffix!='.ts':       # a transport stream has no header that tells what there should have been
            assert s.info.status=='partial' and s.info.decoded_share == pytest.approx(share, abs=.15) and s.info.frames_expected == pytest.approx(60, abs=3)

@pytest.mark.parametrize('suffix', ['.mp4', '.mkv', '.ts', '.avi'])
def test_rot_is_survived_and_counted(tmp_path, good, ends, full, suffix):
    hurt = 0
    for seed in range(100 if full else 6):
        b,rng = bytearray(good[suffix]),np.random.default_rng(seed)
        for i in rng.integers(6000, len(b)-3000, 100): b[i] ^= 1<<rng.integers(8)
        p = tmp_path/f'v{suffix}'; p.write_bytes(b)
        s = ends('a hundred bits flipped', p, SPEC)
        if not isinstance(s, MediaError): hurt += s.info.packet_errors + (s.info.status=='partial')
    assert hurt

def test_rot_in_the_head_is_never_a_crash(tmp_path, good, ends, full):
    for suffix,data in good.items():
        for seed in range(200 if full else 12):
            b,rng = bytearray(data[:40_000]),np.random.default_rng(seed)
            for i in rng.integers(0, 5000, 25): b[i] = rng.integers(256)
            p = tmp_path/f'v{suffix}'; p.write_bytes(b)
            ends('25 bytes of the head are random', p, MediaSpec(steps=3, frame_size=16, clip_size=16, clip_frames=2, clip_seconds=.2))

def test_what_is_no_video(tmp_path, good, ends):
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
        assert isinstance(ends(f'no video: {k}', d/k, SPEC), MediaError)
    for k in ('page.mp4', 'text.mp4'):
        with pytest.raises(MediaError, match='is text'): probe(d/k)
    with pytest.raises(MediaError, match='no video stream'): probe(d/'sound.mp4')

def test_odd_names(tmp_path, good, ends, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('-rf.mp4', 'a:b.mp4', 'http:x.mp4', 'ä ö%d.mp4', "it's.mp4", 'a"b.mp4', 'two\nlines.mp4', os.fsdecode(b'\xff\xfe.mp4'), '文.mp4', 'no suffix', 'v.mkv', 'v.txt', 'v.avi'):
        Path(name).write_bytes(good['.mp4'])
        assert ends('odd names, and suffixes that are wrong', Path(name), SPEC).info.frames_expected==60

def mux(src, dst, shift=0., **options):
    "Copy a file's packets, their stamps moved by so many seconds."
    with av.open(str(src)) as i, av.open(str(dst), 'w', options=dict(avoid_negative_ts='disabled', **options)) as o:
        streams = {s.index: o.add_stream_from_template(s) for s in i.streams}
        for pk in i.demux():
            if not pk.size: continue
            by = round(shift/pk.time_base)
            pk.pts += by; pk.dts = pk.pts if pk.dts is None else pk.dts+by; pk.stream = streams[pk.stream.index]
            o.mux(pk)
    return dst

@pytest.mark.parametrize('suffix,shift', [('.mkv', 100_000), ('.mp4', 100_000), ('.ts', 50_000), ('.ts', 2**33/90_000-1)])   # the last: the 33 bits of a transport stream overflow midway
def test_stamps_far_from_zero(tmp_path, ends, suffix, shift):
    src = write_video(tmp_path/f'src{suffix}', coded(40), 20, click(.7, 2) if suffix=='.ts' else None, options=dict(bf='0'))
    s = check_pictures(mux(src, tmp_path/f'v{suffix}', shift), np.arange(40)/20, read=partial(ends, 'time stamps far from zero, or past their end'))
    assert s.info.duration == pytest.approx(2, abs=.15) and s.info.status=='ok'

def test_ten_bits(tmp_path, ends):
    for codec,kw in dict(libx264={}, libx265={}).items():
        check_pictures(write_video(tmp_path/f'{codec}.mp4', coded(40), 20, vcodec=codec, pix_fmt='yuv420p10le', **kw), np.arange(40)/20, read=partial(ends, '10-bit pictures'))

def test_notes_that_are_not_unicode(tmp_path, ends):
    for suffix in ('.mp4', '.mkv', '.avi'):
        p = tmp_path/f'v{suffix}'
        with av.open(str(p), 'w') as o:
            o.metadata['title'] = 'TITLE-TITLE'
            v = o.add_stream('mpeg4', rate=20); v.width = v.height = 64; v.pix_fmt = 'yuv420p'
            for img in coded(40): o.mux(v.encode(av.VideoFrame.from_ndarray(img)))
            o.mux(v.encode(None))
        data = p.read_bytes()
        assert b'TITLE-TITLE' in data
        p.write_bytes(data.replace(b'TITLE-TITLE', b'\xff\xfe\xc3\x28\xa0\xa1\xe2\x82\xf0\x28\x8c'))
        check_pictures(p, np.arange(40)/20, read=partial(ends, 'metadata that are not UTF-8'))

def jpegs(path, n, size, claims=None):
    "Motion JPEG; the pictures may claim another size (height, width)."
    with av.open(str(path), 'w') as o:
        v = o.add_stream('mjpeg', rate=10); v.height,v.width = size; v.pix_fmt = 'yuvj420p'
        for k in range(n):
            for pk in [*v.encode(av.VideoFrame.from_ndarray(np.full((*size, 3), 90, np.uint8))), *(v.encode(None) if k==n-1 else [])]:
                if claims is not None:
                    b = bytearray(bytes(pk)); at = b.index(b'\xff\xc0')+5
                    b[at:at+4] = claims[0].to_bytes(2, 'big')+claims[1].to_bytes(2, 'big')
                    new = av.Packet(bytes(b)); new.pts,new.dts,new.time_base,new.stream = pk.pts,pk.dts,pk.time_base,pk.stream; pk = new
                o.mux(pk)
    return path

def test_huge_pictures(tmp_path, ends, full):
    for claims in ((65_500, 65_500), (30_000, 30_000), (65_500, 16)): ends('pictures that claim a huge size', jpegs(tmp_path/'v.avi', 4, (64, 64), claims), SPEC)
    size = (8000, 8000) if full else (2160, 3840)
    s = ends('pictures of 3840 x 2160 and more', jpegs(tmp_path/'w.avi', 2, size), MediaSpec(steps=2, frame_size=32, clip_size=32, clip_frames=2, clip_seconds=.2))
    assert abs(s.frames.mean()-90)<4

SUFFIXES = ('.mkv', '.mp4', '.avi', '.mov', '.ts', '.nut', '.webm', '.flv', '.mpg', '.asf', '.wmv', '.mxf', '.3gp', '.ogv', '.m4v', '.gif', '.y4m', '.f4v', '.vob')

def encoders() -> list:
    "Every encoder of pictures that the wheel has and that needs no hardware."
    out = []
    for n in sorted(av.codecs_available):
        try: c = av.Codec(n, 'w')
        except (ValueError, av.error.FFmpegError): continue
        if c.type=='video' and not any(o in n for o in ('nvenc', 'qsv', 'vaapi', 'v4l2', 'amf', '_mf', 'vulkan', 'toolbox', 'omx', 'mediacodec', 'd3d')): out.append(c)
    return out

def written(path, codec):
    "40 pictures at 25 a second, or nothing where the wheel cannot write that."
    formats = [f.name for f in codec.video_formats or []]
    try: return write_video(path, coded(40), 25, vcodec=codec.name, crf=None, preset=None, pix_fmt='yuv420p' if 'yuv420p' in formats or not formats else formats[0])
    except (av.error.FFmpegError, ValueError, OSError, RuntimeError, TypeError, AttributeError): return None

def test_every_codec_and_container_that_can_be_written(tmp_path, ends, full):
    "Each codec in the first container that takes it, each container with the first codec; in full, every pair."
    made,codecs = {},encoders()
    for c in codecs:
        for suffix in SUFFIXES:
            if not full and any(a==c.name for a,_ in made) and any(b==suffix for _,b in made): continue
            p = written(tmp_path/f'{c.name}{suffix}', c)
            if p is None: continue
            made[c.name,suffix] = s = ends('every codec in .ts, .mpg and .vob, which have names for a few' if suffix in ('.ts', '.mpg', '.vob') else 'every codec in every other container', p, SPEC)
            if not isinstance(s, MediaError): check_sane(s)
            p.unlink()
    read = {k: s for k,s in made.items() if not isinstance(s, MediaError)}   # the others are a stream that its container cannot name, or empty
    for k,s in read.items(): assert (np.abs(number(s.frames).astype(int)-shown(np.arange(40)/25, s.times))<=(3 if k[1]=='.mxf' else 1)).all(), k   # MXF keeps the stamps of B-frames in the order of decoding
    assert len({a for a,_ in read})>=12 and len({b for _,b in read})>=9 and len(read)>.5*len(made)


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
def test_real_clips(ends):
    "All of one or several folders: time steps, or a reason."
    spec,n = MediaSpec(steps=8, frame_size=48, clip_size=48, clip_frames=4),0
    for p in (p for d in os.environ['HCMS_REAL_CLIPS'].split(os.pathsep) for p in sorted(Path(d).iterdir()) if p.is_file() and p.suffix not in ('.csv', '.md')):
        s = ends('real clips, of folders named by HCMS_REAL_CLIPS', p, spec); n += 1
        if isinstance(s, MediaError): continue
        check_sane(s, spec)
        assert s.info.has_audio or not s.audio_mask.any(), p.name
        if s.info.status=='ok': assert s.frames.std()>1, p.name
    assert n
