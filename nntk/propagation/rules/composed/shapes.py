"""Functions of PyTorch whose own bodies call functions with rules, statistics of rows, and padded sequences."""

from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F

from nntk.propagation.registry import COMPOSED, NoRule, composed

_BODIES = (
    F.lp_pool1d, F.lp_pool2d, F.lp_pool3d, F.gaussian_nll_loss, F.triplet_margin_with_distance_loss, F.ctc_loss,
)  # fmt: skip
"""Functions that are written in Python by others which have rules."""


def _has_override(*operands: Any) -> bool:
    """Return False: the operands shall not be asked for a rule of the function itself."""
    return False


for _function in _BODIES:
    _checks = {name: _has_override for name in _function.__globals__ if name.startswith("has_torch_function")}
    COMPOSED[_function] = FunctionType(
        _function.__code__, {**_function.__globals__, **_checks}, _function.__name__, _function.__defaults__
    )
    COMPOSED[_function].__kwdefaults__ = _function.__kwdefaults__


@composed("addbmm")
def _addbmm(x: Any, a: Any, b: Any, *, beta: float = 1.0, alpha: float = 1.0) -> Any:
    return x * beta + (a @ b).sum(0) * alpha


@composed("dist")
def _dist(a: Any, b: Any, p: float = 2.0) -> Any:
    return torch.linalg.vector_norm(a - b, p)


@composed("pdist")
def _pdist(x: Any, p: float = 2.0) -> Any:
    first, second = torch.triu_indices(len(x), len(x), 1, device=x.device).unbind(0)
    return torch.linalg.vector_norm(x[first] - x[second], p, -1)


@composed("cov")
def _cov(x: Any, *, correction: int = 1, fweights: Any = None, aweights: Any = None) -> Any:
    if fweights is not None or aweights is not None or x.dim() > 2:
        raise NoRule("model calls cov with weights, which has no rule.")
    rows = x.reshape(-1, x.shape[-1]) if x.dim() else x.reshape(1, 1)
    centred = rows - rows.mean(1, keepdim=True)
    products = centred @ centred.mT / (rows.shape[1] - correction)
    return products if x.dim() == 2 else products.squeeze()


@composed("corrcoef")
def _corrcoef(x: Any) -> Any:
    products = _cov(x)
    if x.dim() < 2:
        raise NoRule("model calls corrcoef of one row, which has no rule.")
    sizes = torch.diagonal(products).sqrt()
    return torch.clamp(products / sizes.unsqueeze(1) / sizes.unsqueeze(0), -1, 1)


def _pad_sequence(
    sequences: Any, batch_first: bool = False, padding_value: float = 0.0, padding_side: str = "right"
) -> Any:
    """Return parts of several lengths, each padded to the longest."""
    length, padded = max(len(part) for part in sequences), []
    for part in sequences:
        margins = (0, length - len(part)) if padding_side == "right" else (length - len(part), 0)
        padded.append(F.pad(part, (0, 0) * (part.dim() - 1) + margins, value=padding_value))
    return torch.stack(padded, 0 if batch_first else 1)


COMPOSED[torch._C._nn.pad_sequence] = _pad_sequence
