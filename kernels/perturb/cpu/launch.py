"""The op on a CPU by compiled kernels: lanes evaluate tasks of displacements, each on one thread."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nntk.kernels.activations import decode
from nntk.kernels.cpu import lanes
from nntk.kernels.mlp import FLOAT64_COEFFICIENTS, Layer, displaced
from nntk.kernels.perturb import reference
from nntk.kernels.perturb.cpu import kernel
from nntk.kernels.perturb.cpu.config import plan_lanes, second_level_cache
from nntk.kernels.perturb.cpu.families import PROGRAMS, ExplicitProgram
from nntk.kernels.perturb.cpu.program import Array, Problem, Program, Workspace
from nntk.kernels.perturb.exactness import layers_with_ties, with_integer_rows
from nntk.kernels.perturb.noise import split_into_groups
from nntk.kernels.perturb.reference import UnperturbedPass
from nntk.kernels.philox.cpu.stream import Stream
from nntk.kernels.philox.directions import Directions, parse
from nntk.kernels.philox.source import source_of
from nntk.kernels.slices import slices

_PAIRS = {"none": 0, "odd": 1, "both": 2}
_PASS_INPUTS = 128
"""Inputs whose unperturbed pass is a task."""


def mlp_differences(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor | None],
    activations: list[str],
    activation_parameters: list[float],
    weight_ordinals: list[int],
    bias_ordinals: list[int],
    sample_ids: Tensor,
    scales: Tensor,
    seed_low: int,
    seed_high: int,
    directions: str,
    pairs: str,
    propagation: str,
    precision: str,
    max_bytes: int,
) -> tuple[Tensor, Tensor]:
    """Evaluate the op ``nntk::mlp_differences`` for CPU tensors; the reference takes what is not compiled."""
    # Not compiled are rounding to a precision of a GPU, pre-activations that may lie on a jump and are decided in
    # float64, scales whose inverse overflows, and direct evaluation of flipout and low rank, which saves no product.
    arguments = (
        x, weights, biases, activations, activation_parameters, weight_ordinals, bias_ordinals, sample_ids, scales,
        seed_low, seed_high, directions, pairs, propagation, precision, max_bytes,
    )  # fmt: skip
    family, is_direct = parse(directions), propagation == "direct"
    is_empty = not len(x) or not len(sample_ids)
    if precision != "fp32" or is_empty or (is_direct and family.count) or scales.min() < torch.finfo(x.dtype).tiny:
        return reference.mlp_differences(*arguments, source=source_of(x.device))
    layers = [
        Layer(_plain(weight), None if bias is None else _plain(bias), activation, _ordinal(w), _ordinal(b))
        for weight, bias, activation, w, b in zip(
            weights, biases, decode(activations, activation_parameters), weight_ordinals, bias_ordinals, strict=True
        )
    ]
    if not is_direct:
        layers = with_integer_rows(layers)
        if any(layers_with_ties(layers, precision, family.name)):
            return reference.mlp_differences(*arguments, source=source_of(x.device))
    members = 1 if pairs == "none" else 2
    widths = [x.shape[1], *(len(weight) for weight in weights)]
    plan = plan_lanes(
        len(x), len(sample_ids), widths, members, bool(family.count), x.element_size(), max_bytes, second_level_cache()
    )
    s = scales.to(x.dtype)
    mantissas = 2 * torch.frexp(s).mantissa
    problem = Problem(
        layers, family, Stream((seed_low, seed_high)), plan, members, sample_ids.numpy(), s.numpy(), mantissas.numpy(),
        (s / mantissas).numpy(),
    )  # fmt: skip
    out = x.new_empty(2 if pairs == "both" else 1, len(sample_ids), len(x), widths[-1])
    rows = out.flatten(2).numpy()
    num_params = sum(tensor.numel() for tensor in displaced(layers).values())
    norms = torch.full(sample_ids.shape, num_params, dtype=torch.float64)
    tasks = _tasks(family, sample_ids, plan.task_samples)
    most = max(1, (max_bytes // 2) // (plan.lane_numbers * x.element_size()))
    for block in slices(len(x), plan.block_inputs):
        inputs = _plain(x[block])
        # Both members of a pair are evaluated, and f(theta) is not, where only their difference is asked for.
        base_pass = None if is_direct and pairs == "odd" else _unperturbed(layers, inputs, max_bytes)

        def start(
            inputs: Tensor = inputs, base_pass: UnperturbedPass | None = base_pass, first_input: int = block.start
        ) -> Callable[[Array], None]:
            workspace, programs = Workspace(x.dtype), dict[int, Program]()

            def evaluate(positions: Array) -> None:
                if len(positions) not in programs:
                    program = PROGRAMS[family.name](problem, inputs, workspace, len(positions))
                    programs[len(positions)] = _recorded(program, base_pass, is_direct)
                program = programs[len(positions)]
                program.run(positions)
                divisors = problem.scales[positions] if is_direct else program.mantissas
                result = program.result.flatten(2).numpy()
                first = first_input * widths[-1]
                kernel.write_differences(result, divisors, _PAIRS[pairs], positions, first, rows)
                if program.squares is not None and first_input == 0:
                    norms.numpy()[positions] = program.squares

            return evaluate

        lanes.run(tasks, start, most, products=True)
    return (out if pairs == "both" else out[0]), norms


def displacement_products(
    q: Tensor,
    height: int,
    ordinal: int,
    sample_ids: Tensor,
    seed_low: int,
    seed_high: int,
    directions: str,
    max_bytes: int,
) -> Tensor:
    """Evaluate the op ``nntk::displacement_products`` for CPU tensors: the reference with compiled noise."""
    source = source_of(q.device)
    return reference.displacement_products(
        q, height, ordinal, sample_ids, seed_low, seed_high, directions, max_bytes, source
    )


def _ordinal(number: int) -> int | None:
    return None if number < 0 else number


def _plain(tensor: Tensor) -> Tensor:
    """Return a tensor as NumPy takes it: contiguous, and part of no graph."""
    return tensor.detach().contiguous()


def _tasks(family: Directions, sample_ids: Tensor, size: int) -> Sequence[Array]:
    """Return the positions of the displacements of each task; those of flipout share a base."""
    return [positions.numpy() for positions in split_into_groups(family, sample_ids, size)]


def _unperturbed(layers: Sequence[Layer], x: Tensor, max_bytes: int) -> UnperturbedPass:
    """Evaluate the unperturbed pass, a few inputs on each lane."""
    parts: dict[int, UnperturbedPass] = {}

    def start() -> Callable[[slice], None]:
        def evaluate(inputs: slice) -> None:
            parts[inputs.start] = UnperturbedPass.evaluate(layers, x[inputs])

        return evaluate

    blocks = list(slices(len(x), _PASS_INPUTS))
    # In float64: a piece of a weight, and four numbers of each unit.
    widths = x.shape[1] + sum(len(layer.weight) for layer in layers)
    largest = max(layer.weight.numel() for layer in layers)
    lane_bytes = 8 * (min(largest, FLOAT64_COEFFICIENTS) + 4 * _PASS_INPUTS * widths)
    lanes.run(blocks, start, max(1, max_bytes // 2 // lane_bytes), products=True)
    return UnperturbedPass.joined([parts[block.start] for block in blocks])


def _recorded(program: Program, base_pass: UnperturbedPass | None, is_direct: bool) -> Program:
    """Record the calls of a program, and return it."""
    if is_direct:
        assert isinstance(program, ExplicitProgram), "other families propagate differences"
        program.record_values(None if base_pass is None else base_pass.outputs)
    else:
        assert base_pass is not None, "differences are propagated from the unperturbed pass"
        program.record_differences(base_pass)
    return program
