"""Plan of a kernel over ranks: time and memory of a rank, by the least work and stated rates."""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from nntk.displacements import Displacements, displacements_of
from nntk.estimators.memory import format_bytes
from nntk.estimators.plan import MemoryPlan, Plan, memory_plan, plan
from nntk.kernels import checks
from nntk.kernels.assemble.cost import pairs
from nntk.kernels.cost import Cost
from nntk.kernels.perturb.cost import mlp_differences
from nntk.kernels.philox.cost import noise
from nntk.models.data.inputs import Batch
from nntk.models.mlp import Mlp

WAYS = ("displacements", "inputs", "features", "tiles")
"""Ways in which ranks share a kernel."""
TILE_BYTES = 2**28
"""Bytes of a tile of a matrix in a file."""


@dataclass(frozen=True)
class Rates:
    """Rates of one rank, which a plan takes as given; ``nntk-bench roofline`` measures those of a machine.

    Attributes:
        products: Operations of products a second in an evaluation, two for a multiply-add.
        assembly: Operations of products a second in the assembly of the kernel.
        normals: Normal random numbers a second.
        signs: Random signs a second.
        bandwidth: Bytes a second that a rank sends to another while all ranks do.
        memory: Bytes of memory.
    """

    products: float
    assembly: float
    normals: float
    signs: float
    bandwidth: float
    memory: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            checks.positive_float(f"rates.{name}", value, 1e-30, 1e30, "It is a number a second, or of bytes.")


H100 = Rates(494.7e12, 67e12, 132 * 128 * 1.83e9 / 20, 132 * 128 * 1.83e9 / 4, 50e9, 80e9)
"""Peaks of one H100 SXM among others: TF32 (494.7 TFLOP/s) and float32 (67) by its data sheet, 80 GB, and one network
adapter of 400 Gb/s for each GPU. Random numbers are an assumption: 20 instructions for a normal number and 4 for a
sign, on 132 multiprocessors of 128 lanes at 1.83 GHz."""


@dataclass(frozen=True)
class RankPlan(Plan):
    r"""Time and memory of one rank: a prediction, not a measurement, by :meth:`nntk.NonlocalNTK.plan`.

    ``over`` says how P ranks share a symmetric kernel of N inputs by the energy form:

    * ``"displacements"``: ``Sharded(kernel)``, which sums the kernels of all ranks, in float64;
    * ``"inputs"``: ``Sharded(kernel, over="inputs")``, with N / P rows of the kernel on each rank;
    * ``"features"``: the operator over inputs, which keeps the features and forms no matrix; the exchange is that of
      one product with a vector;
    * ``"tiles"``: :func:`nntk.distributed.write_kernel` with tiles of 256 MiB; a rank evaluates all displacements at
      the inputs of each of its tiles again.

    Assumptions, of which the first four make the time a lower bound:

    * the work is the least of ``kernels/*/cost.py``; for a model that is no MLP, the products that PyTorch counts in a
      forward pass, for two members of a pair, and once more by rules; elementwise work and memory traffic are free;
    * products run at ``rates.products`` and ``rates.assembly``, whatever their shape; by default these are peaks;
    * a random number is drawn once in an evaluation, for all inputs of a rank or a tile;
    * ranks are equally fast, and phases follow one another without waiting;
    * a rank sends at ``rates.bandwidth``, without latency. Over displacements it sends :math:`2\,\frac{P-1}{P}\,8 N^2`
      bytes for the sum of the kernels; over inputs the features of N / P inputs half way round a ring, and each tile
      off the diagonal once, in the mean
      :math:`\lfloor P/2 \rfloor \frac{N}{P}\, b\, M C + \frac{P-1}{2}\,\frac{8 N^2}{P^2}` bytes, with b bytes a number;
    * route, paths of layers, budget of temporary memory and propagation are those of the model's present device. Its
      own tensors, the inputs and the libraries need memory beside the plan.

    The sizes of :class:`nntk.estimators.plan.MemoryPlan` are those of one rank, and ``free`` is what it has.

    Attributes:
        ranks: Number P of ranks.
        over: Way in which they share the kernel.
        flops: Operations of the products of this rank's evaluations.
        product_seconds: Time of these products.
        noise_seconds: Time of random numbers.
        assembly_seconds: Time of the products of features.
        exchange_seconds: Time in which the rank sends numbers.
        bytes_sent: Bytes that it sends.

    Example:
        >>> from nntk import NonlocalNTK
        >>> kernel = NonlocalNTK(torch.nn.Linear(3, 1), samples=64)
        >>> four, eight = (kernel.plan(torch.zeros(800, 3), ranks=ranks) for ranks in (4, 8))
        >>> four.flops / eight.flops, eight.fits
        (2.0, True)
    """

    ranks: int
    over: str
    flops: float
    product_seconds: float
    noise_seconds: float
    assembly_seconds: float
    exchange_seconds: float
    bytes_sent: float

    @property
    def seconds(self) -> float:
        """Sum of all times."""
        return self.product_seconds + self.noise_seconds + self.assembly_seconds + self.exchange_seconds

    @property
    def fits(self) -> bool:
        """Whether the memory of a rank is enough."""
        return self.free is None or self.total <= self.free

    def __str__(self) -> str:
        return (
            f"{self.ranks} ranks over {self.over}, predicted by least work: {self.seconds:.3g} s (products "
            f"{self.product_seconds:.3g} s, random numbers {self.noise_seconds:.3g} s, assembly "
            f"{self.assembly_seconds:.3g} s, exchange {self.exchange_seconds:.3g} s, {format_bytes(self.bytes_sent)} "
            f"sent); {'' if self.fits else 'too large for '}a rank: {super().__str__()}"
        )


def bytes_over_displacements(ranks: int, entries: float) -> float:
    r"""Return the bytes that each rank sends for the sum of the kernels of all ranks, in float64.

    .. math::
        2\,\frac{P - 1}{P}\, 8 N^2

    Args:
        ranks: Number P of ranks.
        entries: Number of entries of the kernel, :math:`N^2` for one traced over outputs.

    Returns:
        The bytes.

    Example:
        >>> bytes_over_displacements(2, 1000**2) / 1e6
        8.0
    """
    return 2 * (ranks - 1) / ranks * 8 * entries


def bytes_over_inputs(ranks: int, inputs: int, feature_bytes: float, entries: float) -> float:
    r"""Return the mean over ranks of the bytes that one sends for a symmetric kernel: features, and mirrored tiles.

    Features pass half way round a ring, and each tile off the diagonal is computed by one rank and sent to another:

    .. math::
        \lfloor P/2 \rfloor \frac{N}{P}\, b + \frac{P - 1}{2}\, \frac{8 N^2}{P^2}

    Args:
        ranks: Number P of ranks.
        inputs: Number N of all inputs; each rank holds N / P.
        feature_bytes: Bytes b of the features of one input, 4 M C in float32.
        entries: Number of entries of the kernel, :math:`N^2` for one traced over outputs.

    Returns:
        The bytes.

    Example:
        >>> bytes_over_inputs(2, 1000, 4 * 512, 1000**2) / 1e6
        2.024
    """
    return (ranks // 2) * inputs / ranks * feature_bytes + (ranks - 1) / 2 * 8 * entries / ranks**2


def rank_plan(
    displacements: Displacements, x1: Batch, x2: Batch | None, ranks: int, over: str, rates: Rates
) -> RankPlan:
    """Return time and memory of a rank; :meth:`nntk.NonlocalNTK.plan` documents the assumptions.

    Args:
        displacements: All displacements of the kernel.
        x1: All inputs, [N, ...].
        x2: None: only symmetric kernels are planned.
        ranks: Number of ranks.
        over: One of ``WAYS``.
        rates: Rates of a rank.

    Returns:
        The plan.

    Raises:
        ValueError: If a setting cannot be planned.
    """
    settings, model = displacements.settings, displacements.model
    checks.integer("ranks", ranks, 2)
    if over not in WAYS:
        raise ValueError(f"over must be one of {', '.join(WAYS)} in a plan over ranks, got {over!r}.")
    if settings.estimator != "energy" or x2 is not None:
        given = "x2 must be None" if x2 is not None else f"estimator must be 'energy', got {settings.estimator!r},"
        raise ValueError(f"{given} in a plan over ranks: the energy form of one set of inputs is planned.")
    count, samples, outputs = len(x1), settings.samples, model.num_outputs(x1)
    per_pair = {"diagonal": outputs, "full": outputs**2}.get(settings.outputs, 1)
    own_samples = -(-samples // ranks) if over == "displacements" else samples
    evaluated, drawn = count if over == "displacements" else -(-count // ranks), 1
    side = min(count, int((TILE_BYTES / model.dtype.itemsize) ** 0.5))
    if over == "tiles":
        down = -(-count // side)
        drawn = -(-(down * (down + 1) // 2) // ranks)
        evaluated = 2 * side if down > 1 else side
    whole = plan(displacements, x1[:1], None, evaluated)
    cost = _work(displacements, whole, x1, evaluated, own_samples)
    entries = float(count) ** 2 * per_pair
    item = model.dtype.itemsize
    sent = {
        "displacements": bytes_over_displacements(ranks, entries),
        "inputs": bytes_over_inputs(ranks, count, samples * outputs * item, entries),
        # One product with the operator: its sum of M C numbers.
        "features": bytes_over_displacements(ranks, samples * outputs),
        "tiles": 0.0,
    }[over]
    sums = 2.0 * samples * pairs(count, None, outputs, settings.outputs) / ranks
    memory = _memory(displacements, x1, own_samples, evaluated, over, item, per_pair, outputs, side)
    return RankPlan(
        **vars(replace(memory, samples=own_samples, free=int(rates.memory))),
        route=whole.route, reason=whole.reason, propagation=whole.propagation, precision=whole.precision,
        paths=whole.paths, ranks=ranks, over=over, flops=drawn * cost.flops,
        product_seconds=drawn * cost.flops / rates.products,
        noise_seconds=drawn * (cost.normals / rates.normals + cost.signs / rates.signs),
        assembly_seconds=0.0 if over == "features" else sums / rates.assembly,
        exchange_seconds=sent / rates.bandwidth, bytes_sent=sent,
    )  # fmt: skip


def _work(displacements: Displacements, whole: Plan, x1: Batch, inputs: int, samples: int) -> Cost:
    """Return the least work of evaluations: of an MLP by its layers, of another model by its counted products."""
    settings, model = displacements.settings, displacements.model
    if isinstance(model, Mlp):
        empty = partial(torch.empty, device="meta")
        layers = model.layers
        numbers = empty(samples, dtype=torch.int64)
        return mlp_differences(
            empty(inputs, layers[0].weight.shape[1]), [layer.weight.to("meta") for layer in layers],
            [None if layer.bias is None else layer.bias.to("meta") for layer in layers], [], [],
            [-1 if layer.weight_ordinal is None else layer.weight_ordinal for layer in layers],
            [-1 if layer.bias_ordinal is None else layer.bias_ordinal for layer in layers],
            numbers, empty(samples), 0, 0, settings.directions, displacements.pairs, whole.propagation,
            whole.precision, 0,
        )  # fmt: skip
    with FlopCounterMode(display=False) as counter:
        model.outputs(x1[:1])
    if not counter.get_total_flops():
        raise ValueError("model must have products that PyTorch counts in a plan over ranks, got none.")
    # Two members of a pair; by rules, one product more with the displacement.
    passes = (1 if displacements.pairs == "none" else 2) + (whole.route == "rules")
    random = noise(model.displaced.values(), samples, settings.directions)
    return random + Cost(float(counter.get_total_flops()) * passes * samples * inputs)


def _memory(
    displacements: Displacements, x1: Batch, samples: int, inputs: int, over: str, item: int, per_pair: int,
    outputs: int, side: int,
) -> MemoryPlan:  # fmt: skip
    """Return the memory of a rank."""
    settings = replace(displacements.settings, samples=samples)
    of_rank = displacements_of(settings, displacements.model, range(samples))
    if over == "tiles":
        first = x1[:side]
        return memory_plan(of_rank, first, first if inputs > side else None)
    memory = memory_plan(of_rank, x1[:inputs], None)
    if over == "features":
        return replace(memory, result=inputs * settings.samples * outputs * item, sums=0)
    entries = inputs * len(x1) * per_pair
    # Three matrices in float64, of which the result becomes one.
    return replace(memory, result=entries * item, sums=(3 * 8 - item) * entries)
