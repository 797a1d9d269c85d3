"""Other networks than the paper's, from videos to tables, without a change of the library."""
import json
from unittest import mock
import pytest
from test_full_size import write_annotations, write_clip

STEPS = 12   # Fig. 3 has ten evenly spaced views
CHOSEN = ('pytorchvideo/x3d_xs', 'timm/test_efficientnet')

@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    "ActivityNet's layout with 22 clips, X3D-XS and a small EfficientNet in place of the paper's networks."
    root = tmp_path_factory.mktemp('data')
    videos = root/'activitynet'/'videos'
    videos.mkdir(parents=True)
    splits = ['training']*20+['validation']*2
    rows = [(f'video_{n:05}', split, ('Archery', 'Kayaking')[n%2]) for n,split in enumerate(splits)]
    for n,(id,_,label) in enumerate(rows):
        write_clip(videos/f'v_{id}.mp4', label, n)
    write_annotations(root/'activity_net.v1-3.min.json', rows)
    with pytest.MonkeyPatch.context() as m:
        m.setenv('HCMS_DATA', str(root))
        m.setenv('HCMS_HOME', str(tmp_path_factory.mktemp('home')))
        from typer.testing import CliRunner
        from hcms.cli import app
        def hcms(*args):
            result = CliRunner().invoke(app, [str(o) for o in args])
            assert result.exit_code==0, (args, result.output, result.exception)
            return result.output
        hcms('manifest', 'activitynet', '--annotations', root/'activity_net.v1-3.min.json')
        networks = [w for o in CHOSEN for w in ('--network', o)]
        hcms('weights', 'activitynet', '--weights', 'random', *networks)
        hcms('finetune', 'activitynet', '--train', 'head', '--epochs', 1, '--steps', 1, '--workers', 1)
        said = hcms('extract', 'activitynet', '--steps', STEPS, '--workers', 1)
        assert '22 videos extracted' in said
        from hcms.experiments.datasets import Dataset
        yield Dataset('activitynet')

def test_features_come_from_the_networks_that_were_chosen(prepared):
    names = {m: n.name for m,n in prepared.backbones.networks.items()}
    assert names==dict(audio='yamnet', appearance=CHOSEN[1], motion=CHOSEN[0])
    x = prepared.split('training').x
    assert {m: v.shape[-1] for m,v in x.items()}==dict(audio=1024, appearance=256, motion=2048)
    made = json.loads((prepared.views['motion'].folder/'extractor.json').read_text())
    assert made['options']==dict(name='x3d_xs') and made['media']['clip_frames']==4
    assert prepared.sources()['backbones']['motion']['network']==CHOSEN[0]

def test_a_network_is_billed_at_its_own_counted_price(prepared):
    "Counted again by hooks on each convolution and linear layer, and nothing like SlowFast's 65.7 GFLOPs."
    import torch
    from hcms.networks.backbones import build_backbone
    from torch import nn
    macs = []
    def count(module, inputs, output):
        macs.append(module.weight[0].numel()*output.numel())
    net = build_backbone(CHOSEN[0]).eval()
    for m in net.modules():
        if isinstance(m, (nn.Conv3d, nn.Linear)):
            m.register_forward_hook(count)
    with torch.no_grad():
        net(torch.zeros(1, 4, 182, 182, 3, dtype=torch.uint8))
    assert prepared.charged['motion']==pytest.approx(sum(macs)/1e9, rel=1e-6)
    assert prepared.charged['motion']<1

def test_tables_and_figures_charge_it(prepared):
    from hcms.baselines.rivals import EarlyFusion
    from hcms.data.descriptions import Plan
    from hcms.evaluation.costs import linear_macs, lstm_macs
    from hcms.experiments.runs import get_runs, variants
    from hcms.reports.figures import fig3, fig3_changes
    from hcms.reports.tables import table1, table1_configs
    small = dict(audio=8, appearance=12, motion=16)
    training = dict(proj_sizes=small, hidden_sizes=small, lr=8e-3, batch=4)
    plan = Plan(training=training)
    with mock.patch('hcms.experiments.datasets.plan_of', lambda preset: plan):
        configs = table1_configs(prepared, seeds=1, epochs=1, views=1)
        runs = get_runs(prepared, configs, workers=1)
        rows = table1(prepared, runs)
        always = rows[(rows.modalities=='A + I + M') & (rows.method=='LSTM') & (rows.views==STEPS)].iloc[0]
        early = next(r.model for r in runs if r.config.model=='early' and len(r.config.modalities)==3)
        assert isinstance(early, EarlyFusion)
        own = STEPS*(sum(map(linear_macs, early.project))+lstm_macs(early.lstm))+linear_macs(early.head)
        want = STEPS*sum(prepared.charged.values())+own/1e9
        assert always.gflops_mean==pytest.approx(want, rel=1e-9)==always.gflops_measured_mean
        runs = get_runs(prepared, variants(prepared, fig3_changes(), 1, 1), workers=1)
        figure = fig3(prepared, runs)
        assert figure[figure.method=='UNIFORM'].gflops_mean.max()==pytest.approx(want, rel=1e-9)
        assert figure.gflops_mean.max()<prepared.steps*65
