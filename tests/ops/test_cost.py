"""Declared costs against what the references really do: products counted by PyTorch, memory by what an op touches."""

import inspect
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from nntk.bench.suites.op_arguments import small_calls
from nntk.kernels.assemble import reference as assembly
from nntk.kernels.dispatch import REGISTERED, cost_of
from nntk.kernels.local_ntk import reference as local
from nntk.kernels.philox.source import PLAIN, Source

SIZES = (1, 2, 3)
# PyTorch's counter knows the product that adds, and not its form in place, nor the sum of squares.
PRODUCTS = {
    torch.ops.aten.baddbmm_: lambda onto, a, b, out_shape, **_: 2 * math.prod(a) * b[2],
    torch.ops.aten.linalg_vector_norm: lambda a, *_, out_shape, **__: 2 * math.prod(a),
}
CALLS = [(size, number, name) for size in SIZES for number, (name, _) in enumerate(small_calls(size=size))]
each = pytest.mark.parametrize(("size", "number", "name"), CALLS, ids=[f"{n}-{size}" for size, _, n in CALLS])


class Touched(TorchDispatchMode):
    """Observer of the tensors whose values an operator reads; shapes and views alone do not count."""

    def __init__(self, tensors):
        """None yet."""
        super().__init__()
        self.storages = {tensor.untyped_storage()._cdata: tensor for tensor in tensors}
        self.seen = set()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        """Run an operator, and note what it reads."""
        if not function.is_view and "new_" not in str(function) and "detach" not in str(function):
            tensors = [leaf for leaf in tree_leaves((arguments, options)) if isinstance(leaf, torch.Tensor)]
            self.seen |= {tensor.untyped_storage()._cdata for tensor in tensors}
        return function(*arguments, **(options or {}))

    @property
    def bytes(self):
        """Bytes of those that were read."""
        return sum(tensor.nbytes for storage, tensor in self.storages.items() if storage in self.seen)


@pytest.fixture(autouse=True)
def single_lines(monkeypatch):
    """Blocks of one input: of a symmetric kernel nothing is computed twice."""
    monkeypatch.setattr(assembly, "_BLOCK", 1)
    monkeypatch.setattr(local, "_MIN_BLOCK", 0)


@each
def test_products(size, number, name):
    """Two operations for each multiply-add of the reference, but for products that compiled kernels share."""
    name, arguments = small_calls(size=size)[number]
    with FlopCounterMode(display=False, custom_mapping=PRODUCTS) as counted:
        REGISTERED[name].reference(*arguments)
    declared = cost_of(name, arguments).flops
    if counted.get_total_flops() == 0:
        # Scores are products that the reference does elementwise.
        assert declared == (2 * arguments[0].numel() if "dot" in arguments else 0)
        return
    scores = 2 * 2 * arguments[0].numel() if name == "energy" and "dot" in arguments else 0
    assert counted.get_total_flops() + scores == declared + (shared(*arguments) if name == "mlp_differences" else 0)


def shared(x, weights, *others):
    """Operations that both members of a pair share by q E^T = h E^T +- s d E^T, which the reference does twice."""
    ordinals, sample_ids, directions, pairs, propagation = (others[i] for i in (3, 5, 9, 10, 11))
    if pairs == "none" or propagation == "direct" or "(" in directions:
        return 0
    sizes = [w.numel() for w, ordinal in zip(weights[1:], ordinals[1:], strict=True) if ordinal >= 0]
    return 2 * len(sample_ids) * len(x) * sum(sizes)


@each
def test_memory(size, number, name):
    """Every argument that is read, once, and every result."""
    name, arguments = small_calls(size=size)[number]
    tensors = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, torch.Tensor)]
    with Touched(tensors) as touched:
        result = REGISTERED[name].reference(*arguments)
    results = sum(tensor.nbytes for tensor in (result if isinstance(result, tuple) else (result,)))
    assert cost_of(name, arguments).bytes == touched.bytes + results


@each
def test_random_numbers(size, number, name):
    """Every number that the stream makes, each once."""
    name, arguments = small_calls(size=size)[number]
    result = {"normals": 0, "signs": 0}

    def counting(kind):
        def generate(*arguments, **options):
            noise = getattr(PLAIN, kind)(*arguments, **options)
            result[kind] += sum(part.numel() for part in noise)
            return noise

        return generate

    reference = REGISTERED[name].reference
    takes_noise = "source" in inspect.signature(reference).parameters
    reference(*arguments, **({"source": Source(counting("normals"), counting("signs"))} if takes_noise else {}))
    cost = cost_of(name, arguments)
    assert (cost.normals, cost.signs) == (result["normals"], result["signs"])


def test_a_cost_needs_no_memory():
    """Shapes alone are read: of a call that no machine could hold."""
    d = torch.empty(2**20, 2**20, 10, device="meta")
    rows = torch.empty(2**20, device="meta", dtype=torch.float64)
    cost = cost_of("energy", (d, None, rows, "rows", *(None,) * 8, "trace"))
    assert cost.flops == 2**20 * 2**20 * (2**20 + 1) * 10 and cost.bytes == d.nbytes + rows.nbytes + 4 * 2**40
