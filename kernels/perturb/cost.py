"""Least work of perturbation evaluation; see nntk.kernels.cost."""

from torch import Tensor

from nntk.kernels.cost import Cost, read
from nntk.kernels.philox.cost import factors, noise
from nntk.kernels.philox.directions import parse


def mlp_differences(
    x: Tensor, weights: list[Tensor], biases: list[Tensor | None], activations: list[str],
    activation_parameters: list[float], weight_ordinals: list[int], bias_ordinals: list[int], rows: Tensor,
    scales: Tensor, seed_low: int, seed_high: int, directions: str, pairs: str, propagation: str, precision: str,
    max_bytes: int,
) -> Cost:  # fmt: skip
    """The unperturbed pass, then for each evaluation one product a layer, or two.

    Propagated differences take a product with the weight, but not at layer 0, and one with the displacement. Direct
    evaluation takes one product with the sum; with structured displacements it takes both. At layer 0 all evaluations
    share the product with the weight, and both halves of a pair that with the displacement. Of low rank R, a product
    with the displacement is R (H + K) multiply-adds instead of H K.

    Returns:
        The cost.
    """
    halves, family, moved = 1 if pairs == "none" else 2, parse(directions), []
    flops = 0.0
    for number, (weight, ordinal, bias, bias_ordinal) in enumerate(
        zip(weights, weight_ordinals, biases, bias_ordinals, strict=True)
    ):
        moved += [weight] if ordinal >= 0 else []
        moved += [bias] if bias is not None and bias_ordinal >= 0 else []
        whole = float(weight.numel())
        displaced = whole if family.name != "lowrank" else float(family.count * sum(weight.shape))
        # Behind layer 0 each evaluation has inputs of its own.
        evaluations = len(rows) * len(x) * (halves if number else 1)
        if propagation == "direct" and ordinal >= 0 and family.name in ("gaussian", "rademacher"):
            each = len(rows) * len(x) * halves * whole
        elif propagation == "direct":
            each = (evaluations if number else len(x)) * whole + (evaluations * displaced if ordinal >= 0 else 0.0)
        else:
            each = evaluations * ((whole if number else 0.0) + (displaced if ordinal >= 0 else 0.0))
        flops += 2.0 * (len(x) * whole + each)
    made = noise(moved, len(rows), directions) + Cost(factors(moved, len(rows), directions))
    return made + Cost(flops, read(x, weights, biases, rows, scales))


def displacement_products(
    q: Tensor, height: int, ordinal: int, rows: Tensor, seed_low: int, seed_high: int, directions: str, max_bytes: int,
) -> Cost:  # fmt: skip
    """One product for every displacement; of low rank R, R (H + K) multiply-adds instead of H K.

    Returns:
        The cost.
    """
    family, weight = parse(directions), q.new_empty(height, q.shape[-1])
    each = float(weight.numel()) if family.name != "lowrank" else float(family.count * sum(weight.shape))
    made = noise([weight], len(rows), directions) + Cost(factors([weight], len(rows), directions))
    return made + Cost(2.0 * len(rows) * q.shape[-2] * each, read(q, rows))
