__version__ = "0.1.0"

# Where the names live that can be imported from hcms itself; each module is loaded when it is first asked for
_PUBLIC = dict(
    HCMS='method.hlstm', hcms_loss='method.losses',
    mean_average_precision='evaluation.metrics', average_precision='evaluation.metrics',
    PAPER_PRICES='evaluation.costs', video_gflops='evaluation.costs',
    FeatureStore='data.store', read_steps='media.files', log_mel_patches='media.files',
    load_backbones='networks.backbones', YAMNet='networks.backbones',
    predict='inference.infer', Stream='inference.infer', Recognizer='inference.recognizer',
)
__all__ = [*_PUBLIC]

def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module
    return getattr(import_module(f'{__name__}.{_PUBLIC[name]}'), name)

def __dir__():
    return sorted([*globals(), *_PUBLIC])
