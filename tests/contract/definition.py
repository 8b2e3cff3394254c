"""The definition: the model itself at displaced parameters, in float64, one input at a time."""

import copy
import random
import sys
from contextlib import contextmanager, nullcontext, suppress

import numpy as np
import torch
from snapshot import Snapshot, freeze_module, same
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Definition:
    """A model that is evaluated and differentiated by plain PyTorch.

    A pure model is evaluated itself, with other numbers in its parameters and buffers for the moment; one that writes
    to itself is evaluated on a fresh deep copy each time.

    Args:
        model: The model.
        x: Inputs, [N, ...].

    Attributes:
        dtype: float64 where the model can be evaluated in it, else its own.
        lowest: The least precise floating dtype that an evaluation computes in.
        note: A remark for reports where those differ from float64.
    """

    def __init__(self, model, x):
        self.model, self.x = model, x
        self.is_pure = self._is_pure()
        self.dtype, self.note = torch.float64, ""
        try:
            self._outputs(x, torch.float64)
        except Exception:
            self.dtype, self.note = next(model.parameters()).dtype, ", it has no float64"
        self.lowest = self._lowest_precision()
        if self.lowest != torch.float64 and not self.note:
            self.note = f", it computes in {str(self.lowest).removeprefix('torch.')} within"

    def _is_pure(self):
        probe = private_copy(self.model)
        state = freeze_module(probe)
        with same_generators(), suppress(Exception), torch.no_grad():
            probe(self.x[:1].clone())
        return same(state, freeze_module(probe))

    @contextmanager
    def at(self, dtype, values=None):
        """Yield the model with its floating tensors in a dtype, and with some values of parameters by name."""
        module = self.model if self.is_pure else private_copy(self.model)
        tensors = {**dict(module.named_buffers()), **dict(module.named_parameters())}
        held = {name: tensor.data for name, tensor in tensors.items()}
        # A hook of weight norm or pruning assigns the weight that it computes.
        attributes = [(vars(part), dict(vars(part))) for part in module.modules()]
        with same_generators(), eager():
            try:
                for name, tensor in tensors.items():
                    tensor.data = (values or {}).get(name, cast(held[name], dtype))
                yield module
            finally:
                for name, tensor in tensors.items():
                    tensor.data = held[name]
                for now, before in attributes:
                    now.clear()
                    now.update(before)

    def _outputs(self, x, dtype, values=None):
        with torch.no_grad(), self.at(dtype, values) as module:
            return module(cast(x, dtype).clone())

    def _lowest_precision(self):
        one = cast(self.x[:1], self.dtype).clone()
        try:
            with torch.no_grad(), self.at(self.dtype) as module, LowestPrecision() as mode:
                module(one)
        except Exception:
            return self.dtype
        return mode.lowest

    def differences(self, deltas, disturb):
        """Return the odd parts [f(x_n; theta + delta_m) - f(x_n; theta - delta_m)] / 2 input by input, [M, N, C].

        Args:
            deltas: Displacements, each as tensors by name.
            disturb: Change the parameters of the plus member by one unit in the last place.
        """
        rows = []
        for delta in deltas:
            plus, minus = self._displaced(delta, 1, disturb), self._displaced(delta, -1, False)
            singles = self.x.split(1)
            rows.append(torch.cat([(self._at_one(plus, x) - self._at_one(minus, x)) / 2 for x in singles]))
        return torch.stack(rows)

    def _at_one(self, values, x):
        return self._outputs(x, self.dtype, values).detach().double().reshape(1, -1)

    def _displaced(self, delta, sign, disturb):
        """Return values of the displaced parameters by their names in the model."""
        base = dict(self.model.named_parameters())
        generator, values = torch.Generator().manual_seed(0), {}
        for name, part in delta.items():
            # A wrapper (DataParallel, torch.compile) has another name for the parameter of the module within.
            place = name if name in base else next(full for full in base if full.endswith(f".{name}"))
            value = base[place].detach().to(self.dtype) + sign * part.to(self.dtype)
            if disturb:
                signs = torch.randint(0, 2, value.shape, generator=generator).to(self.dtype) * 2 - 1
                value = value * (1 + signs * torch.finfo(self.lowest).eps)
            values[place] = value
        return values

    def gram(self, dtype):
        """Return the local NTK, [N, N], from gradients of single outputs at single inputs; zero where there is none."""
        rows = []
        for one in self.x.split(1):
            with torch.enable_grad(), self.at(dtype) as module:
                outputs = module(cast(one, dtype).clone()).reshape(-1)
                leaves = [parameter for parameter in module.parameters() if parameter.requires_grad]
                rows.append(torch.stack([gradient(output, leaves) for output in outputs]))
        jacobian = torch.stack(rows).double()
        return torch.einsum("ncd,kcd->nk", jacobian, jacobian)


def gradient(output, leaves):
    """Return the gradient of one output, [d]; zero for a parameter that it does not depend on."""
    found = [None] * len(leaves)
    if output.requires_grad:
        found = torch.autograd.grad(output, leaves, retain_graph=True, allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(found, leaves, strict=True)])


class LowestPrecision(TorchDispatchMode):
    """Context that notes the least precise floating dtype of any result of more than one entry."""

    lowest = torch.float64

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.numel() > 1:
                self.lowest = max(self.lowest, tensor.dtype, key=lambda dtype: torch.finfo(dtype).eps)
        return result


@contextmanager
def same_generators(seed=None):
    """Put the global generators back afterwards; with a seed, begin from it."""
    before = Snapshot(None, None)
    if seed is not None:
        torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)  # noqa: B018
    try:
        yield
    finally:
        before.restore_generators()


def eager():
    """Return a context in which functions of ``torch.compile`` run as they are written."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def cast(x, dtype):
    """Return floating tensors in a dtype, others as they are."""
    return x.to(dtype) if x.is_floating_point() else x


def seeded_outputs(model, x):
    """Return the outputs of a copy under a fixed state of the generators."""
    with same_generators(seed=0), torch.no_grad(), eager():
        return private_copy(model)(x.clone())


def private_copy(model):
    """Return a deep copy, also of a model that holds results with a history (legacy weight norm, pruning) or a lock."""
    memo = {}
    for value in (value for module in model.modules() for value in vars(module).values()):
        if isinstance(value, Tensor) and not value.is_leaf:
            memo[id(value)] = value.detach().clone()
        elif not isinstance(value, Tensor | dict | bool | int | str | None):
            try:
                copy.deepcopy(value)
            except Exception:
                memo[id(value)] = value
    return copy.deepcopy(model, memo)
