"""Inputs of one call on all ranks: checked, compared, and counted before any work."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from nntk.differences.route import route_of
from nntk.displacements import displacements_of
from nntk.distributed.ranks.mesh import Mesh
from nntk.estimators.weighted import bytes_per_displacement, chunk_size
from nntk.files.fingerprint import fingerprint
from nntk.files.hashing import hash_tensors
from nntk.kernel import NonlocalNTK
from nntk.kernels import checks, cpu
from nntk.models.view import ModelView


@dataclass(frozen=True)
class SharedInputs:
    """Inputs of this rank, and what all ranks agreed on.

    Attributes:
        view: View of the model.
        x1: Inputs of the rows on this rank, as the view takes them.
        x2: Inputs of the columns; None for a symmetric kernel.
        rows: Numbers of inputs of the rows on each rank along the axis of inputs.
        columns: Numbers of inputs of the columns; None for a symmetric kernel.
        outputs: Number C of outputs.
        chunk: Number of displacements that are evaluated together.
    """

    view: ModelView
    x1: Tensor
    x2: Tensor | None
    rows: tuple[int, ...]
    columns: tuple[int, ...] | None
    outputs: int
    chunk: int

    @property
    def joint(self) -> Tensor:
        """Inputs of rows and columns together."""
        return self.x1 if self.x2 is None else torch.cat((self.x1, self.x2))


@cache
def versions(device: torch.device) -> dict[str, str]:
    """Return what else the numbers of a kernel depend on, by name.

    Args:
        device: Device of the model.
    """
    compiled = "Numba" if device.type == "cpu" and cpu.serves() else "Triton" if device.type == "cuda" else "torch"
    return {
        "version of nntk": version("nntk"),
        "version of torch": torch.__version__,
        "version of numpy": version("numpy"),
        "kind of device": device.type,
        "implementation of the operations": compiled,
    }


def agree_on_inputs(
    mesh: Mesh, kernel: NonlocalNTK, call: str, x1: Tensor, x2: Tensor | None = None, **facts: Any
) -> SharedInputs:
    """Check the inputs of a call on every rank, and compare models, settings, versions and data: the handshake.

    Args:
        mesh: The mesh.
        kernel: The kernel of this rank.
        call: What is called.
        x1: Inputs of the rows on this rank.
        x2: Inputs of the columns on this rank; None for a symmetric kernel.
        facts: What else must be the same on every rank, by name.

    Returns:
        The inputs.

    Raises:
        RankError: If ranks differ, or one raised an error or does not answer.
        ValueError: If inputs do not fit the model on all ranks.
        TypeError: If inputs have another dtype than the model on all ranks.
    """
    value: dict[str, Any] = {}
    with mesh.agreement.together(f"preparing {call}"):
        view = kernel._view()
        names = ("x",) if x2 is None else ("x1", "x2")
        inputs = [_tensor(view, name, x) for name, x in zip(names, (x1, x2), strict=False) if x is not None]
        column = "" if mesh.shape[1] == 1 else f" in column {mesh.inputs.index}"
        own: dict[str, Any] = {"call": call, "shape of the mesh": list(mesh.shape), **kernel_facts(kernel), **facts}
        for name, x in zip(names, inputs, strict=True):
            own[f"shape of {name}"] = [*x.shape[1:], str(x.dtype)]
            own[f"{name}{column}"] = f"{len(x)} inputs, {hash_tensors({name: x})[:16]}"
        total = sum(map(len, inputs))
        value["counts"] = [len(x) for x in inputs]
        value["outputs"] = view.num_outputs(torch.cat(inputs)) if total else 0
        value["chunk"] = 2**31
        if total:
            everything = displacements_of(kernel.settings, view)
            # The first displacements choose the route for those of all ranks.
            first = displacements_of(kernel.settings, view, range(min(kernel.samples, 64)))
            route = route_of(view, torch.cat(inputs), first.request(first.indices, first.pairs))
            own[f"route of the evaluation{column}"] = f"{route.name}, {route.propagation}, {route.precision}"
            value["chunk"] = chunk_size(everything, bytes_per_displacement(everything, total, value["outputs"]))
    values = mesh.agreement.exchange(own, value)
    outputs = max(entry["outputs"] for entry in values)
    counts = [entry["counts"] for entry in values[: mesh.shape[1]]]
    return SharedInputs(
        view=view,
        x1=inputs[0],
        x2=None if x2 is None else inputs[1],
        rows=tuple(entry[0] for entry in counts),
        columns=None if x2 is None else tuple(entry[1] for entry in counts),
        outputs=outputs,
        chunk=min(entry["chunk"] for entry in values),
    )


def _tensor(view: ModelView, name: str, x: Tensor) -> Tensor:
    """Return checked inputs, which ranks exchange as one tensor."""
    checks.tensor(name, x)
    inputs = view.inputs(name, x)
    assert isinstance(inputs, Tensor), "a tensor stays one"
    return inputs


def kernel_facts(kernel: NonlocalNTK) -> Mapping[str, Any]:
    """Return everything that the numbers of a kernel depend on, with names for messages."""
    renamed = {"model": "parameters of the model", "architecture": "model", "parameters": "choice of parameters"}
    facts = {renamed.get(name, name.replace("_", " ")): fact for name, fact in fingerprint(kernel).items()}
    return {**facts, **versions(next(iter(kernel._view().displaced.values())).device)}
