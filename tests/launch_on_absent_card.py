"""Launch every kernel on a card that is not there: arguments are bound, specialised and compiled, and nothing runs.

The interpreter takes arguments as they are; here they meet Triton's own binding, with ones, None, tuples and
descriptors. A process of its own, since interpreted kernels cannot be compiled; ``make launches`` runs it under the
oldest version of Triton that is supported on a card, too.
"""

import re
import sys
from unittest.mock import patch

import torch
from conftest import inputs, mlp
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction
from triton_device import kernel_differences

from nntk.kernels.activations import encode
from nntk.kernels.assemble.triton import launch as assemble
from nntk.kernels.attention import attend
from nntk.kernels.attention.triton import launch as attention
from nntk.kernels.fixed_weights.triton import launch as fixed_weights
from nntk.kernels.local_ntk.triton import launch as local_ntk
from nntk.kernels.perturb.triton import group
from nntk.kernels.perturb.triton import launch as perturb
from nntk.kernels.philox.triton import launch as philox
from nntk.kernels.target import Target
from nntk.models.recognise import recognise

# Displacements, inputs of lines and of entries, outputs: Triton makes a constant of a one, and knows multiples of 16.
SHAPES = ((1, 1, 1, 1), (3, 16, 32, 2))


class AbsentCard:
    """Driver that answers Triton's questions before a launch, as an H200 would."""

    def get_current_target(self):
        """An H200."""
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        """The first."""
        return 0

    def get_current_stream(self, device):
        """The default."""
        return 0


def launch_perturbation():
    """Each family by each path."""
    routes = [("gaussian", path) for path in ("step", "stationary", "staged", "stacked", "fused")]
    routes += [("rademacher", path) for path in ("step", "staged", "stacked", "fused")]
    for directions, path in [*routes, ("flipout(3)", None), ("lowrank(1)", None), ("lowrank(2)", None)]:
        # Low rank's layers of few units are formed: one more has its factors multiplied, of h and d.
        hidden = (20, 20) if "lowrank" not in directions else (70, 70)
        for widths, number, activation in (((*hidden, 3), 20, "quantise"), ((70, *hidden, 3), 70, "relu"),
                                           ((1, 1, 1), 1, "relu")):  # fmt: skip
            scales = torch.full((3,), 0.1)
            model, x = mlp(*widths, activation=activation), inputs(number, widths[0])
            kernel_differences(model, x, torch.arange(3), scales, directions, precision="bf16", path=path)
        for q in (torch.ones(20, 20), torch.ones(3, 20, 20)):
            with patch.object(group, "SORTED_TOGETHER", 0):  # Operands are gathered in an order that no kernel writes.
                perturb.displacement_products(q, hidden[0], 0, torch.arange(3), 1, 2, directions, 2**27)
    philox.squared_norms([torch.zeros(5, 7), torch.zeros(1)], [0, 1], torch.arange(3), 1, 2, "gaussian")
    for directions in ("gaussian", "flipout(2)"):
        philox.unit_displacements(torch.arange(3), 0, [5, 7], 1, 2, directions, torch.float32)


def launch_energy(shape, weighting, halves):
    """One way to a weight, for entries of their own and for a symmetric kernel."""
    rows, n1, n2, outputs = shape
    pairs = (2,) if halves == 2 else ()
    d1, d2 = torch.ones(*pairs, rows, n1, outputs), torch.ones(*pairs, rows, n2, outputs)
    scales, call = torch.ones(rows).double(), [None] * 8
    if weighting == "weights":
        call = [torch.ones(rows, n1), torch.ones(rows, n2), *[None] * 6]
    elif weighting != "rows":
        one = torch.ones(rows)
        a, b = (attend(d, weighting, one, one, d.new_ones(d.shape[-2:]), d.new_ones(d.shape[:-1])) for d in (d1, d2))
        call = [a.values, b.values, a.keys, b.keys, one, one, a.statistics[0], b.statistics[0]]
        weighting = a.score
    alone = [None if place in (1, 3, 7) else argument for place, argument in enumerate(call)]
    for mode in ("trace", "diagonal", "full"):
        assemble.energy(d1, d2, scales, weighting, *call, mode)
        assemble.energy(d1, None, scales, weighting, *alone, mode)


def launch_attention(shape):
    """Both passes of every score, the scores, and projections."""
    rows, n, _, outputs = shape
    one = torch.ones(rows)
    for values in (torch.ones(rows, n, 1), torch.ones(2, rows, n, 1)):
        for score in ("dot", "distance", "given"):
            keys = torch.ones(n, 1) if score == "dot" else None
            attention.attention_statistics(values, keys, one, one, score)
            attention.attention_weights(values, keys, one, one, torch.ones(3, n).double(), score)
    for score, keys in (("dot", torch.ones(n, outputs)), ("distance", None)):
        attention.attention_scores(torch.ones(rows, n, outputs), keys, score)
    parameters = [torch.zeros(n, outputs), torch.zeros(n)]
    for directions in ("gaussian", "rademacher"):
        attention.project_displacements(parameters, [0, 1], torch.arange(rows), 1, 2, directions, rows)


def launch_structured(shape):
    """Every mode of outputs, for a network with biases."""
    _, n1, n2, outputs = shape
    layers = recognise(mlp(n1, 20, outputs)).layers
    tensors = [layer.weight for layer in layers], [layer.bias for layer in layers]
    call = (*tensors, *encode([layer.activation for layer in layers]), [0, 2], [1, 3])
    for mode in ("trace", "mean", "diagonal", "full"):
        for x2 in (None, inputs(n2, n1)):
            local_ntk.structured_ntk(inputs(n1, n1), x2, *call, mode)


def main():
    """Launch all of it, and print the kernels that compiled, with the op that each belongs to."""
    driver.set_active(AbsentCard())
    for module in (perturb, philox, assemble, attention, local_ntk):
        module.target_of = lambda device: Target("sm_90")
    run, compiled = JITFunction.run, set()

    def bind_and_compile(self, *arguments, grid, warmup, **options):
        op = self.fn.__module__.split(".")[-3]
        compiled.add(f"{op}.{self.__name__}")
        # The compiler's own choice has changed between versions.
        assert "enable_fp_fusion" in options, f"{self.__name__} does not say whether products and sums are fused"
        kernel = run(self, *arguments, grid=grid, warmup=True, **options)
        # The larger of a number and NaN must be NaN: without .NaN the instructions return the number.
        finite = re.search(r"\b(max|min)\.f32", kernel.asm["ptx"])
        # Sums of exponentials carry NaN by themselves.
        assert not finite or op == "attention", f"{self.__name__} makes NaN finite by {finite}"
        return kernel

    JITFunction.run = bind_and_compile
    launch_perturbation()
    for shape in SHAPES:
        for weighting, halves in (("rows", 1), ("weights", 1), ("dot", 1), ("dot", 2), ("distance", 2), ("given", 2)):
            launch_energy(shape, weighting, halves)
        launch_attention(shape)
        launch_structured(shape)
        for law, proposal in (("cauchy", "ball"), ("power", "exponential")):
            fixed_weights.radial_weights(torch.rand(shape[1]).double(), law, [1.0, 1.0], proposal, [2.0, 3.0])
    print(*sorted(compiled))


if __name__ == "__main__":
    sys.exit(main())
