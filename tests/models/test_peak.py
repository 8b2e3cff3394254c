"""The plan of a kernel bounds the memory that a call takes, counted as the tensors that live at the same time."""

import weakref

import pytest
from conftest import inputs, mlp
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nntk import Attention, NonlocalNTK


class Peak(TorchDispatchMode):
    """Context that counts the bytes of all tensors that operators make, as long as they live."""

    def __init__(self):
        """Begin without tensors."""
        super().__init__()
        self.tensors, self.sizes, self.given, self.peak = {}, {}, set(), 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        """Run an operator, and count its results unless they share memory with what was there before."""
        for leaf in tree_leaves((arguments, options)):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in self.sizes:
                self.given.add(leaf.untyped_storage().data_ptr())
        result = function(*arguments, **(options or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.count(leaf, function.is_view)
        self.peak = max(self.peak, sum(self.sizes.values()))
        return result

    def count(self, leaf, is_view):
        """Count a tensor until it is gone."""
        address, size = leaf.untyped_storage().data_ptr(), leaf.untyped_storage().nbytes()
        if size and not (is_view and address in self.given and address not in self.sizes):
            self.sizes[address] = size
            self.tensors[address] = self.tensors.get(address, 0) + 1
            weakref.finalize(leaf, self.drop, address)

    def drop(self, address):
        """Forget a tensor, and the memory with its last one."""
        self.tensors[address] -= 1
        if not self.tensors[address]:
            del self.tensors[address], self.sizes[address]


def wrapped(*layers):
    """Return a module that is not recognised as an MLP."""
    return nn.Sequential(nn.Sequential(*layers), nn.LayerNorm(layers[-1].weight.shape[0]))


MODELS = {
    "layers": (mlp(32, 64, 10), inputs(128, 32)),
    "rules": (wrapped(*mlp(32, 64, 10)), inputs(128, 32)),
    "copies": (wrapped(nn.Linear(32, 64), nn.Softsign(), nn.Linear(64, 10)), inputs(128, 32)),
    "images": (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
        inputs(8, 3 * 64 * 64).view(8, 3, 64, 64),
    ),
}
SETTINGS = {
    "energy": {},
    "plugin": {"estimator": "plugin"},
    "unbiased": {"estimator": "unbiased"},
    "full": {"outputs": "full"},
    "attention": {"weights": Attention()},
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("model", MODELS)
def test_the_plan_bounds_the_peak(model, settings):
    """For each path, estimator and treatment of outputs; for one set of inputs, and for two."""
    module, x = MODELS[model]
    kernel = NonlocalNTK(module, samples=16, max_memory=2**21, **SETTINGS[settings])
    for arguments in ((x,), (x, x[: len(x) // 2])):
        plan = kernel.plan(*arguments)
        with Peak() as peak:
            kernel(*arguments)
        assert 0 < peak.peak <= plan.total, str(plan)
