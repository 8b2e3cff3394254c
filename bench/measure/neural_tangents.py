"""NTK by the library neural-tangents, where the library and a suitable version of JAX are installed."""

import importlib
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.dlpack import from_dlpack


def installed() -> bool:
    """Return True if neural-tangents can be imported; its last release fails on newer versions of JAX."""
    try:
        importlib.import_module("neural_tangents")
    except Exception:  # The import may fail inside of JAX in any way.
        return False
    return True


def ntk(model: nn.Sequential, x: Tensor) -> Callable[[], Tensor]:
    """Prepare the NTK of an MLP of tanh units, traced over outputs, by structured derivatives, compiled by XLA.

    Args:
        model: Linear layers with biases, and tanh between them.
        x: Inputs, [N, K].

    Returns:
        A function that returns the kernel, [N, N]. It is compiled already.
    """
    import jax
    import jax.numpy as jnp
    import neural_tangents as nt

    parameters = [
        (jnp.asarray(layer.weight.detach().cpu().numpy()), jnp.asarray(layer.bias.detach().cpu().numpy()))
        for layer in model
        if isinstance(layer, nn.Linear)
    ]
    inputs = jnp.asarray(x.cpu().numpy())

    def apply(layers: Any, h: Any) -> Any:
        for index, (weight, bias) in enumerate(layers):
            h = (jnp.tanh(h) if index else h) @ weight.T + bias
        return h

    kernel = jax.jit(
        nt.empirical_ntk_fn(
            apply, trace_axes=(-1,), vmap_axes=0, implementation=nt.NtkImplementation.STRUCTURED_DERIVATIVES
        )
    )

    def call() -> Tensor:
        # The library divides a trace by the number of outputs.
        matrix = kernel(inputs, None, parameters) * parameters[-1][1].shape[0]
        return from_dlpack(matrix.block_until_ready())

    call()
    return call
