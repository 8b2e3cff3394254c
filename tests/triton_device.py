"""The device of the kernels' tests: the GPU, else Triton's interpreter on the CPU."""

from collections import Counter

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nntk.kernels.activations import encode
from nntk.kernels.perturb.triton import kernel, launch, passes
from nntk.kernels.philox.triton import kernel as stream
from nntk.kernels.philox.triton import launch as philox
from nntk.kernels.target import Target
from nntk.models.recognise import recognise

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SEED = 5


def kernel_differences(*arguments, **options):
    """Unit differences and squared norms by the Triton kernels, on whatever they can run here."""
    return launch.mlp_differences.plain(*kernel_arguments(*arguments, **options))


def kernel_arguments(
    model, x, sample_ids, scales, directions, pairs="odd", precision="fp32", path=None, max_bytes=2**27
):
    """Arguments of the op for the differences of a model."""
    mlp = recognise(model.to(DEVICE))
    return (
        x.to(DEVICE),
        [layer.weight for layer in mlp.layers],
        [layer.bias for layer in mlp.layers],
        *encode([layer.activation for layer in mlp.layers]),
        [-1 if layer.weight_ordinal is None else layer.weight_ordinal for layer in mlp.layers],
        [-1 if layer.bias_ordinal is None else layer.bias_ordinal for layer in mlp.layers],
        sample_ids.to(DEVICE),
        scales.to(DEVICE),
        SEED,
        0,
        directions,
        pairs,
        "difference",
        precision,
        max_bytes,
        path,
    )


class NoKernel:
    """A kernel that does nothing, whatever its grid and arguments."""

    def __getitem__(self, grid):
        """Its launcher."""
        return lambda *arguments, **options: None


def without_kernels(monkeypatch):
    """Launch nothing, as if on an H200: what is left are the tensors around the kernels."""
    for module, names in (
        (passes, ("assign_bases", "sort_by_base", "unperturbed_layer")),
        (kernel, ("form", "layer_step", "stacked_step", "stationary_step", "project", "small_mlp")),
        (stream, ("write_noise", "write_rank_one", "write_vectors", "write_words", "sum_squares")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, NoKernel())
    for module in (launch, philox):
        monkeypatch.setattr(module, "target_of", lambda device: Target("sm_90"))


class Allocated(TorchDispatchMode):
    """Bytes of the tensors made inside that are alive at once; ``peak`` is their most."""

    def __init__(self):
        """Nothing yet."""
        super().__init__()
        self.peak, self._alive = 0, {}

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        """Run an operator, and count what it made."""
        before = {id(t.untyped_storage()) for t in tree_leaves((arguments, options)) if isinstance(t, torch.Tensor)}
        result = function(*arguments, **(options or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and id(tensor.untyped_storage()) not in before:
                storage = StorageWeakRef(tensor.untyped_storage())
                self._alive.setdefault(storage.cdata, (storage, tensor.untyped_storage().nbytes()))
        self._alive = {key: one for key, one in self._alive.items() if not one[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return result


class Operators(TorchDispatchMode):
    """Operators of PyTorch that are called inside, counted by name."""

    def __init__(self):
        """None yet."""
        super().__init__()
        self.called = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        """Run an operator, and count it."""
        self.called[str(function)] += 1
        return function(*arguments, **(options or {}))
