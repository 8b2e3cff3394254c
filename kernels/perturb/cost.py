"""Least work of perturbation evaluation; nntk.kernels.cost defines what is counted."""

from torch import Tensor

from nntk.kernels.cost import Cost, read
from nntk.kernels.philox.cost import factors, noise
from nntk.kernels.philox.directions import parse


def mlp_differences(
    x: Tensor, weights: list[Tensor], biases: list[Tensor | None], activations: list[str],
    activation_parameters: list[float], weight_ordinals: list[int], bias_ordinals: list[int], sample_ids: Tensor,
    scales: Tensor, seed_low: int, seed_high: int, directions: str, pairs: str, propagation: str, precision: str,
    max_bytes: int,
) -> Cost:  # fmt: skip
    """Count the unperturbed pass, and one or two products a layer for each evaluation.

    Propagated differences have a product with the displacement and, behind layer 0, one with the weight. With gaussian
    and rademacher displacements a pair has three: one of each member with its displaced weight, and one that they
    share. Direct evaluation has one product with the displaced weight; structured displacements have two products
    there. At layer 0 all evaluations share the product with the weight, and both members of a pair share the product
    with the displacement. A product with a displacement of rank R has R (H + K) multiply-adds instead of H K.

    Returns:
        The cost.
    """
    members, family, displaced = 1 if pairs == "none" else 2, parse(directions), []
    flops = 0.0
    for number, (weight, ordinal, bias, bias_ordinal) in enumerate(
        zip(weights, weight_ordinals, biases, bias_ordinals, strict=True)
    ):
        displaced += [weight] if ordinal >= 0 else []
        displaced += [bias] if bias is not None and bias_ordinal >= 0 else []
        by_weight = float(weight.numel())
        by_displacement = by_weight if family.name != "lowrank" else float(family.count * sum(weight.shape))
        # Behind layer 0 each evaluation has different inputs.
        evaluations = len(sample_ids) * len(x) * (members if number else 1)
        is_explicit = ordinal >= 0 and family.name in ("gaussian", "rademacher")
        if propagation == "direct" and is_explicit:
            products = len(sample_ids) * len(x) * members * by_weight
        elif propagation == "direct":
            shared = (evaluations if number else len(x)) * by_weight
            products = shared + (evaluations * by_displacement if ordinal >= 0 else 0.0)
        elif is_explicit and number:
            products = len(sample_ids) * len(x) * (members + 1) * by_weight
        else:
            products = evaluations * ((by_weight if number else 0.0) + (by_displacement if ordinal >= 0 else 0.0))
        flops += 2.0 * (len(x) * by_weight + products)
    generation = noise(displaced, len(sample_ids), directions) + Cost(factors(displaced, len(sample_ids), directions))
    return generation + Cost(flops, read(x, weights, biases, sample_ids, scales))


def displacement_products(
    q: Tensor, height: int, ordinal: int, sample_ids: Tensor, seed_low: int, seed_high: int, directions: str,
    max_bytes: int,
) -> Cost:  # fmt: skip
    """Count one product for every displacement: H K multiply-adds for each operand, or R (H + K) of low rank R.

    Returns:
        The cost.
    """
    family, weight = parse(directions), q.new_empty(height, q.shape[-1])
    multiply_adds = float(weight.numel()) if family.name != "lowrank" else float(family.count * sum(weight.shape))
    generation = noise([weight], len(sample_ids), directions) + Cost(factors([weight], len(sample_ids), directions))
    return generation + Cost(2.0 * len(sample_ids) * q.shape[-2] * multiply_adds, read(q, sample_ids))
