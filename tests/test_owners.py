"""Inputs and features of the pretrained networks agree with their owners' code.

The owners' own decoding, preprocessing and forward pass are called, with random weights, since the pretrained
ones are not here: pytorchvideo for SlowFast, timm for EfficientNet-B3, LiteRT and (where it is installed)
TensorFlow for YAMNet."""
import sys
from fractions import Fraction
import av, numpy as np, pytest, torch
from hcms.networks.backbones import load_backbones, spec_for
from hcms.media.files import RATE, StepReader, log_mel_patches

# Only the middle step is compared: at a video's edges a clip repeats pictures, where pytorchvideo has fewer
STEPS = 5

def scene(n, height, width):
    "Smooth drifting shapes with fine texture, which resizing, cropping and picking pictures all change."
    y,x = np.mgrid[:height, :width].astype(np.float32)
    texture = np.random.default_rng(0).normal(0, 20, (height, width))
    for i in range(n):
        drift = []
        for c in range(3):
            waves = 127+60*np.sin(x/(9+3*c)+i/4)+40*np.cos(y/(7+2*c)-i/5)
            drift.append(waves+np.roll(texture, 2*i, 1))
        yield np.clip(np.stack(drift, -1), 0, 255).astype(np.uint8)

def film(path, height, width, rate, seconds=6):
    "A video whose chroma has full resolution, so that every converter finds the same colours."
    with av.open(str(path), 'w') as out:
        stream = out.add_stream('libx264', rate=rate, options=dict(crf='10', preset='veryfast'))
        stream.width = width
        stream.height = height
        stream.pix_fmt = 'yuv444p'
        for picture in scene(round(seconds*rate), height, width):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format='rgb24')))
        out.mux(stream.encode(None))
    return path

@pytest.fixture(scope='module')
def pytorchvideo_code():
    "pytorchvideo's own decoder and transforms, which look for a module of torchvision under its old name."
    import torchvision.transforms._functional_tensor as moved
    sys.modules.setdefault('torchvision.transforms.functional_tensor', moved)
    from pytorchvideo.data.encoded_video import EncodedVideo
    from pytorchvideo.transforms import ShortSideScale, UniformTemporalSubsample
    from torchvision.transforms import Compose, Lambda
    from torchvision.transforms._transforms_video import CenterCropVideo, NormalizeVideo
    shown = Compose([
        UniformTemporalSubsample(32),
        Lambda(lambda x: x/255),
        NormalizeVideo([.45]*3, [.225]*3),
        ShortSideScale(256),
        CenterCropVideo(256)])
    return EncodedVideo,shown

@pytest.fixture(scope='module')
def nets(): return load_backbones('paper', steps=STEPS, modalities=('appearance', 'motion'))

def middle(path, modality):
    "Time of the middle step, and its medium as the networks receive it."
    reader = StepReader(path, spec_for('paper', STEPS), [modality])
    step = list(reader)[STEPS//2]
    return step.time,dict(appearance=step.frame, motion=step.clip)[modality]

def apart(a, b): return float((a-b).norm()/b.norm())

SIZES = [(360, 480, Fraction(30_000, 1001)), (355, 201, 50),   # the second upright, of odd margins
         *(pytest.param(*o, marks=pytest.mark.full) for o in ((256, 340, 30), (426, 240, 25)))]

@pytest.mark.parametrize('height, width, rate', SIZES)
def test_slowfast_says_what_pytorchvideo_says(tmp_path, nets, pytorchvideo_code, height, width, rate):
    "Decoder, choice of pictures, resize, crop, normalization and network, all pytorchvideo's."
    from pytorchvideo.models.hub import slowfast_r50
    EncodedVideo,shown = pytorchvideo_code
    path = film(tmp_path/'v.mp4', height, width, rate)
    t,clip = middle(path, 'motion')
    video = EncodedVideo.from_path(str(path), decode_audio=False).get_clip(t-32/30, t+32/30)['video']
    want = shown(video)
    picked = torch.as_tensor(clip).permute(3, 0, 1, 2).float()
    assert (picked-(want*.225+.45)*255).abs().max()<1.01   # rounded to whole levels, and nothing else
    zoo = slowfast_r50().eval()
    zoo.load_state_dict(nets.nets['motion'].net.state_dict(), strict=False)
    with torch.no_grad():
        x = [want[None][:,:,torch.linspace(0, 31, 8).long()], want[None]]
        for block in zoo.blocks[:6]:
            x = block(x)
    assert apart(nets.features('motion', clip[None]), x.mean((2, 3, 4)))<1e-3

@pytest.mark.parametrize('height, width, rate', SIZES)
def test_efficientnet_says_what_timm_says(tmp_path, nets, height, width, rate):
    "timm's own evaluation of efficientnet_b3, at the paper's 224 pixels."
    import timm
    from timm.data import create_transform, resolve_data_config
    path = film(tmp_path/'v.mp4', height, width, rate)
    t,frame = middle(path, 'appearance')
    with av.open(str(path)) as c:
        picture = [o for o in c.decode(video=0) if o.time<=t+1e-6][-1].to_image()
    net = timm.create_model('efficientnet_b3', num_classes=0).eval()
    net.load_state_dict(nets.nets['appearance'].net.state_dict())
    transform = create_transform(**resolve_data_config(dict(input_size=(3, 224, 224)), model=net))
    with torch.no_grad():
        want = net(transform(picture)[None])
    assert apart(nets.features('appearance', frame[None]), want)<1e-3

def test_yamnets_patches_are_those_of_tensorflow():
    "YAMNet's front end by TensorFlow's own functions; skipped without TensorFlow, as by default."
    tf = pytest.importorskip('tensorflow')
    t = np.arange(3*RATE)/RATE
    noise = np.random.default_rng(0).normal(size=len(t))
    wave = (.3*np.sin(2*np.pi*300*t*(1+t))+.1*noise).clip(-1, 1).astype(np.float32)
    magnitude = tf.abs(tf.signal.stft(wave, 400, 160, 512))
    mel = tf.matmul(magnitude, tf.signal.linear_to_mel_weight_matrix(64, 257, RATE, 125., 7500.))
    want = tf.signal.frame(tf.math.log(mel+.001), 96, 48, axis=0).numpy()
    got = log_mel_patches(wave)[:len(want)]
    assert np.linalg.norm(got-want)/np.linalg.norm(want)<1e-3
