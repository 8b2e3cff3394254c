"""Plan of a kernel: the memory that it takes, and the route by which its differences are computed."""

from dataclasses import dataclass

from nntk.differences.request import DifferenceRequest
from nntk.differences.route import Route, route_of
from nntk.displacements import Displacements, displacements_of
from nntk.estimators.memory import format_bytes, free_bytes
from nntk.estimators.weighted import bytes_per_displacement, chunk_size, joint_inputs
from nntk.kernels.assemble import inner_product_route
from nntk.kernels.perturb.paths import LayerPaths, layer_paths
from nntk.models.data.inputs import Batch, bytes_of, named_tensors
from nntk.models.mlp import Mlp
from nntk.models.view import ModelView


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a kernel takes, and how its displacements are cut into chunks.

    The logger ``"nntk"`` reports the plan at level INFO whenever a kernel begins.

    Attributes:
        result: Bytes of the kernel matrix.
        sums: Bytes of two more matrices of that size, for the sum over chunks and for its symmetric form.
        copies: Bytes of copies: of the inputs together and in float64, of a model's tensors in float64, and of one
            displacement of all parameters with the displaced values.
        held: Bytes held beside it: differences of the displacements that are assembled together, and for plugin and
            unbiased their products.
        temporary: Budget of the evaluation: ``max_memory``, or the default of the device (128 MiB on a CPU, a fortieth
            of a GPU's memory). For a model that is no MLP three quarters of it more, and at least 1 MiB more, for
            products, for one evaluation at a time, and for results of frozen layers that are kept.
        displacements: Number of displacements that are assembled together.
        samples: Number of all displacements.
        free: Free memory of the device in bytes; None where it is not known.
    """

    result: int
    sums: int
    copies: int
    held: int
    temporary: int
    displacements: int
    samples: int
    free: int | None

    @property
    def total(self) -> int:
        """Sum of all bytes."""
        return self.result + self.sums + self.copies + self.held + self.temporary

    def __str__(self) -> str:
        free = "" if self.free is None else f" of {format_bytes(self.free)} that are free"
        return (
            f"{format_bytes(self.total)}{free}: the kernel {format_bytes(self.result)} and its sums "
            f"{format_bytes(self.sums)}, copies of inputs and model {format_bytes(self.copies)}, "
            f"differences {format_bytes(self.held)} ({self.displacements} of {self.samples} displacements at a time), "
            f"evaluation {format_bytes(self.temporary)}"
        )


@dataclass(frozen=True)
class Plan(MemoryPlan):
    """Memory and route of a kernel; ``print(kernel.plan(x))`` shows both.

    Attributes:
        route: ``"layers"`` (an MLP by its layers), ``"rules"`` (differences by rules of propagation) or ``"copies"``
            (evaluation at displaced copies of the parameters).
        reason: Why this route is taken, in one sentence; in a second one, why plain torch serves a GPU, if it does.
        propagation: ``"difference"`` or ``"direct"``.
        precision: ``"fp32"``, ``"tf32"``, ``"bf16"`` or ``"fp64"``.
        paths: Path of each layer of an MLP on a GPU: ``"step"`` (noise is generated in registers), ``"stationary"``
            (generated once for many inputs), ``"staged"`` (written to memory first), ``"stacked"`` (the same, in one
            loop), ``"fused"`` (all layers in one launch) or ``"reference"`` (plain torch, many times slower). Empty on
            a CPU and for other routes. The README of ``kernels/perturb`` says when each is taken.
    """

    route: str
    reason: str
    propagation: str
    precision: str
    paths: tuple[str, ...]

    def __str__(self) -> str:
        paths = f" ({', '.join(self.paths)})" if self.paths else ""
        return f"{super().__str__()}; by {self.route}{paths}, {self.propagation}, {self.precision}: {self.reason}"


def memory_plan(displacements: Displacements, x1: Batch, x2: Batch | None) -> MemoryPlan:
    """Return the memory that a kernel takes.

    Args:
        displacements: All displacements of the kernel.
        x1: Inputs of the rows, [N1, ...].
        x2: Inputs of the columns, [N2, ...]; None for a symmetric kernel.

    Returns:
        The plan.
    """
    settings, model = displacements.settings, displacements.model
    outputs, columns = model.num_outputs(x1), len(x1 if x2 is None else x2)
    entries = {"trace": 1, "mean": 1, "diagonal": outputs, "full": outputs**2}[settings.outputs]
    inputs = len(x1) + (0 if x2 is None else columns)
    displacement_bytes = bytes_per_displacement(displacements, inputs, outputs)
    together = settings.samples
    if settings.estimator == "energy":
        together = min(together, chunk_size(displacements, displacement_bytes))
    held = displacement_bytes * together
    if settings.estimator != "energy":
        sides, is_full = (len(x1), inputs - len(x1)), settings.outputs == "full"
        route = inner_product_route(settings.samples, sides, outputs, model.num_params, is_full)
        # Twice: a sum of products is formed beside its terms.
        held += 16 * (settings.samples**2 if route != "gradients" else inputs * outputs * model.num_params)
    budget = settings.budget(model.device)
    result = len(x1) * columns * entries * model.dtype.itemsize
    return MemoryPlan(
        result=result,
        sums=2 * result,
        copies=_bytes_of_copies(model, x1, x2),
        held=held,
        temporary=budget if isinstance(model, Mlp) else budget + max(3 * budget // 4, 2**20),
        displacements=together,
        samples=settings.samples,
        free=free_bytes(model.device),
    )


def _bytes_of_copies(model: ModelView, x1: Batch, x2: Batch | None) -> int:
    given = (x1,) if x2 is None else (x1, x2)
    joint = 0 if x2 is None else sum(map(bytes_of, given))
    if isinstance(model, Mlp):
        return joint + 8 * max(layer.weight.numel() for layer in model.layers)
    # Inputs in float64, and what an evaluation is given of them, twice while a displacement is evaluated again.
    inputs = 4 * sum(
        tensor.numel() * (8 if tensor.is_floating_point() else tensor.element_size())
        for x in given
        for _, tensor in named_tensors("x", x)
    )
    # In a model with a backbone in half precision, only what is displaced is cast to float64.
    cast = model.displaced.values() if model.halves else model.originals.values()
    tensors = sum(tensor.numel() for tensor in cast)
    # Of one displacement: its noise, the step, and the displaced parameters, in float64.
    return joint + inputs + 8 * tensors + 32 * model.num_params


def plan(displacements: Displacements, x1: Batch, x2: Batch | None, num_inputs: int | None = None) -> Plan:
    """Return memory and route of a kernel; the route of a general model may take a trial at two inputs.

    Args:
        displacements: All displacements of the kernel.
        x1: Inputs of the rows, [N1, ...].
        x2: Inputs of the columns, [N2, ...]; None for a symmetric kernel.
        num_inputs: Number of inputs that are evaluated together, on which the paths of layers depend; None for all of
            ``x1`` and ``x2``.

    Returns:
        The plan.
    """
    # The first displacements show the route: the scales of all of them may take as long as the kernel.
    settings, model = displacements.settings, displacements.model
    first = displacements_of(settings, model, range(min(settings.samples, 64)))
    request, joint = first.request(first.indices, first.pairs), joint_inputs(x1, x2)
    route = route_of(model, joint, request)
    layers = _layer_paths(model, len(joint) if num_inputs is None else num_inputs, request, route)
    remark = f" Plain torch serves the GPU, because {layers.obstacle}." if layers.obstacle else ""
    return Plan(
        **vars(memory_plan(displacements, x1, x2)),
        route=route.name,
        reason=route.reason + remark,
        propagation=route.propagation,
        precision=route.precision,
        paths=layers.names,
    )


def _layer_paths(model: ModelView, num_inputs: int, request: DifferenceRequest, route: Route) -> LayerPaths:
    """Return the path of each layer of an MLP on a GPU; without names for other models, and on a CPU."""
    if not isinstance(model, Mlp):
        return LayerPaths()
    return layer_paths(
        model.layers, num_inputs, request.directions, request.pairs, route.propagation, route.precision,
        request.max_bytes,
    )  # fmt: skip
