"""Least work of a call: costs of the project's ops, and PyTorch's formulas for its products."""

from collections.abc import Callable
from typing import Any

from torch.utils.flop_counter import flop_registry

from nntk.kernels.cost import Cost
from nntk.kernels.dispatch import cost_of
from nntk.models.observe import Observe


def work_of(call: Callable[[], object]) -> Cost:
    """Run a call once and add up its work.

    Args:
        call: The call.

    Returns:
        Operations of products, bytes of the project's ops and their random numbers. The bytes of PyTorch's other
        operators are left out: their data may stay in a cache.
    """
    total = Cost()

    def count(function: Any, arguments: tuple[Any, ...], options: dict[str, Any], result: Any) -> None:
        nonlocal total
        if function.namespace == "nntk":
            total += cost_of(function.__name__.partition(".")[0], arguments)
        elif flops := flop_registry.get(function._overloadpacket):
            total += Cost(flops=flops(*arguments, **options, out_val=result))

    with Observe(count):
        call()
    return total
