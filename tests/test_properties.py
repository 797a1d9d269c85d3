"Properties that must hold for anything that hypothesis thinks of, and readers that must survive whatever bytes they are given."
import random, shutil, string
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from hypothesis import HealthCheck, assume, given, settings, strategies as st
from hcms.core import InputError
from hcms.store import FeatureStore
from test_robustness import ends_well

def many(full): return settings(max_examples=1000 if full else 25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)

@pytest.fixture
def holds(tally, full):
    "Try a property on many examples, and tally how many."
    def check(what, f, *strategies):
        n = [0]
        def one(example): n[0] += 1; f(*example)
        many(full)(given(st.tuples(*strategies))(one))()
        tally('properties', what, 'held', n[0])
    return check

seeds,small = st.integers(0, 2**31),st.integers(1, 5)

def test_gates(holds):
    "With noise given, a hard gate is the larger of score and noise; its gradient is that of the soft one."
    from hcms.gating import SKIP, USE, gumbel_gate
    def f(seed, tau, n):
        g = torch.Generator().manual_seed(seed)
        scores,noise = torch.randn(n, 2, generator=g, dtype=torch.float64, requires_grad=True),torch.randn(n, 2, generator=g, dtype=torch.float64)
        hard,soft = (gumbel_gate(scores, tau, True, h, noise) for h in (True, False))
        assert torch.equal(hard.detach(), ((scores+noise)[:,USE]>(scores+noise)[:,SKIP]).double()) and ((soft>=0)&(soft<=1)).all()
        a,b = (torch.autograd.grad(o.sum(), scores, retain_graph=True)[0] for o in (hard, soft))
        assert torch.allclose(a, b) and torch.allclose(a[:,USE], -a[:,SKIP])
        assert torch.allclose(soft, torch.softmax((scores+noise)/tau, -1)[:,USE])      # Eq. 9 as printed
    holds('gates: the larger score decides, the gradient is the soft one, Eq. 9', f, seeds, st.floats(.05, 5), small)

def test_fusion(holds):
    "An open gate gives the new state, a shut one the lower head and the old tail, whatever the sizes; blending and selecting agree on decisions."
    from hcms.hlstm import fuse
    def f(seed, B, H, L, copy_cell):
        g = torch.Generator().manual_seed(seed)
        new,old,lower = ([torch.randn(B, k, generator=g) for _ in 'hc'] for k in (H, H, L))
        G = torch.randint(2, (B, 1), generator=g).float()
        a,b = (fuse(G, new, old, lower, copy_cell, blend) for blend in (True, False))
        for k in range(2):
            assert torch.equal(a[k], b[k])
            for r in range(B):
                w = min(H, L) if k==0 or copy_cell else 0
                want = new[k][r] if G[r]==1 else torch.cat([lower[k][r,:w], old[k][r,w:]])
                assert torch.equal(b[k][r], want)
    holds('fusion: open gates give the new state, shut ones head and tail', f, seeds, small, st.integers(1, 6), st.integers(1, 6), st.booleans())

def test_all_steps_at_once_are_the_steps_one_by_one(holds):
    from hcms.hlstm import HCMS
    def f(seed, B, T, sizes, nested, copy_cell):
        torch.manual_seed(seed)
        names = ('audio', 'appearance', 'motion')[:len(sizes)]
        model = HCMS(3, names, in_sizes=[4]*len(names), proj_sizes=[3]*len(names), hidden_sizes=sizes, nested=nested, copy_cell=copy_cell).eval()
        x = [torch.randn(B, T, 4)*3 for _ in names]
        with torch.no_grad():
            whole,state = model(*x),model.init_state(B)
            for t in range(T):
                state,gates = model.step(state, *(o[:,t] for o in x))
                assert torch.equal(gates, whole.gates[:,t]) and torch.allclose(model.read(state), whole.step_logits[:,t], atol=1e-5)
            if nested and len(names)>2: assert (whole.gates[...,1]<=whole.gates[...,0]).all()
    holds('fusion: all steps at once are the steps one by one, gates the same', f, seeds, small, small, st.lists(small, min_size=1, max_size=3), st.booleans(), st.booleans())

def test_ledger(holds):
    "The total is the sum of its items and never falls when a gate opens; its prices are a count by hand."
    from hcms.costs import gflops_per_video
    def f(seed, N, T, prices):
        rng = np.random.default_rng(seed)
        gates = (rng.random((N, T, 2))<rng.random(2)).astype('float32'); gates[...,1] *= gates[...,0]
        table = dict(zip(('audio', 'appearance', 'motion'), prices))
        d = gflops_per_video(gates, table)
        assert np.allclose(d.total, prices[0]*T + gates.sum(1)@np.array(prices[1:]), rtol=1e-9)
        assert np.allclose(d.drop(columns='total').select_dtypes('number').sum(1), d.total, rtol=1e-9)
        more = np.maximum(gates, (rng.random((N, T, 1))<.3)); assert (gflops_per_video(more.astype('float32'), table).total>=d.total-1e-9).all()
    holds('ledger: items add up, prices as by hand, never falls when a gate opens', f, seeds, small, small, st.lists(st.floats(0, 100), min_size=3, max_size=3))

def test_metrics(holds):
    "As sklearn has it; the order of videos and any rising function of the scores change nothing."
    from sklearn.metrics import average_precision_score
    from hcms.metrics import mean_average_precision
    def f(seed, N, C, digits):
        rng = np.random.default_rng(seed)
        s,t = rng.random((N, C)).round(digits),rng.random((N, C))<rng.random()
        assume(t.any())
        want = np.mean([average_precision_score(t[:,k], s[:,k]) for k in range(C) if t[:,k].any()])
        got,order = mean_average_precision(s, t),rng.permutation(N)
        assert got==pytest.approx(want, abs=1e-12) and mean_average_precision(s[order], t[order])==pytest.approx(got, abs=1e-12)
        assert mean_average_precision(np.round(s*10**digits)**3*7-4, t)==pytest.approx(got, abs=1e-12)
    holds("metrics: sklearn's values; order and rising functions change nothing", f, seeds, st.integers(1, 30), small, st.integers(1, 6))

def test_store(holds, tmp_path):
    "What is put is got, to the bit, with its mask and its notes; a second put changes nothing."
    n = [0]
    def f(seed, T, D, half, note, id):
        n[0] += 1
        view = FeatureStore(tmp_path/f's{n[0]}').extractor('audio', dict(model='x'))
        rng = np.random.default_rng(seed)
        x,mask = torch.tensor(rng.normal(0, 10, (T, D)), dtype=torch.float16 if half else torch.float32),torch.tensor(rng.random(T)<.5)
        assert view.put(id, x, mask, note) and not view.put(id, x+1, mask, note)
        got,m = view.get(id)
        assert torch.equal(got, x) and got.dtype==x.dtype and torch.equal(m, mask) and view.ids()==[id] and not view.verify()
        assert {k: v for k,v in view.meta(id).items() if k not in ('id', 'modality', 'fp')}==note
        shutil.rmtree(tmp_path/f's{n[0]}')
    notes = st.dictionaries(st.text(st.characters(exclude_categories=['Cs']), max_size=8).filter(lambda k: k not in ('id', 'modality', 'fp') and not k.startswith('crc32')), st.text(st.characters(exclude_categories=['Cs']), max_size=12), max_size=3)
    holds('store: what is put is got, and stays', f, seeds, small, small, st.booleans(), notes, st.text(string.ascii_letters+string.digits+'_-', min_size=1, max_size=64))

def test_manifest(holds, tmp_path):
    "Written and read, the same; written again, the same bytes; the order of rows does not matter."
    from hcms.manifests import COLUMNS, Manifest, read_manifest, write_manifest
    label = st.text(st.characters(exclude_categories=['Cs', 'Cc']), min_size=1, max_size=10).map(str.strip).filter(lambda o: o and '|' not in o and o.lower()!='nan')
    rows = st.lists(st.tuples(st.text(string.ascii_letters+string.digits+'_-', min_size=1, max_size=12), st.sampled_from(['training', 'validation', 'testing']), st.lists(label, min_size=1, max_size=3, unique=True)), min_size=1, max_size=6, unique_by=lambda o: o[0])
    def f(rows, note):
        df = pd.DataFrame([(i, f'{i}.mp4', s, '|'.join(l), note) for i,s,l in rows], columns=[*COLUMNS, 'note'])
        m = Manifest(df)
        p = write_manifest(m, tmp_path/'m.csv')
        back,data = read_manifest(p),p.read_bytes()
        assert back.fingerprint==m.fingerprint==Manifest(df[::-1]).fingerprint and back.df.equals(m.df) and back.classes==m.classes
        write_manifest(back, p); assert p.read_bytes()==data
    holds('manifest: what is written is read, order of rows does not matter', f, rows, st.text(st.characters(exclude_categories=['Cs', 'Cc']), max_size=10))

# fuzzing

def mutated(data:bytes, rng) -> bytes:
    "Bytes flipped, set, cut, doubled, swapped or put in: a few at a time."
    b = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if not b: break
        i,n = rng.randrange(len(b)),rng.choice((1, 1, 2, 4, 8, 64))
        what = rng.randrange(7)
        if what==0: b[i] ^= 1<<rng.randrange(8)
        elif what==1: b[i:i+n] = rng.choice((b'\0', b'\xff', b'\x7f', b'\x80'))*n
        elif what==2: b[i:i+n] = rng.randbytes(n)
        elif what==3: del b[i:i+n]
        elif what==4: b[i:i] = b[i:i+n]
        elif what==5: j = rng.randrange(len(b)); b[i:i+n],b[j:j+n] = b[j:j+n],b[i:i+n]
        else: del b[i:]
    return bytes(b)

def fuzz(path, data, read, n, seed):
    "Read a mutated file so many times; it is read, or refused with an `InputError`: (read, refused)."
    rng,ended = random.Random(seed),[0, 0]
    for _ in range(n):
        path.write_bytes(mutated(data, rng))
        ended[isinstance(ends_well(read), InputError)] += 1
    return ended

def cases(tmp_path):
    "name -> (path, bytes, reader, executions in short, in full)"
    import json
    from test_weights import random_yamnet, write_keras, write_tflite
    from hcms.annotations import activitynet_manifest, fcvid_manifest
    from hcms.formats import read_keras, read_tflite
    from hcms.manifests import Manifest, read_manifest, write_manifest
    from hcms.packs import PackedView, pack
    from hcms.weights import read_state
    from safetensors.torch import save
    view = FeatureStore(tmp_path/'s').extractor('audio', dict(model='x'))
    torch.manual_seed(0)
    for i in range(3): view.put(f'v{i}', torch.randn(4, 6), meta=dict(note='ä'))
    feature = view.path('v1'); yield 'the store: feature files',feature,feature.read_bytes(),lambda: view.get('v1'),400,40_000
    p, = pack(view); yield 'the store: packs',p,p.read_bytes(),lambda: PackedView(view).load(['v0', 'v1', 'v2']),400,40_000
    m = Manifest(pd.DataFrame([dict(id=f'v{i}', path=f'{i}.mp4', split='training', labels=l) for i,l in enumerate(('a', 'b|ä', 'c, "d"'))]))
    path = write_manifest(m, tmp_path/'m.csv'); data = path.read_bytes(); path.with_suffix('.sha256').unlink()
    yield 'manifests',path,data,lambda: read_manifest(path),400,40_000
    tree = dict(taxonomy=[dict(nodeId=1, nodeName='a', parentId=0)], database={f'v{i}': dict(subset='training', duration=3.5, annotations=[dict(label='a', segment=[0, 1])]) for i in range(2)})
    yield "ActivityNet's annotations",tmp_path/'a.json',json.dumps(tree).encode(),lambda: activitynet_manifest(tmp_path/'a.json', tmp_path),400,40_000
    (tmp_path/'s.txt').write_text('a/v1.mp4 train\nb/v2.flv test\n'); (tmp_path/'l.txt').write_text('0 1 0\n1 0 1\n')
    for name in ('s', 'l'): yield f"FCVID's {dict(s='split', l='labels')[name]}",tmp_path/f'{name}.txt',(tmp_path/f'{name}.txt').read_bytes(),lambda: fcvid_manifest(tmp_path/'s.txt', tmp_path/'l.txt', tmp_path),200,20_000
    net = random_yamnet(.05)
    write_tflite(net, tmp_path/'y.tflite', int8=True); yield 'TFLite weights',tmp_path/'y.tflite',(tmp_path/'y.tflite').read_bytes(),lambda: read_tflite(tmp_path/'y.tflite'),150,10_000
    write_keras(net, tmp_path/'y.h5'); yield 'Keras weights (HDF5)',tmp_path/'y.h5',(tmp_path/'y.h5').read_bytes(),lambda: read_keras(tmp_path/'y.h5'),80,5000
    state = {f'layer{i}.weight': torch.randn(3, 4) for i in range(3)}
    yield 'state dicts (safetensors)',tmp_path/'w.safetensors',save(state),lambda: read_state(tmp_path/'w.safetensors'),400,20_000
    torch.save(state, tmp_path/'w.pt'); yield 'state dicts (torch)',tmp_path/'w.pt',(tmp_path/'w.pt').read_bytes(),lambda: read_state(tmp_path/'w.pt'),150,10_000

def test_readers_survive_any_bytes(tmp_path, tally, full):
    for k,(what,path,data,read,short,long) in enumerate(cases(tmp_path)):
        a,b = fuzz(path, data, read, long if full else short, k)
        path.write_bytes(data)
        tally('fuzzing', f'{what}, executions', 'read, or refused with a reason; no other end', a+b)
        assert b, f'{what}: nothing was ever refused'
