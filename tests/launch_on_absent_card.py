"""Launch every kernel on a card that is not there: arguments are bound, specialised and compiled, and nothing runs.

The interpreter takes arguments as they are; here they meet Triton's own binding, with ones, None, tuples and
descriptors. A process of its own, since interpreted kernels cannot be compiled.
"""

import re
import sys

import torch
from conftest import inputs, mlp
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction
from triton_device import kernel_differences

from nntk.kernels.perturb import launch
from nntk.kernels.philox import launch as philox
from nntk.kernels.target import Target


class AbsentCard:
    """What Triton asks of a driver before it launches."""

    def get_current_target(self):
        """An H200."""
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        """The first."""
        return 0

    def get_current_stream(self, device):
        """The default."""
        return 0


def main():
    """Launch each family by each path, with ones wherever they can stand, and print the kernels that compiled."""
    driver.set_active(AbsentCard())
    launch.target_of = philox.target_of = lambda device: Target("sm_90")
    run, compiled = JITFunction.run, set()

    def bind_and_compile(self, *arguments, grid, warmup, **options):
        compiled.add(self.__name__)
        kernel = run(self, *arguments, grid=grid, warmup=True, **options)
        # The larger of a number and NaN must be NaN: without .NaN the instructions return the number.
        finite = re.search(r"\b(max|min)\.f32", kernel.asm["ptx"])
        assert not finite, f"{self.__name__} makes NaN finite by {finite}"
        return kernel

    JITFunction.run = bind_and_compile
    routes = [("gaussian", path) for path in ("step", "stationary", "staged", "fused")]
    for directions, path in [*routes, ("rademacher", None), ("flipout(3)", None), ("lowrank(2)", None)]:
        for widths, number, activation in (((20, 20, 3), 20, "quantise"), ((1, 1, 1), 1, "relu")):
            scales = torch.full((3,), 0.1)
            model, x = mlp(*widths, activation=activation), inputs(number, widths[0])
            kernel_differences(model, x, torch.arange(3), scales, directions, precision="bf16", path=path)
    philox.squared_norms([torch.zeros(5, 7), torch.zeros(1)], [0, 1], torch.arange(3), 1, 2, "gaussian")
    philox.unit_displacements(torch.arange(3), 0, [5, 7], 1, 2, "gaussian", torch.float32)
    print(*sorted(compiled))


if __name__ == "__main__":
    sys.exit(main())
