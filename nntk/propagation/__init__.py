"""Difference propagation: a model's own forward pass, evaluated on displaced tensors.

This package exports what the author of a rule uses; its README explains how to write one. Importing the package
registers all rules.
"""

from nntk.models.isolation.epsilon import ModelEpsilon
from nntk.propagation import rules
from nntk.propagation.batch import DisplacementBatch
from nntk.propagation.context import DisplacementGroup, PropagationContext
from nntk.propagation.differences import propagate
from nntk.propagation.displaced_tensor import (
    DisplacedTensor,
    constant,
    displaced_with_digits,
    is_displaced,
    primal,
    rounded_primal,
    with_tangent,
)
from nntk.propagation.registry import NoRule, composed, rule

__all__ = [
    "DisplacedTensor",
    "DisplacementBatch",
    "DisplacementGroup",
    "ModelEpsilon",
    "NoRule",
    "PropagationContext",
    "composed",
    "constant",
    "displaced_with_digits",
    "is_displaced",
    "primal",
    "propagate",
    "rounded_primal",
    "rule",
    "rules",
    "with_tangent",
]
