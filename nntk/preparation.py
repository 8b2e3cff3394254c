"""Preparation of a kernel's first call: what it would compile is compiled ahead, in parallel."""

import logging
import warnings

import torch

from nntk.estimators.plan import Plan
from nntk.kernel import NonlocalNTK
from nntk.kernels.ahead_of_time import Progress, compile_ahead
from nntk.kernels.target import serves
from nntk.models.data.inputs import InputValue, as_batch

_log = logging.getLogger("nntk")


def warm_up(
    kernel: NonlocalNTK, x1: InputValue, x2: InputValue | None = None, *, threads: int | None = None,
    progress: Progress | None = None,
) -> int:  # fmt: skip
    """Compile what a call with inputs of these shapes needs, so that the first call does not wait for compilers.

    A first call on a GPU compiles 5 to 20 Triton kernels one after another, each for seconds; this compiles them in
    parallel, and launches none. They are kept on disk too, so that later processes only load them. Other shapes may
    need further kernels. Weights that refuse the arbitrary numbers of kernels that do not run, as those of a proposal
    may, leave what follows them to the first call.

    Args:
        kernel: The kernel.
        x1: Inputs of the rows, as for a call; their values do not matter.
        x2: Inputs of the columns; None for the symmetric kernel of ``x1``.
        threads: Number of Triton kernels that are compiled at a time; None for a choice by the number of cores.
        progress: Receives the numbers of compiled and of all Triton kernels, whenever one is compiled.

    Returns:
        Number of Triton kernels that were prepared. It is 0 on a CPU, where two displacements are evaluated instead, so
        that Numba compiles or loads its kernels. It is 0 as well for a model on a GPU that is no MLP: the trial is made
        that finds its route, and what that needs is compiled.

    Raises:
        ValueError: If inputs do not fit the model or are not finite.
        TypeError: If inputs have another dtype than the model.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
        >>> warm_up(NonlocalNTK(model, samples=64), torch.zeros(5, 3))
        0
    """
    x1, x2 = as_batch("x1", x1), None if x2 is None else as_batch("x2", x2)
    plan = kernel.plan(x1, x2)
    if not serves(x1.device):
        with warnings.catch_warnings(action="ignore"):
            _with_two_displacements(kernel, plan)(x1[:1])
        return 0
    if plan.route != "layers":
        return 0

    def call() -> None:
        # Kernels that do not run leave arbitrary numbers, which are warned of, or refused: by weights, or at the end.
        with warnings.catch_warnings(action="ignore"):
            try:
                kernel(x1, x2)
            except ValueError as error:
                _log.debug("A call without kernels ended with: %s", error)

    count = compile_ahead(call, threads, progress)
    if count:
        name = torch.cuda.get_device_name(x1.device)
        _log.info("Compiled %d kernels for %s; later processes load them from disk.", count, name)
    return count


def _with_two_displacements(kernel: NonlocalNTK, plan: Plan) -> NonlocalNTK:
    """Return a kernel that needs the same code as another one and takes a moment."""
    propagation = plan.propagation if plan.route == "layers" else kernel.propagation
    settings = vars(kernel.settings) | {"samples": min(2, kernel.samples), "propagation": propagation}
    return NonlocalNTK(kernel.model, parameters=kernel.parameters, output=kernel.output, **settings)
