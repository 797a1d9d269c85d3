"Properties that must hold for every example of hypothesis, and readers that must survive any bytes."
import random, shutil, string
import numpy as np, pandas as pd, pytest, torch
from hypothesis import HealthCheck, assume, given, settings, strategies as st
from hcms.core import InputError
from hcms.data.store import FeatureStore
from test_robustness import ends_well

def many(full):
    return settings(max_examples=1000 if full else 25, deadline=None,
        suppress_health_check=list(HealthCheck), derandomize=True)

@pytest.fixture
def holds(tally, full):
    "Try a property on many examples, and tally how many."
    def check(what, f, *strategies):
        n = [0]
        def one(example):
            n[0] += 1
            f(*example)
        many(full)(given(st.tuples(*strategies))(one))()
        tally('properties', what, 'held', n[0])
    return check

seeds = st.integers(0, 2**31)
small = st.integers(1, 5)
ID = string.ascii_letters+string.digits+'_-'   # characters of an id

def test_gates(holds):
    "With noise given, a hard gate is the larger of score and noise; its gradient is that of the soft one."
    from hcms.method.gating import SKIP, USE, gumbel_gate
    def f(seed, tau, n):
        g = torch.Generator().manual_seed(seed)
        scores = torch.randn(n, 2, generator=g, dtype=torch.float64, requires_grad=True)
        noise = torch.randn(n, 2, generator=g, dtype=torch.float64)
        hard,soft = (gumbel_gate(scores, tau, True, h, noise) for h in (True, False))
        noisy = scores+noise
        assert torch.equal(hard.detach(), (noisy[:,USE]>noisy[:,SKIP]).double())
        assert ((soft>=0)&(soft<=1)).all()
        a,b = (torch.autograd.grad(o.sum(), scores, retain_graph=True)[0] for o in (hard, soft))
        assert torch.allclose(a, b) and torch.allclose(a[:,USE], -a[:,SKIP])
        assert torch.allclose(soft, torch.softmax(noisy/tau, -1)[:,USE])   # Eq. 9 as printed
    holds('gates: the larger score decides, the gradient is the soft one, Eq. 9', f,
        seeds, st.floats(.05, 5), small)

def test_fusion(holds):
    """An open gate gives the new state, a closed one the lower head and the old tail, whatever the sizes.

    Blending and selecting agree on decisions."""
    from hcms.method.hlstm import mix, skipped
    def f(seed, B, H, L, copy_cell):
        g = torch.Generator().manual_seed(seed)
        new,old,lower = ([torch.randn(B, k, generator=g) for _ in 'hc'] for k in (H, H, L))
        G = torch.randint(2, (B, 1), generator=g).float()
        kept = skipped(old, lower, copy_cell)
        a,b = ([mix(G, n, k, blend) for n,k in zip(new, kept)] for blend in (True, False))
        for k in range(2):
            assert torch.equal(a[k], b[k])
            for r in range(B):
                w = min(H, L) if k==0 or copy_cell else 0
                want = new[k][r] if G[r]==1 else torch.cat([lower[k][r,:w], old[k][r,w:]])
                assert torch.equal(b[k][r], want)
    holds('fusion: open gates give the new state, closed gates copy the first units and keep the rest', f,
        seeds, small, st.integers(1, 6), st.integers(1, 6), st.booleans())

def test_all_steps_at_once_are_the_steps_one_by_one(holds):
    from hcms.method.hlstm import HCMS
    def f(seed, B, T, sizes, nested, copy_cell):
        torch.manual_seed(seed)
        names = ('audio', 'appearance', 'motion')[:len(sizes)]
        model = HCMS(3, names, in_sizes=[4]*len(names), proj_sizes=[3]*len(names), hidden_sizes=sizes,
            nested=nested, copy_cell=copy_cell).eval()
        x = [torch.randn(B, T, 4)*3 for _ in names]
        with torch.no_grad():
            whole = model(*x)
            state = model.init_state(B)
            for t in range(T):
                state,gates = model.step(state, *(o[:,t] for o in x))
                assert torch.equal(gates, whole.gates[:,t])
                assert torch.allclose(model.read(state), whole.step_logits[:,t], atol=1e-5)
            if nested and len(names)>2:
                assert (whole.gates[...,1]<=whole.gates[...,0]).all()
    sizes = st.lists(small, min_size=1, max_size=3)
    holds('fusion: all steps at once are the steps one by one, gates the same', f,
        seeds, small, small, sizes, st.booleans(), st.booleans())

def test_ledger(holds):
    "The total is the sum of its items and never falls when a gate opens; its prices are a count by hand."
    from hcms.evaluation.costs import gflops_per_video
    def f(seed, N, T, prices):
        rng = np.random.default_rng(seed)
        gates = (rng.random((N, T, 2))<rng.random(2)).astype('float32')
        gates[...,1] *= gates[...,0]
        table = dict(zip(('audio', 'appearance', 'motion'), prices))
        d = gflops_per_video(gates, table)
        assert np.allclose(d.total, prices[0]*T + gates.sum(1)@np.array(prices[1:]), rtol=1e-9)
        assert np.allclose(d.drop(columns='total').select_dtypes('number').sum(1), d.total, rtol=1e-9)
        more = np.maximum(gates, (rng.random((N, T, 1))<.3))
        assert (gflops_per_video(more.astype('float32'), table).total>=d.total-1e-9).all()
    prices = st.lists(st.floats(0, 100), min_size=3, max_size=3)
    holds('ledger: items add up, prices as by hand, never falls when a gate opens', f,
        seeds, small, small, prices)

def test_metrics(holds):
    "Equal to sklearn's; the order of videos and any rising function of the scores change nothing."
    from sklearn.metrics import average_precision_score
    from hcms.evaluation.metrics import mean_average_precision
    def f(seed, N, C, digits):
        rng = np.random.default_rng(seed)
        s = rng.random((N, C)).round(digits)
        t = rng.random((N, C))<rng.random()
        assume(t.any())
        want = np.mean([average_precision_score(t[:,k], s[:,k]) for k in range(C) if t[:,k].any()])
        got = mean_average_precision(s, t)
        order = rng.permutation(N)
        assert got==pytest.approx(want, abs=1e-12)
        assert mean_average_precision(s[order], t[order])==pytest.approx(got, abs=1e-12)
        assert mean_average_precision(np.round(s*10**digits)**3*7-4, t)==pytest.approx(got, abs=1e-12)
    holds("metrics: sklearn's values; order and rising functions change nothing", f,
        seeds, st.integers(1, 30), small, st.integers(1, 6))

def test_store(holds, tmp_path):
    "Features are read as written, to the bit, with mask and notes; a second write changes nothing."
    n = [0]
    own = ('id', 'modality', 'fp')
    def f(seed, T, D, half, note, id):
        n[0] += 1
        view = FeatureStore(tmp_path/f's{n[0]}').extractor('audio', dict(model='x'))
        rng = np.random.default_rng(seed)
        x = torch.tensor(rng.normal(0, 10, (T, D)), dtype=torch.float16 if half else torch.float32)
        mask = torch.tensor(rng.random(T)<.5)
        assert view.put(id, x, mask, note) and not view.put(id, x+1, mask, note)
        got,m = view.get(id)
        assert torch.equal(got, x) and got.dtype==x.dtype and torch.equal(m, mask)
        assert view.ids()==[id] and not view.verify()
        assert {k: v for k,v in view.meta(id).items() if k not in own}==note
        shutil.rmtree(tmp_path/f's{n[0]}')
    letters = st.characters(exclude_categories=['Cs'])
    keys = st.text(letters, max_size=8).filter(lambda k: k not in own and not k.startswith('crc32'))
    notes = st.dictionaries(keys, st.text(letters, max_size=12), max_size=3)
    ids = st.text(ID, min_size=1, max_size=64)
    holds('store: what is put is got, and stays', f, seeds, small, small, st.booleans(), notes, ids)

def test_manifest(holds, tmp_path):
    "Written and read, it is the same; written again, the same bytes; the order of rows does not matter."
    from hcms.data.manifests import COLUMNS, Manifest, read_manifest, write_manifest
    letters = st.characters(exclude_categories=['Cs', 'Cc'])
    label = st.text(letters, min_size=1, max_size=10).map(str.strip)
    label = label.filter(lambda o: o and '|' not in o and o.lower()!='nan')
    row = st.tuples(
        st.text(ID, min_size=1, max_size=12),
        st.sampled_from(['training', 'validation', 'testing']),
        st.lists(label, min_size=1, max_size=3, unique=True))
    rows = st.lists(row, min_size=1, max_size=6, unique_by=lambda o: o[0])
    def f(rows, note):
        filled = [(id, f'{id}.mp4', split, '|'.join(labels), note) for id,split,labels in rows]
        df = pd.DataFrame(filled, columns=[*COLUMNS, 'note'])
        m = Manifest(df)
        p = write_manifest(m, tmp_path/'m.csv')
        back = read_manifest(p)
        data = p.read_bytes()
        assert back.fingerprint==m.fingerprint==Manifest(df[::-1]).fingerprint
        assert back.df.equals(m.df) and back.classes==m.classes
        write_manifest(back, p)
        assert p.read_bytes()==data
    holds('manifest: what is written is read, order of rows does not matter', f,
        rows, st.text(letters, max_size=10))

# fuzzing

def mutated(data:bytes, rng) -> bytes:
    "Bytes flipped, set, cut, doubled, swapped or put in: a few at a time."
    b = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if not b:
            break
        i = rng.randrange(len(b))
        n = rng.choice((1, 1, 2, 4, 8, 64))
        what = rng.randrange(7)
        if what==0:
            b[i] ^= 1<<rng.randrange(8)
        elif what==1:
            b[i:i+n] = rng.choice((b'\0', b'\xff', b'\x7f', b'\x80'))*n
        elif what==2:
            b[i:i+n] = rng.randbytes(n)
        elif what==3:
            del b[i:i+n]
        elif what==4:
            b[i:i] = b[i:i+n]
        elif what==5:
            j = rng.randrange(len(b))
            b[i:i+n],b[j:j+n] = b[j:j+n],b[i:i+n]
        else:
            del b[i:]
    return bytes(b)

def fuzz(path, data, read, n, seed):
    "Read a mutated file so many times; it is read, or refused with an `InputError`: (read, refused)."
    rng = random.Random(seed)
    ended = [0, 0]
    for _ in range(n):
        path.write_bytes(mutated(data, rng))
        ended[isinstance(ends_well(read), InputError)] += 1
    return ended

def annotations(tmp_path):
    "Cases of `cases`: ActivityNet's file and FCVID's two."
    import json
    from hcms.data.owners import activitynet_manifest, fcvid_manifest
    video = dict(subset='training', duration=3.5, annotations=[dict(label='a', segment=[0, 1])])
    tree = dict(taxonomy=[dict(nodeId=1, nodeName='a', parentId=0)], database=dict(v0=video, v1=video))
    path = tmp_path/'a.json'
    data = json.dumps(tree).encode()
    yield "ActivityNet's annotations",path,data,lambda: activitynet_manifest(path, tmp_path),400,40_000
    split = tmp_path/'s.txt'
    labels = tmp_path/'l.txt'
    split.write_text('a/v1.mp4 train\nb/v2.flv test\n')
    labels.write_text('0 1 0\n1 0 1\n')
    read = lambda: fcvid_manifest(split, labels, tmp_path)
    yield "FCVID's split",split,split.read_bytes(),read,200,20_000
    yield "FCVID's labels",labels,labels.read_bytes(),read,200,20_000

def pretrained(tmp_path):
    "Cases of `cases`: files of weights."
    from safetensors.torch import save
    from test_weights import random_yamnet, write_keras, write_tflite
    from hcms.networks.backbones import read_keras, read_tflite
    from hcms.networks.weights import read_state
    net = random_yamnet(.05)
    tflite = tmp_path/'y.tflite'
    write_tflite(net, tflite, int8=True)
    yield 'TFLite weights',tflite,tflite.read_bytes(),lambda: read_tflite(tflite),150,10_000
    keras = tmp_path/'y.h5'
    write_keras(net, keras)
    yield 'Keras weights (HDF5)',keras,keras.read_bytes(),lambda: read_keras(keras),80,5000
    state = {f'layer{i}.weight': torch.randn(3, 4) for i in range(3)}
    safe = tmp_path/'w.safetensors'
    yield 'state dicts (safetensors)',safe,save(state),lambda: read_state(safe),400,20_000
    pickled = tmp_path/'w.pt'
    torch.save(state, pickled)
    yield 'state dicts (torch)',pickled,pickled.read_bytes(),lambda: read_state(pickled),150,10_000

def cases(tmp_path):
    "Of each: name, path, bytes, reader, executions in short, in full."
    from hcms.data.manifests import Manifest, read_manifest, write_manifest
    from hcms.data.store import PackedView, pack
    view = FeatureStore(tmp_path/'s').extractor('audio', dict(model='x'))
    torch.manual_seed(0)
    for i in range(3):
        view.put(f'v{i}', torch.randn(4, 6), meta=dict(note='ä'))
    feature = view.path('v1')
    yield 'the store: feature files',feature,feature.read_bytes(),lambda: view.get('v1'),400,40_000
    p, = pack(view)
    yield 'the store: packs',p,p.read_bytes(),lambda: PackedView(view).load(['v0', 'v1', 'v2']),400,40_000
    rows = []
    for i,labels in enumerate(('a', 'b|ä', 'c, "d"')):
        rows.append(dict(id=f'v{i}', path=f'{i}.mp4', split='training', labels=labels))
    path = write_manifest(Manifest(pd.DataFrame(rows)), tmp_path/'m.csv')
    data = path.read_bytes()
    path.with_suffix('.sha256').unlink()
    yield 'manifests',path,data,lambda: read_manifest(path),400,40_000
    yield from annotations(tmp_path)
    yield from pretrained(tmp_path)

def test_readers_survive_any_bytes(tmp_path, tally, full):
    for k,(what,path,data,read,short,long) in enumerate(cases(tmp_path)):
        a,b = fuzz(path, data, read, long if full else short, k)
        path.write_bytes(data)
        tally('fuzzing', f'{what}, executions', 'read, or refused with a reason; no other end', a+b)
        assert b, f'{what}: nothing was ever refused'
