"""The least work of any call: the project's ops by their own costs, products of PyTorch's by its formulas."""

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from nntk.kernels.cost import Cost
from nntk.kernels.dispatch import cost_of


def work_of(call: Callable[[], object]) -> Cost:
    """Run a call once and add up its work.

    Args:
        call: What to count.

    Returns:
        Operations of products, bytes of the project's ops and their random numbers. What PyTorch's other operators read
        and write is left out: it may stay in a cache.
    """
    with _Counting() as counting:
        call()
    total: Cost = counting.total
    return total


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = Cost()

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        made = function(*arguments, **(options or {}))
        if function.namespace == "nntk":
            self.total += cost_of(function.__name__.partition(".")[0], arguments)
        elif count := flop_registry.get(function._overloadpacket):
            self.total += Cost(flops=count(*arguments, **(options or {}), out_val=made))
        return made
