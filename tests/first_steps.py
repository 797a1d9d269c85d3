"A policy of one's own, as a user would write it: test_notebooks names this module in HCMS_EXTENSIONS."
import torch
from hcms.experiments.policies import Policy, ask, register_policy

class FirstSteps(Policy):
    "Audio always, appearance and motion at the first k time steps."
    def act(self, runs, view, setting):
        use = torch.zeros_like(view.split.x['audio'][...,:1]).expand(-1, -1, 3).float().clone()
        use[...,0] = 1
        use[:,:setting] = 1
        return ask(runs[0].model, view.split, use=use)

@register_policy
def first_steps():
    return FirstSteps('First steps', 'no learning', [dict(model='reader')], (1, 2, 4))
