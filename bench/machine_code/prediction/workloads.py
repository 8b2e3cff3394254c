"""Workloads for which the design states targets, as launches of kernels."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from nntk.bench.machine_code.cases import assemble, attention, fixed_weights, perturb, philox
from nntk.bench.machine_code.measure import Measured
from nntk.bench.machine_code.prediction.model import PROCESSORS, Card, Launch, Time, time_of
from nntk.bench.measure import design
from nntk.bench.results.schema import Row
from nntk.kernels.ahead_of_time import Case
from nntk.kernels.attention.triton import config as attention_config
from nntk.kernels.fixed_weights.triton import config as weights_config
from nntk.kernels.perturb.noise import FORMED_UNITS
from nntk.kernels.perturb.triton import chunks
from nntk.kernels.perturb.triton import config as tiles
from nntk.kernels.philox.directions import parse
from nntk.kernels.philox.triton.launch import NORMALS_TILE

_FAMILIES = {"lowrank(1)": 1.0, "rademacher": 0.60, "flipout(8)": 0.55, "gaussian": 0.45}
"""Families of displacements, and the target of each against unperturbed forwards."""
_WIDTHS, _INPUTS, _ROWS = (784, 1024, 1024, 10), 1024, 1024
_KERNEL_WIDTHS, _KERNEL_INPUTS = (256, 832, 832, 1), 4096
"""Widths (0.9 million parameters) and inputs of the kernel that is compared with Jacobian contraction."""
_LAW = "gaussian from gaussian"
_WEIGHTS = 2**24
"""Fixed weights of one call."""
_BUDGET = 256 * 2**20
"""Temporary memory of evaluations on a GPU, unless told otherwise."""

Launches = Iterator[tuple[Case, Launch]]


@dataclass(frozen=True)
class _Layer:
    """One layer of a workload of antithetic displacements."""

    family: str
    width: int
    height: int
    inputs: int
    first: bool
    last: bool

    @property
    def column_blocks(self) -> int:
        """Number of blocks of columns: two, or one at layer 0, where both members of a pair share their columns."""
        return 1 if self.first else 2

    @property
    def columns(self) -> int:
        """Number of columns of one displacement."""
        return self.inputs * self.column_blocks

    @property
    def activation(self) -> str:
        """Activation that follows the layer."""
        return "identity" if self.last else "relu"

    @property
    def uses_displaced_inputs(self) -> bool:
        """True if displacements multiply displaced inputs (all columns), False if they multiply the inputs once."""
        return self.family != "lowrank"

    @property
    def flops(self) -> float:
        """Operations of the required products: with the displacement and, after layer 0, also with the weight."""
        if self.family == "lowrank" and self.height > FORMED_UNITS:
            displaced = float(self.columns * (self.width + self.height))
        else:
            displaced = float((self.columns if self.uses_displaced_inputs else self.inputs) * self.width * self.height)
        return 2.0 * _ROWS * (displaced + (0 if self.first else self.columns * self.width * self.height))

    @property
    def operands(self) -> int:
        """Number of matrices that a layer reads and writes: d and, except for low rank, q."""
        return 2 if self.uses_displaced_inputs else 1

    @property
    def bytes_read(self) -> float:
        """Bytes read from the previous layer; those of the network's inputs are negligible."""
        return 0.0 if self.first else 2.0 * self.operands * _ROWS * self.columns * self.width

    @property
    def bytes_written(self) -> float:
        """Bytes written for both members of each pair; outputs are float32, and one number for both."""
        return _ROWS * self.inputs * self.height * (4.0 if self.last else 4.0 * self.operands)


def evaluations(arch: str) -> dict[str, list[tuple[Case, Launch]]]:
    """Return the launches of the design's evaluations in bfloat16, in their order, by family of displacements."""
    return {family: list(_evaluation(arch, family, _WIDTHS, _INPUTS)) for family in _FAMILIES}


def cases(arch: str) -> list[Case]:
    """List the kernels that the workloads use, for ``nntk-bench resources`` to compile."""
    compiled = [case for family in _FAMILIES for case, _ in _evaluation(arch, family, _WIDTHS, _INPUTS)]
    compiled += [case for case, _ in _evaluation(arch, "gaussian", _KERNEL_WIDTHS, _KERNEL_INPUTS)]
    compiled += [case for outputs in (1, 10) for case, _ in _rank_update(arch, outputs)]
    compiled += [case for case, _ in [*_fixed_weights(arch), *_attention(arch)]]
    return list({case.name: case for case in compiled}.values())


def _evaluation(arch: str, directions: str, widths: Sequence[int], inputs: int) -> Launches:
    """Yield the launches that compute differences of a relu network at antithetic displacements, in bfloat16."""
    family = parse(directions).name
    pairs = list(zip(widths, widths[1:], strict=False))
    for number, (width, height) in enumerate(pairs):
        layer = _Layer(family, width, height, inputs, number == 0, number + 1 == len(pairs))
        path = tiles.choose_path(family, "bf16", width, layer.columns, layer.first, arch)
        if path == "stationary":
            yield _stationary(arch, layer)
            continue
        if path == "staged":
            yield _noise(arch, layer)
        if family == "lowrank" and height > FORMED_UNITS:
            yield _projection(arch, layer)
        formed = family == "lowrank" and height <= FORMED_UNITS
        yield _step(arch, layer, "formed" if formed else "staged" if path == "staged" else family)


def _step(arch: str, layer: _Layer, source: str) -> tuple[Case, Launch]:
    case = perturb.layer_step(
        arch, source, "bf16", layer.first, layer.activation, (layer.width, layer.height, layer.columns), last=layer.last
    )
    kernel_source = "staged" if source == "formed" else source
    tile = tiles.step_tiles(kernel_source, "bf16", layer.width, layer.height, layer.columns, arch)
    programs = _ROWS * math.ceil(layer.columns / tile.block_n) * math.ceil(layer.height / tile.block_h)
    # Each product of a tile reads its columns through the cache, and those operands of its units that are not generated
    # in registers.
    columns = 0.0 if layer.first else 1.0
    if source != "lowrank":
        columns += 1.0 if layer.first or layer.uses_displaced_inputs else 0.5
    units = 0.0 if layer.first else 1.0
    if source in ("staged", "flipout", "formed"):
        units += 1.0 if layer.first or layer.uses_displaced_inputs else 2.0
    fetched = 2.0 * programs * layer.width * (columns * tile.block_n + units * tile.block_h)
    turns = math.ceil(layer.width / tile.block_k)
    return case, Launch(case.name, programs, turns, layer.bytes_read + layer.bytes_written, fetched, layer.flops)


def _stationary(arch: str, layer: _Layer) -> tuple[Case, Launch]:
    case = perturb.stationary_step(
        arch, layer.family, "bf16", layer.width, layer.first, layer.activation, last=layer.last
    )
    tile = tiles.stationary_tiles(layer.family, "bf16", layer.width, arch)
    assert tile is not None, "the path was chosen"
    programs, turns = _ROWS * math.ceil(layer.height / tile.block_h), math.ceil(layer.columns / tile.block_n)
    fetched = 2.0 * programs * layer.width * layer.columns * (1 if layer.first else 2)
    return case, Launch(case.name, programs, turns, layer.bytes_read + layer.bytes_written, fetched, layer.flops)


def _noise(arch: str, layer: _Layer) -> tuple[Case, Launch]:
    """Return the launch that writes the noise to memory; the layer step then reads it from the cache."""
    case = next(case for case in philox.cases(arch) if case.name == "write_noise normals bf16")
    programs = _ROWS * math.ceil(layer.height / NORMALS_TILE[0]) * math.ceil(layer.width / NORMALS_TILE[1])
    return case, Launch(case.name, programs, 0, 2.0 * _ROWS * layer.height * layer.width)


def _projection(arch: str, layer: _Layer) -> tuple[Case, Launch]:
    """Return the launch that multiplies the inputs by the right factors of low rank."""
    case = perturb.projection(arch, "bf16", 16, layer.first)
    tile = tiles.step_tiles("lowrank", "bf16", layer.width, layer.height, layer.columns, arch)
    programs = _ROWS * layer.column_blocks * math.ceil(layer.inputs / tile.block_n)
    memory_bytes = layer.bytes_read + 2.0 * 16 * _ROWS * layer.columns
    fetched = 2.0 * _ROWS * layer.columns * layer.width * layer.column_blocks
    return case, Launch(case.name, programs, math.ceil(layer.width / tile.block_k), memory_bytes, fetched)


def _rank_update(arch: str, outputs: int) -> Launches:
    """Yield the launch of the energy form: one triangle of the kernel matrix, in three products of TF32."""
    case = assemble.rank_update(arch, "rows", 1, "trace", True, _KERNEL_INPUTS, one_output=outputs == 1)
    block, step = case.constants["BI"], case.constants["BK"]
    blocks = math.ceil(_KERNEL_INPUTS / block)
    pairs, turns = blocks * (blocks + 1) // 2, math.ceil(_ROWS * outputs / step)
    memory_bytes = 4.0 * (_ROWS * _KERNEL_INPUTS * outputs + _KERNEL_INPUTS**2)
    flops = 6.0 * _ROWS * outputs * _KERNEL_INPUTS * (_KERNEL_INPUTS + 1)
    yield case, Launch(case.name, pairs, turns, memory_bytes, 4.0 * pairs * 2 * block * _ROWS * outputs, flops)


def _fixed_weights(arch: str) -> Launches:
    """Yield both passes over the lengths, which are float64."""
    size = weights_config.pick(_WEIGHTS)
    blocks = math.ceil(_WEIGHTS / size.block)
    for name, numbers in ((f"reduce_weights {_LAW}", 1), (f"write_weights {_LAW}", 2)):
        case = next(case for case in fixed_weights.cases(arch) if case.name == name)
        yield case, Launch(name, size.programs, blocks / size.programs, 8.0 * numbers * _WEIGHTS)


def _attention(arch: str) -> Launches:
    """Yield both passes of attention with dot scores over the values of 4096 antithetic pairs at 4096 inputs."""
    block_m, block_n = attention_config.TILE
    split = attention_config.splits(_KERNEL_INPUTS, _KERNEL_INPUTS, PROCESSORS.get(arch, 132))
    numbers, columns = 4.0 * _KERNEL_INPUTS**2, math.ceil(_KERNEL_INPUTS / block_n)
    for name, programs, turns, matrices in (
        ("statistics dot pairs", split.count * columns, split.samples / block_m, 2),
        ("weights dot pairs", columns * math.ceil(_KERNEL_INPUTS / block_m), 0, 3),
    ):
        case = next(case for case in attention.cases(arch) if case.name == name)
        yield case, Launch(name, programs, turns, matrices * numbers)


def rows(measured: Mapping[str, Measured], card: Card) -> Iterator[Row]:
    """Yield the target and the prediction of every workload of the design.

    Args:
        measured: Resources of the kernels by name.
        card: Card that would run them.

    Yields:
        One row for each target.
    """
    arch = card.arch

    def total_time(launches: Launches) -> Time:
        return sum((time_of(launch, measured[launch.case], card) for _, launch in launches), Time())

    flops = 2 * _INPUTS * _ROWS * _flops(_WIDTHS)
    evaluated = {family: total_time(_evaluation(arch, family, _WIDTHS, _INPUTS)) for family in _FAMILIES}
    for family, target in _FAMILIES.items():
        time = evaluated[family]
        target = _on(card, target, design.evaluations_of_forwards(family, _WIDTHS, _INPUTS))
        row = _row(f"{family}: evaluations, of bf16 forwards", target, flops / card.bf16 / time.total, time)
        if card.forwards:
            row["of_measured_forwards"] = card.forwards / time.total
            row["of_measured_forwards_with_cache"] = card.forwards / time.with_cache
        yield row
    for family, target in (("gaussian", 10.0), ("rademacher", 15.0)):
        time = evaluated[family]
        target = _on(card, target, design.evaluations_of_float32(family, _WIDTHS, _INPUTS))
        yield _row(f"{family}: against forwards in fp32", target, flops / card.fp32 / time.total, time)
    yield _memory()
    weights = _flops(_KERNEL_WIDTHS) / 2
    time = total_time(_evaluation(arch, "gaussian", _KERNEL_WIDTHS, _KERNEL_INPUTS)) + total_time(_rank_update(arch, 1))
    for precision, rate in (("fp32", card.fp32), ("tf32", card.bf16 / 2)):
        contraction = 2 * _KERNEL_INPUTS**2 * weights / rate
        bound = design.kernel_of_contraction("gaussian", _KERNEL_WIDTHS, _KERNEL_INPUTS, _ROWS, precision)
        target = _on(card, 5.0, bound)
        yield _row(f"kernel: against contraction in {precision}", target, contraction / time.total, time)
    for name, launches in (("fixed weights", _fixed_weights(arch)), ("attention", _attention(arch))):
        time = total_time(launches)
        yield _row(f"{name}: of copy bandwidth", 0.8, time.roof / time.total, time)
    for outputs in (1, 10):
        time = total_time(_rank_update(arch, outputs))
        gemm = 2 * _ROWS * outputs * _KERNEL_INPUTS**2
        name = f"assembly, C = {outputs}: against GEMM in"
        target = _on(card, 3.0, design.sum_of_product(_ROWS * outputs, _KERNEL_INPUTS))
        yield _row(f"{name} fp32", target, gemm / card.fp32 / time.total, time)
        yield _row(f"{name} three of tf32", 1.5, 3 * gemm / (card.bf16 / 2) / time.total, time)


def _on(card: Card, target: float, bound: design.Bound) -> float:
    """Return the target on a card: that of the design, scaled by what the card's rates allow."""
    return design.scaled(target, bound, design.Rates(card.bf16, card.bf16 / 2, card.fp32, card.bandwidth))


def _flops(widths: Sequence[int]) -> float:
    """Return the operations of a forward pass of one input."""
    return 2 * sum(a * b for a, b in zip(widths, widths[1:], strict=False))


def _memory() -> Row:
    """Return the memory of evaluations without their outputs: buffers, temporaries, and the weights as operands."""
    largest = max(chunks.matrix_bytes(height, width, 2) for width, height in zip(_WIDTHS, _WIDTHS[1:], strict=False))
    plans = [
        chunks.plan_chunks(
            _WIDTHS, _INPUTS, 2**20, 2, 2, _BUDGET, parse(family), staged_bytes=largest if family == "gaussian" else 0
        )
        for family in _FAMILIES
    ]
    operands = 2 * sum(a * b for a, b in zip(_WIDTHS[1:], _WIDTHS[2:], strict=False))
    total = max(plan.buffer_bytes for plan in plans) + _BUDGET // chunks.TEMPORARY_DIVISOR + operands
    return {
        "case": "memory beside outputs, M = 2^20", "form": "bytes", "target": float(_BUDGET), "predicted": float(total),
        "verdict": "in reach" if total <= _BUDGET else "short",
    }  # fmt: skip


def _row(case: str, target: float, predicted: float, time: Time) -> Row:
    return {
        "case": case,
        "form": "times",
        "target": target,
        "predicted": predicted,
        "verdict": "in reach" if predicted >= target else "short",
        "predicted_with_cache": predicted * time.total / time.with_cache,
        "time_s": time.total,
        "time_with_cache_s": time.with_cache,
        "of_roof": time.roof / time.total,
        "cache_bytes_a_second": time.fetched / time.total,
        "goes_to": time.shares,
        **{f"{name}_s": value for name, value in time.parts.items()},
    }


def evaluation(arch: str, directions: str, widths: Sequence[int], inputs: int, samples: int) -> Launches:
    """Yield the launches of an evaluation like those of the targets, for any number of antithetic displacements."""
    for case, launch in _evaluation(arch, directions, widths, inputs):
        factor = samples / _ROWS
        yield (
            case,
            replace(
                launch,
                programs=round(factor * launch.programs),
                bytes=factor * launch.bytes,
                fetched=factor * launch.fetched,
                flops=factor * launch.flops,
            ),
        )
