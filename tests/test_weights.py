"""YAMNet's official files, made here with random numbers, compared with an independent computation.

Where `ai-edge-litert` is installed, also with TFLite's own interpreter. HCMS_YAMNET names a real TFLite file
to try as well."""
import os
import numpy as np, pytest, torch
from torch.nn import functional as F
from hcms.networks.backbones import YAMNet
from hcms.networks.backbones import NAMES, ConvWeights, YamnetWeights, read_keras, read_tflite

STRIDES = [2, *(s if k==0 else 1 for s in (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1) for k in range(2))]

def random_yamnet(width=.25, seed=0):
    rng = np.random.default_rng(seed)
    below = 1
    convs = []
    sizes = [32, *(o for o in (64, 128, 128, 256, 256, *[512]*6, 1024, 1024) for _ in range(2))]
    for n,full in zip(NAMES, sizes):
        out = below if 'depthwise' in n else int(full*width)
        shape = (out, 1 if 'depthwise' in n else below, *((1, 1) if 'point' in n else (3, 3)))
        kernel = (rng.normal(size=shape)/np.sqrt(np.prod(shape[1:]))).astype('f4')
        bias,mean = rng.normal(size=(2, out)).astype('f4')/2
        convs.append(ConvWeights(kernel, bias, mean, rng.uniform(.5, 2, out).astype('f4')))
        below = out
    head = (rng.normal(size=(521, below))/16).astype('f4')
    return YamnetWeights(convs, head, rng.normal(size=521).astype('f4'))

def by_hand(w, x):
    "Features and scores, with TensorFlow's padding and batch norm written out."
    h = x[:,None]
    for n,c,stride in zip(NAMES, w.convs, STRIDES):
        k = c.kernel.shape[-1]
        lacks = [max((-(-size//stride)-1)*stride+k-size, 0) for size in h.shape[-2:]]
        h = F.pad(h, (lacks[1]//2, lacks[1]-lacks[1]//2, lacks[0]//2, lacks[0]-lacks[0]//2))
        h = F.conv2d(h, torch.tensor(c.kernel), stride=stride, groups=h.shape[1] if 'depthwise' in n else 1)
        m,v,b = (torch.tensor(o)[:,None,None] for o in (c.mean, c.variance, c.bias))
        h = ((h-m)/(v+1e-4).sqrt()+b).clamp_min(0)
    f = h.mean((2, 3))
    return f,torch.sigmoid(f@torch.tensor(w.head).T+torch.tensor(w.head_bias))

def write_keras(w, path):
    import h5py
    with h5py.File(path, 'w') as f:
        for n,c in zip(NAMES, w.convs):
            if 'depthwise' in n:
                f[f'{n}/{n}/depthwise_kernel:0'] = c.kernel.transpose(2, 3, 0, 1)
            else:
                f[f'{n}/{n}/kernel:0'] = c.kernel.transpose(2, 3, 1, 0)
            for k,v in zip(('beta', 'moving_mean', 'moving_variance'), c[1:]):
                f[f'{n}/bn/{n}/bn/{k}:0'] = v
        f['logits/logits/kernel:0'] = w.head.T
        f['logits/logits/bias:0'] = w.head_bias

def write_tflite(w, path, int8=False):
    """A whole model in TFLite's schema: patches (1, 96, 64, 1) in, scores (1, 521) out.

    Batch norm is folded, kernels are optionally integers."""
    import flatbuffers
    b = flatbuffers.Builder(1<<20)
    def bytes_(x):
        b.StartVector(1, len(x), 16)
        b.head -= len(x)
        b.Bytes[b.head:b.head+len(x)] = x
        return b.EndVector()
    def offsets(os):
        b.StartVector(4, len(os), 4)
        for o in reversed(os):
            b.PrependUOffsetTRelative(o)
        return b.EndVector()
    def table(n, *fields):   # (slot, kind, value)
        b.StartObject(n)
        for slot,kind,v in fields:
            kind = 'UOffsetTRelative' if kind=='o' else kind
            getattr(b, f'Prepend{kind}Slot')(slot, v, 0)
        return b.EndObject()
    ints = lambda x: b.CreateNumpyVector(np.asarray(x, dtype=np.int32))
    buffers = [table(1)]
    tensors = []
    ops = []
    codes = [3, 4, 40, 9, 14]   # conv, depthwise, mean, fully connected, logistic
    def tensor(name, shape, data=None, axis=None):
        quantization = []
        kind = 0
        if data is not None:
            kind = {np.dtype('f4'): 0, np.dtype('i4'): 2, np.dtype('i1'): 9}[data.dtype]
        if axis is not None and int8:
            scale = np.abs(data).max(tuple(k for k in range(data.ndim) if k!=axis))/127
            along = [-1 if k==axis else 1 for k in range(data.ndim)]
            data = np.round(data/scale.reshape(along)).astype('i1')
            kind = 9
            scales = b.CreateNumpyVector(scale.astype('f4'))
            zeros = b.CreateNumpyVector(np.zeros(len(scale), dtype=np.int64))
            quantization = [(4, 'o', table(7, (2, 'o', scales), (3, 'o', zeros), (6, 'Int32', axis)))]
        at = 0
        if data is not None:
            buffers.append(table(1, (0, 'o', bytes_(np.ascontiguousarray(data).tobytes()))))
            at = len(buffers)-1
        fields = [(0, 'o', ints(shape)), (3, 'o', b.CreateString(name)), (2, 'Uint32', at), (1, 'Int8', kind)]
        tensors.append(table(8, *fields, *quantization))
        return len(tensors)-1
    def op(code, inputs, output, kind=0, options=None):
        i = ints(inputs)
        o = ints([output])
        more = ((3, 'Uint8', kind), (4, 'o', options)) if options else ()
        ops.append(table(9, (1, 'o', i), (2, 'o', o), (0, 'Uint32', codes.index(code)), *more))
    shape = [1, 96, 64, 1]
    x = first = tensor('patches', shape)
    for n,c,s in zip(NAMES, w.convs, STRIDES):
        scale = 1/np.sqrt(c.variance+1e-4)
        kernel = c.kernel*scale[:,None,None,None]
        bias = c.bias-c.mean*scale
        deep = 'depthwise' in n
        kernel = kernel.transpose(1, 2, 3, 0) if deep else kernel.transpose(0, 2, 3, 1)
        k = tensor(n, kernel.shape, kernel.astype('f4'), 3 if deep else 0)
        bi = tensor(f'{n}/bias', bias.shape, bias.astype('f4'))
        shape = [1, -(-shape[1]//s), -(-shape[2]//s), len(bias)]
        y = tensor(f'{n}/out', shape)
        common = ((1, 'Int32', s), (2, 'Int32', s))   # padding SAME is 0
        if deep:
            options = table(7, *common, (3, 'Int32', 1), (4, 'Int8', 1), (5, 'Int32', 1), (6, 'Int32', 1))
        else:
            options = table(6, *common, (3, 'Int8', 1), (4, 'Int32', 1), (5, 'Int32', 1))
        op(4 if deep else 3, [x, k, bi], y, 2 if deep else 1, options)
        x = y
    y = tensor('features', [1, shape[-1]])
    op(40, [x, tensor('axes', [2], np.array([1, 2], dtype='i4'))], y, 27, table(1))
    z = tensor('logits', [1, 521])
    head = tensor('head', w.head.shape, w.head, 0)
    head_bias = tensor('head/bias', w.head_bias.shape, w.head_bias)
    op(9, [y, head, head_bias], z, 8, table(1))
    out = tensor('scores', [1, 521])
    op(14, [z], out)
    graph = table(5,
        (0, 'o', offsets(tensors)), (1, 'o', ints([first])), (2, 'o', ints([out])), (3, 'o', offsets(ops)))
    operators = [table(4, (0, 'Int8', c), (2, 'Int32', 1), (3, 'Int32', c)) for c in codes]
    model = table(5, (1, 'o', offsets(operators)), (2, 'o', offsets([graph])), (4, 'o', offsets(buffers)),
        (0, 'Uint32', 3))
    b.Finish(model, b'TFL3')
    path.write_bytes(bytes(b.Output()))

@pytest.mark.parametrize('write, read, name', [
    (write_keras, read_keras, 'yamnet.h5'),
    (write_tflite, read_tflite, 'yamnet.tflite')])
def test_official_files_give_the_network_they_hold(tmp_path, write, read, name):
    w = random_yamnet()
    x = torch.randn(3, 96, 64)
    write(w, tmp_path/name)
    net = YAMNet.from_weights(read(tmp_path/name))
    features,scores = by_hand(w, x)
    assert torch.allclose(net(x), features, atol=1e-4) and torch.allclose(net.classify(x), scores, atol=1e-4)
    assert features.std()>.01 and scores.std()>.01   # not all alike

def test_integer_kernels_are_scaled(tmp_path):
    w = random_yamnet()
    write_tflite(w, tmp_path/'a.tflite', int8=True)
    back = read_tflite(tmp_path/'a.tflite')
    for n,c,o in zip(NAMES, w.convs, back.convs):
        folded = c.kernel/np.sqrt(c.variance+1e-4)[:,None,None,None]
        step = np.abs(folded).max((1, 2, 3), keepdims=True)/127
        assert (np.abs(folded-o.kernel)<=step/2*(1+1e-5)).all(), n
    assert np.abs(back.head-w.head).max()<=np.abs(w.head).max()/127

def test_wrong_files_are_named(tmp_path):
    from hcms.core import InputError
    w = random_yamnet()
    write_tflite(w._replace(convs=w.convs[:-2]), tmp_path/'short.tflite')
    with pytest.raises(InputError, match='short.tflite.*holds 25 convolutions where YAMNet has 27'):
        read_tflite(tmp_path/'short.tflite')
    write_tflite(w, tmp_path/'cut.tflite')
    (tmp_path/'cut.tflite').write_bytes((tmp_path/'cut.tflite').read_bytes()[:-5000])
    with pytest.raises(InputError, match='cut.tflite'):
        read_tflite(tmp_path/'cut.tflite')

def _interpret(path, x):
    Interpreter = pytest.importorskip('ai_edge_litert.interpreter').Interpreter
    it = Interpreter(str(path))
    it.allocate_tensors()
    i = it.get_input_details()[0]['index']
    o = it.get_output_details()[0]['index']
    out = []
    for p in x.numpy():
        it.set_tensor(i, p[None,:,:,None])
        it.invoke()
        out.append(it.get_tensor(o)[0])
    return np.stack(out)

def test_tflite_agrees_with_its_own_interpreter(tmp_path):
    x = torch.randn(3, 96, 64)
    path = tmp_path/'a.tflite'
    write_tflite(random_yamnet(), path)
    assert np.allclose(YAMNet.from_tflite(path).classify(x).numpy(), _interpret(path, x), atol=1e-4)

@pytest.mark.skipif(not os.environ.get('HCMS_YAMNET'), reason='HCMS_YAMNET names no real TFLite file')
def test_a_real_file():
    "A second of noise and a second of silence: real weights tell them apart, and hear noise as noise."
    from hcms.media.files import log_mel_patches
    net = YAMNet.from_tflite(os.environ['HCMS_YAMNET'])
    noise = np.random.default_rng(0).normal(size=16000).astype('f4')*.1
    patches = np.concatenate([log_mel_patches(noise)[:1], log_mel_patches(noise*0)[:1]])
    scores = net.classify(torch.as_tensor(patches))
    assert scores.shape==(2, 521) and scores[1].argmax()==494 and scores[0].argmax()!=494   # 494: Silence

def zoo_state(name) -> dict:
    "A state dict with the owner's key names, classifier included."
    if name.startswith('pytorchvideo/'):
        from pytorchvideo.models.hub import slowfast_r50
        return slowfast_r50(pretrained=False).state_dict()
    import timm
    return timm.create_model('efficientnet_b3').state_dict()

@pytest.mark.parametrize('name, size, prefix, classifier', [
    ('pytorchvideo/slowfast_r50', 2304, 'net.', 'blocks.6.'),
    ('timm/efficientnet_b3', 1536, 'net.', 'classifier.')])
def test_the_owners_key_names_load_whole_or_not_at_all(tmp_path, name, size, prefix, classifier):
    """Every tensor but the classifier's is loaded.

    With one wrong shape, one missing and one extra none is, and the message lists the three."""
    from safetensors.torch import load_file
    from hcms.core import InputError
    from hcms.networks.weights import install, read_pretrained
    state = zoo_state(name)
    torch.save(dict(model_state=state), tmp_path/'zoo.pyth')
    assert read_pretrained(name, tmp_path/'zoo.pyth').size==size
    got = load_file(install(name, tmp_path/'pre', tmp_path/'zoo.pyth'))
    assert {k.removeprefix(prefix) for k in got}=={k for k in state if not k.startswith(classifier)}
    assert all(torch.equal(v, state[k.removeprefix(prefix)]) for k,v in got.items())
    before = {p.name: p.read_bytes() for p in (tmp_path/'pre').iterdir()}
    wrong,lost = [k for k in state if k.endswith('.weight') and state[k].ndim>3][3:5]
    bad = {k: v for k,v in state.items() if k!=lost} | dict(more=torch.zeros(2))
    bad[wrong] = bad[wrong][:1]
    torch.save(bad, tmp_path/'bad.pyth')
    with pytest.raises(InputError, match='nothing was loaded; 3 differences') as e:
        install(name, tmp_path/'pre', tmp_path/'bad.pyth')
    said = str(e.value)
    assert f'missing {lost}' in said and 'unexpected more (2,)' in said
    assert f'{wrong} is {tuple(bad[wrong].shape)} where {tuple(state[wrong].shape)} is needed' in said
    assert {p.name: p.read_bytes() for p in (tmp_path/'pre').iterdir()}==before
