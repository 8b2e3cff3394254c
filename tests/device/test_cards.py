"""Every op on a card that is not the current one, on inputs that are slices, within a graph, at grids of any size.

Tensors of the second card have shapes and addresses, but no memory; launches are kept, and nothing is compiled.
"""

import importlib

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from nntk.bench.suites.op_arguments import small_calls
from nntk.kernels import dispatch
from nntk.kernels.activations import Activation, Relu, encode
from nntk.kernels.assemble.triton import launch as assemble
from nntk.kernels.attention.triton import launch as attention
from nntk.kernels.local_ntk.triton import launch as local_ntk
from nntk.kernels.perturb.triton import launch as perturb
from nntk.kernels.philox.triton import launch as philox
from nntk.kernels.target import Target

CARD = torch.device("cuda", 1)
IN_FLOAT64 = ("radial_weights",)
"""Ops whose kernels are for float64; those of the others are for float32."""


def meta(*shape, dtype=torch.float32):
    """Return a tensor that has a shape and no memory."""
    return torch.empty(*shape, dtype=dtype, device="meta")


def displacements(number):
    """Return stream numbers."""
    return meta(number, dtype=torch.int64)


def differences(samples, inputs, widths, directions, path, pairs="odd"):
    """Return a call for the differences of an MLP by one path."""
    layers = list(zip(widths[:-1], widths[1:], strict=True))
    weights, biases = [meta(h, k) for k, h in layers], [meta(h) for _, h in layers]
    activations = encode([Relu()] * (len(layers) - 1) + [Activation()])
    ordinals = [2 * layer for layer in range(len(layers))], [2 * layer + 1 for layer in range(len(layers))]
    return (
        meta(inputs, widths[0]), weights, biases, *activations, *ordinals, displacements(samples), meta(samples), 1, 2,
        directions, pairs, "difference", "bf16", 2**44, path,
    )  # fmt: skip


def launched_calls():
    """Yield every op with kernels in each form, and the differences of an MLP by each path."""
    for name, call in small_calls():
        if dispatch.REGISTERED[name].launch is None or "direct" in call:
            continue
        if name == "inner_product_of_gradients":
            # The unbiased form checks its weights on the host: see the last test.
            call = (*call[:-2], False, call[-1])
        yield name, call
    for directions, path in ROUTES:
        yield "mlp_differences", differences(3, 20, (60, 50, 40, 3), directions, path)


ROUTES = [
    *(("gaussian", path) for path in ("step", "stationary", "staged", "stacked", "fused")),
    *(("rademacher", path) for path in ("step", "staged", "stacked", "fused")),
    ("flipout(3)", "step"),
    ("lowrank(1)", "step"),
    ("lowrank(2)", "step"),
]
LAUNCHED = list(launched_calls())
MANY = 70_000
LARGE = [
    *(("unit_displacements", (displacements(MANY), 0, shape, 1, 2, family, torch.float32))
      for shape in ([4, 5], [5]) for family in ("gaussian", "flipout(2)")),
    ("squared_norms", ([meta(4, 5)], [0], displacements(MANY), 1, 2, "gaussian")),
    ("project_displacements", ([meta(64, 64)], [0], displacements(2048), 1, 2, "gaussian", 64 * 2049)),
    ("attention_scores", (meta(3000, 3000, 10), meta(3000, 10), "dot")),
    ("attention_statistics", (meta(2, 128 * MANY, 1), None, meta(2), meta(2), "given")),
    ("attention_weights", (meta(2, 128 * MANY, 1), None, meta(2), meta(2), meta(3, 128 * MANY), "given")),
    ("energy", (meta(2, 51_200, 1), None, meta(2), "rows", *[None] * 8, "trace")),
    ("structured_ntk", (meta(51_200, 3), None, [meta(1, 3)], [meta(1)], *encode([Activation()]), [0], [1], "trace")),
    ("displacement_products", (meta(100, 70), 70, 0, displacements(MANY), 1, 2, "lowrank(2)", 2**44)),
    *(("mlp_differences", differences(MANY, 100, (60, 64, 3), *route)) for route in ROUTES),
    ("mlp_differences", differences(1, 64 * MANY, (3, 16, 2), "rademacher", "step")),
    ("mlp_differences", differences(256 * MANY, 1, (1, 1), "flipout(2)", "step")),
]  # fmt: skip


class OnCard(torch.Tensor):
    """Tensor that says that it is on the second card. Reading its numbers on the host is an error, as in a graph."""

    device = property(lambda self: CARD)

    def data_ptr(self):
        """Return an address whose alignment is that of the place in its memory."""
        return 2**40 + self.storage_offset() * self.element_size()


class SecondCard(TorchFunctionMode):
    """The card that is current, the launches on it, and copies from the host."""

    def __init__(self):
        """The first card is current; nothing was launched."""
        super().__init__()
        self.current, self.launches, self.copies = [0], [], []

    def device(self, device):
        """Stand for ``torch.cuda.device``."""
        card = self

        class Current:
            def __enter__(self):
                card.current.append(torch.device(device).index)

            def __exit__(self, *_):
                card.current.pop()

        return Current()

    def launch(self, kernel, *arguments, grid, warmup, **options):
        """Stand for a launch: keep the current card, the grid, the arguments and the options."""
        self.launches.append((kernel.__name__, self.current[-1], grid, arguments, options))

    def __torch_function__(self, function, types, arguments=(), options=None):
        """Run a function; tensors that it makes on the card have no memory."""
        arguments, options = tree_map(
            lambda part: part.as_subclass(torch.Tensor) if isinstance(part, OnCard) else part,
            (arguments, dict(options or {})),
        )
        if options.get("device") == CARD:
            options["device"] = "meta"
        result = function(*arguments, **options)
        sources, results = (
            {part.device.type for part in tree_leaves(parts) if isinstance(part, torch.Tensor)}
            for parts in ((arguments, options), result)
        )
        made = function in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor)
        if "meta" in results and (made or "cpu" in sources):
            self.copies.append(str(function))
        return tree_map(
            lambda part: part.as_subclass(OnCard) if isinstance(part, torch.Tensor) and part.is_meta else part, result
        )


@pytest.fixture
def card(monkeypatch):
    """Return the second card, with kernels for an H200."""
    # The compiler keeps functions of torch.cuda when it is imported: those of PyTorch, not the stand-ins below.
    importlib.import_module("torch._dynamo")
    card = SecondCard()

    def target_of(device):
        assert device == CARD
        return Target("sm_90")

    for module in (assemble, attention, local_ntk, perturb, philox):
        monkeypatch.setattr(module, "target_of", target_of)
    for kind in (InterpretedFunction, JITFunction):
        monkeypatch.setattr(kind, "run", lambda kernel, *parts, **options: card.launch(kernel, *parts, **options))
    monkeypatch.setattr(dispatch, "obstacle_of", lambda device: "")
    monkeypatch.setattr(dispatch, "report_compilation", lambda device: None)
    monkeypatch.setattr(torch.cuda, "device", card.device)
    monkeypatch.setattr(torch.cuda, "synchronize", None)
    monkeypatch.setattr(torch.cuda, "stream", None)
    return card


def on_card(part, name, offset=0):
    """Return a tensor of the second card, ``offset`` elements behind the start of its memory."""
    if not isinstance(part, torch.Tensor):
        return part
    dtype = torch.float32 if part.dtype == torch.float64 and name not in IN_FLOAT64 else part.dtype
    return torch.empty(part.numel() + offset, dtype=dtype, device=CARD)[offset:].view(part.shape)


def run(card, name, call, offset=0):
    """Call an op as the dispatcher does for tensors on the second card; return its results."""
    with card:
        return dispatch.REGISTERED[name].launch(*tree_map(lambda part: on_card(part, name, offset), call))


def check(card):
    """Launches are on the card of their tensors and on its current stream; nothing is copied from the host."""
    assert card.current == [0] and card.copies == []
    for _, current, grid, arguments, options in card.launches:
        assert current == CARD.index and len(grid) == 1 and 0 < grid[0] < 2**31 and "stream" not in options
        for part in tree_leaves(arguments):
            tensor = getattr(part, "base", part)
            assert not isinstance(tensor, torch.Tensor) or tensor.device == CARD


@pytest.mark.filterwarnings("ignore:User provided device_type")
@pytest.mark.parametrize("offset", [0, 1, 2, 3, 4, 8])
@pytest.mark.parametrize(("name", "call"), LAUNCHED, ids=[name for name, _ in LAUNCHED])
def test_ops_on_the_second_card(name, call, offset, card):
    """Launches and results are on the card of the tensors, wherever in memory these begin."""
    results = run(card, name, call, offset)
    check(card)
    assert all(part.device == CARD for part in tree_leaves(results) if isinstance(part, torch.Tensor))


@pytest.mark.filterwarnings("ignore:User provided device_type")
def test_grids_beyond_16_bits(card):
    """Every kernel takes more than 65,535 programs; those of fixed weights are few by design."""
    for name, call in LARGE:
        run(card, name, call)
    check(card)
    largest = {}
    for name, _, (programs,), *_ in card.launches:
        largest[name] = max(largest.get(name, 0), programs)
    assert {name for name, programs in largest.items() if programs <= 65_535} == set()
    assert sorted(largest) == [
        "assign_bases", "form", "layer_pair", "layer_step", "project", "rank_update", "scores", "small_mlp",
        "stacked_step", "stationary_step", "statistics", "sum_squares", "unperturbed_layer", "weights",
        "write_noise", "write_rank_one", "write_vectors", "write_words",
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore:User provided device_type")
def test_ops_that_a_graph_cannot_capture(card):
    """The unbiased form refuses weights that no pair shares, and the direct form reads its scales: both wait."""
    waiting = [
        (name, call) for name, call in small_calls()
        if "direct" in call or (name == "inner_product_of_gradients" and call[-2])
    ]  # fmt: skip
    for name, call in waiting:
        with pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta tensors"):
            run(card, name, call)
    assert {name for name, _ in waiting} == {"mlp_differences", "inner_product_of_gradients"}
