"""Any model: displaced parameters are made chunk by chunk from the stream, and the model is evaluated at them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nntk.kernels import checks
from nntk.kernels.fixed_weights import squared_norms
from nntk.kernels.philox import unit_displacements
from nntk.kernels.philox.slabs import TILE
from nntk.models.draws import Draws, seeded
from nntk.models.functional import call
from nntk.models.mlp import NotRecognised, check_evaluation_mode, check_inputs, check_parameters, moved_names
from nntk.models.observe import Observe
from nntk.models.request import Request
from nntk.propagation.displaced_tensor import NoRule
from nntk.propagation.passes import propagate

Parameters = dict[str, Tensor]
Function = Callable[[Parameters, Tensor], Tensor]

_STACKED = 8
"""Displaced copies that are evaluated together; more leave a CPU's caches."""
_PROBE = 1e-2
"""Scale over the parameters' root mean square, at least, where propagated differences are compared with plain ones."""
_AGREEMENT = 1e-3
"""Propagated differences are in float32, plain ones in float64; where a rule is wrong, they have nothing in common."""


@dataclass(frozen=True, eq=False)
class BlackBox:
    """A model that takes all its parameters as one vector, and need not be differentiable, or of PyTorch.

    Args:
        function: Takes the vector [d] and inputs [N, ...], and returns outputs [N, ...]: arrays of NumPy where
            ``parameters`` is one, else tensors. The same vector must give the same outputs; a stochastic function
            (``draws`` of :class:`nntk.NonlocalNTK`) is given a seed as well, last, and the same seed the same outputs.
        parameters: The vector of the parameters, [d], float32 or float64.
        points: For a function of the vector alone, which returns outputs at so many points of its own: inputs of the
            kernel are their numbers, such as ``torch.arange(points)``.

    Raises:
        TypeError: If ``function`` is not callable, ``parameters`` no array or tensor of float32 or float64, or
            ``points`` no integer.
        ValueError: If ``parameters`` is no vector, or not finite, or ``points`` below one.

    Example:
        >>> simulate = BlackBox(lambda theta: np.sign(theta[:2] - 0.5), np.array([0.1, 0.9, 0.3]), points=2)
        >>> simulate.outputs(simulate.vector, torch.arange(2)).tolist()
        [-1.0, 1.0]
    """

    function: Callable[..., Any]
    parameters: Any
    points: int | None = None

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"function must be callable, got {type(self.function).__name__}.")
        if self.points is not None:
            checks.integer("points", self.points, 1)
        if not isinstance(self.parameters, np.ndarray | Tensor) or self.vector.dtype not in checks.FLOATS:
            kind = getattr(self.parameters, "dtype", type(self.parameters).__name__)
            raise TypeError(f"parameters must be an array or a tensor of float32 or float64, got {kind}.")
        if self.vector.dim() != 1 or not len(self.vector):
            raise ValueError(f"parameters must be a vector [d], got shape {tuple(self.vector.shape)}.")
        checks.finite("parameters", self.vector)

    @property
    def vector(self) -> Tensor:
        """The parameters as a tensor."""
        made: Tensor = torch.as_tensor(self.parameters).detach()
        return made

    def outputs(self, vector: Tensor, x: Tensor, *seed: int) -> Tensor:
        """Outputs at a vector of parameters, as a tensor; of a stochastic model with a seed."""
        given: tuple[Any, ...] = (vector,) if self.points is not None else (vector, x)
        if isinstance(self.parameters, np.ndarray):
            given = tuple(part.cpu().numpy() for part in given)
        made: Tensor = torch.as_tensor(self.function(*given, *seed), device=vector.device)
        return made if self.points is None else made[x]


@dataclass(frozen=True)
class General:
    """A model as kernels see it: what moves, and how it is evaluated elsewhere.

    Attributes:
        evaluate: Outputs [N, ...], given all tensors of the model by name, and inputs of their dtype.
        displaced: The parameters that move, by ordinal.
        names: Their names, by ordinal.
        rest: The tensors that stay, by name.
        opaque: Whether nothing is known of what it computes: it is evaluated at one displacement after another.
        draws: Of a stochastic model, which is called with a seed as well, the draws that it is averaged over.
    """

    evaluate: Callable[..., Tensor]
    displaced: dict[int, Tensor]
    names: dict[int, str]
    rest: dict[str, Tensor] = field(default_factory=dict)
    opaque: bool = False
    draws: Draws | None = None
    _cast: dict[torch.dtype, Parameters] = field(default_factory=dict, init=False, repr=False)
    _propagates: dict[tuple[Any, ...], bool] = field(default_factory=dict, init=False, repr=False)

    @property
    def num_params(self) -> int:
        """Number d of displaced parameters."""
        return sum(parameter.numel() for parameter in self.displaced.values())

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of the parameters, and of results."""
        return next(iter(self.displaced.values())).dtype

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(iter(self.displaced.values())).device

    def with_draws(self, place: int) -> "General":
        """The same model under other draws, if there are any: those of a group that starts at this displacement."""
        return replace(self, draws=replace(self.draws, first=place * self.draws.count)) if self.draws else self

    def inputs(self, name: str, x: Tensor) -> Tensor:
        """Check inputs against the model.

        Args:
            name: Name of the argument, for messages.
            x: Inputs, [N, ...]; integers are taken as they are.

        Returns:
            The inputs, detached.

        Raises:
            ValueError: If the device does not fit, or an entry is not finite.
            TypeError: If ``x`` is no tensor or of another floating dtype than the model.
        """
        checks.tensor(name, x)
        if x.is_floating_point():
            check_inputs(name, x, self.dtype, self.device)
        return x.detach()

    def outputs(self, x: Tensor) -> Tensor:
        """Outputs [N, C] at the unmoved parameters, in their dtype."""
        return self._evaluated(self._parameters(torch.float64), _cast(x, torch.float64)).to(self.dtype)

    def num_outputs(self, x: Tensor) -> int:
        """Number C of outputs, which only an evaluation tells."""
        return self._evaluated(self._parameters(self.dtype), x[:1]).shape[1]

    def unit_differences(self, x: Tensor, request: Request) -> tuple[Tensor, Tensor]:
        r"""Differences over their scales, :math:`[f(\theta + s_m E_m) - f(\theta)] / s_m`.

        They are propagated where all functions of the model have rules; that is tried, and compared with a plain
        evaluation, at two inputs. Else the model is evaluated at both ends, in float64 unless ``precision="fp32"``: of
        float32 outputs a subtraction would leave their rounding, over s.

        Args:
            x: Inputs, [N, ...].
            request: The displacements; ``precision`` is ``"auto"`` or ``"fp32"``, the dtype of the parameters.

        Returns:
            As :func:`nntk.kernels.perturb.mlp_differences`: [M, N, C] or [2, M, N, C] in the dtype of the parameters,
            and the squared norms of the unit displacements, [M], float64.

        Raises:
            NotRecognised: If differences are to be propagated, and a function of the model has no rule.
            TypeError: If the model does not return a tensor with a row for each input.
        """
        norms = squared_norms(self.displaced, request.rows, request.seed, request.directions)
        propagation, pairs = request.propagation, request.pairs
        if propagation == "difference" or propagation == "auto" and self.propagates(x, request):
            try:
                d = propagate(self, _cast(x, torch.float64), request)
            except Exception as wrong:
                if propagation == "difference":
                    if not isinstance(wrong, NoRule):
                        raise
                    raise NotRecognised(f"{wrong} Use propagation='auto' for what cannot be propagated.") from wrong
                # Two inputs did not need what others do.
                self._propagates[_kind(x)] = False
            else:
                if pairs == "both":
                    return d.transpose(0, 1), norms
                return d[:, 0] if pairs == "none" else d[:, 0].sub_(d[:, 1]).mul_(0.5), norms
        return self._plain(x, request), norms

    def propagates(self, x: Tensor, request: Request) -> bool:
        """Whether differences can be propagated, and are those of a plain evaluation: tried at two inputs."""
        if self.opaque or self.draws or not len(x) or not len(request.rows):
            return False
        if _kind(x) not in self._propagates:
            self._propagates[_kind(x)] = self._agrees(x[:: max(1, len(x) - 1)], request)
        return self._propagates[_kind(x)]

    def _agrees(self, x: Tensor, request: Request) -> bool:
        # At least a hundredth of the parameters, at which a model that rounds within keeps digits, and halves differ.
        squares = sum(float(parameter.double().square().sum()) for parameter in self.displaced.values())
        scales = request.scales[:2].clamp(min=_PROBE * (squares / self.num_params) ** 0.5)
        pairs = "both" if request.halves == 2 else "none"
        few = replace(request, rows=request.rows[:2], scales=scales, pairs=pairs, precision="auto")
        try:
            made = propagate(self, _cast(x, torch.float64), few)
            plain = self._plain(x, few)
        except Exception:  # Whatever it is, plain evaluation has its say next.
            return False
        plain = plain.transpose(0, 1) if few.halves == 2 else plain[:, None]
        return made.shape == plain.shape and float((made - plain).norm()) <= _AGREEMENT * float(plain.norm())

    def _plain(self, x: Tensor, request: Request) -> Tensor:
        """The same by evaluation at displaced copies of the parameters."""
        dtype, pairs = self.dtype if request.precision == "fp32" else torch.float64, request.pairs
        still, inputs = self._parameters(dtype), _cast(x, dtype)
        plan = _Plan.of(self, still, inputs, request.max_bytes)
        parts = []
        for piece in inputs.split(plan.inputs) if len(inputs) else [inputs]:
            unmoved = None if pairs == "odd" else self._evaluated(still, piece)
            made = [
                _unit(*halves, unmoved, scale, pairs) for halves, scale in self._halves(still, piece, request, plan)
            ]
            parts.append(torch.cat(made, dim=1 if pairs == "both" else 0).to(self.dtype))
        return torch.cat(parts, dim=-2)

    def _halves(
        self, still: Parameters, x: Tensor, request: Request, plan: "_Plan"
    ) -> Iterator[tuple[tuple[Tensor, Tensor | None], Tensor]]:
        """Outputs at both ends of some displacements at a time, [m, N, C] each, and the scales, [m, 1, 1]."""
        dtype, stream = next(iter(still.values())).dtype, (request.seed, request.directions)
        for chunk, scale in zip(request.rows.split(plan.rows), request.scales.split(plan.rows), strict=True):
            units = {
                self.names[ordinal]: unit_displacements(chunk, ordinal, parameter.shape, *stream, dtype)
                for ordinal, parameter in self.displaced.items()
            }
            for first in range(0, len(chunk), plan.stacked):
                some = slice(first, first + plan.stacked)
                s = scale[some].to(dtype)
                moved = {name: unit[some] * s.view(-1, *[1] * (unit.dim() - 1)) for name, unit in units.items()}
                at = self._stacked if plan.stacked > 1 else self._in_turn
                plus = at({name: still[name] + delta for name, delta in moved.items()}, x)
                if request.pairs == "none":
                    yield (plus, None), s[:, None, None]
                else:
                    yield (plus, at({name: still[name] - delta for name, delta in moved.items()}, x)), s[:, None, None]

    def _stacked(self, parameters: Parameters, x: Tensor) -> Tensor:
        """Outputs [m, N, C] at several parameters at once."""
        made: Tensor = torch.vmap(lambda one: self._evaluated(one, x))(parameters)
        return made

    def _in_turn(self, parameters: Parameters, x: Tensor) -> Tensor:
        """Outputs [m, N, C] at several parameters, one after another."""
        count = len(next(iter(parameters.values())))
        return torch.stack([self._evaluated({name: p[m] for name, p in parameters.items()}, x) for m in range(count)])

    def stacks_well(self, still: Parameters, x: Tensor) -> bool:
        """Whether vmap evaluates the model, and gives what evaluating in turn does: tried at one input."""
        if self.opaque or self.draws:
            return False
        two = {name: torch.stack((parameter, parameter * 1.5)) for name, parameter in still.items()}
        try:
            made = self._stacked(two, x)
        except Exception:  # Whatever vmap objects to; the model has its say when evaluated alone.
            return False
        return torch.allclose(made, self._in_turn(two, x), rtol=1e-3, atol=1e-5, equal_nan=True)

    def tensors(self, dtype: torch.dtype) -> Parameters:
        """All tensors of the model by name, floating ones in a dtype; the same ones at every call."""
        if dtype not in self._cast:
            moved = {self.names[ordinal]: parameter for ordinal, parameter in self.displaced.items()}
            self._cast[dtype] = {name: _cast(tensor, dtype) for name, tensor in {**self.rest, **moved}.items()}
        return self._cast[dtype]

    def _parameters(self, dtype: torch.dtype) -> Parameters:
        return {name: self.tensors(dtype)[name] for name in self.names.values()}

    def _evaluated(self, parameters: Parameters, x: Tensor) -> Tensor:
        tensors = {**self.tensors(next(iter(parameters.values())).dtype), **parameters}
        if self.draws is None:
            return self._rows(self.evaluate(tensors, x), x)
        return self.draws.mean(lambda seed: self._rows(self.evaluate(tensors, x, seed), x))

    def _rows(self, out: Tensor, x: Tensor) -> Tensor:
        """Outputs as a matrix, [N, C]; an error where they have no row for each input."""
        if not isinstance(out, Tensor) or out.dim() == 0 or len(out) != len(x):
            given = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
            raise TypeError(f"model must return a tensor with a row for each of {len(x)} inputs, got {given}.")
        return out.flatten(1) if out.dim() > 1 else out[:, None]


def _unit(plus: Tensor, minus: Tensor | None, unmoved: Tensor | None, scale: Tensor, pairs: str) -> Tensor:
    """Unit differences of some displacements: odd part, one side, or both."""
    if pairs == "odd":
        assert minus is not None, "both ends were evaluated"
        return (plus - minus) / (2 * scale)
    assert unmoved is not None, "it was evaluated"
    one = (plus - unmoved) / scale
    return one if minus is None else torch.stack((one, (minus - unmoved) / scale))


@dataclass(frozen=True)
class _Plan:
    """How many displacements have their noise made together, are evaluated together, and at how many inputs."""

    rows: int
    stacked: int
    inputs: int

    @classmethod
    def of(cls, model: General, still: Parameters, x: Tensor, max_bytes: int) -> "_Plan":
        """Half of the budget for noise and displaced copies, half for what an evaluation makes."""
        itemsize, d = next(iter(still.values())).itemsize, model.num_params
        copies = max(1, max_bytes // 2 // (4 * itemsize * d))
        made = _bytes_made(model, still, x[:1])
        stacked = min(_STACKED, copies) if copies > 1 and model.stacks_well(still, x[:1]) else 1
        rows = max(stacked, min(copies, TILE // d))
        if model.draws:
            # The noise of an input goes by its place in the batch.
            return cls(rows, stacked, max(1, len(x)))
        return cls(rows, stacked, max(1, max_bytes // 2 // (max(1, made) * stacked)))


def _bytes_made(model: General, still: Parameters, x: Tensor) -> int:
    """Bytes that an evaluation at some inputs makes; the first one of all, which shows whether there can be one."""
    total = 0

    def count(function: Any, arguments: tuple[Any, ...], options: dict[str, Any], made: Any) -> None:
        nonlocal total
        if not function.is_view:
            total += sum(tensor.nbytes for tensor in tree_leaves(made) if isinstance(tensor, Tensor))

    try:
        with Observe(count):
            model._evaluated(still, x)
    except RuntimeError as wrong:
        dtype = next(iter(still.values())).dtype
        if dtype == model.dtype:
            raise
        raise TypeError(
            f"model must be evaluable in {dtype}, in which differences keep their digits, but fails: {wrong} "
            "Use precision='fp32' to evaluate it in the dtype of its parameters."
        ) from wrong
    return total


def _kind(x: Tensor) -> tuple[Any, ...]:
    """What inputs have in common that a model treats alike."""
    return (x.dtype, *x.shape[1:])


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if x.is_floating_point() else x


def of_module(model: nn.Module, parameters: Sequence[str] | None, draws: Draws | None = None) -> General:
    """See a module as a general model.

    Args:
        model: Any module that treats the inputs of a batch one by one; nothing of it is changed or copied.
        parameters: Names of the parameters that move, or patterns of them; None for all that require a gradient.
        draws: Draws of PyTorch's random numbers that it is averaged over; None for a module that uses none.

    Returns:
        The model.

    Raises:
        ValueError: If a layer is in training mode, a parameter is not finite, or none moves.
        TypeError: If a parameter has another dtype than float32 or float64.
    """
    check_evaluation_mode(model, may_draw=draws is not None)
    check_parameters(model)
    moved = moved_names(model, parameters)
    every = dict(model.named_parameters())
    ordinals = {name: ordinal for ordinal, name in enumerate(every)}
    rest = {name: tensor.detach() for name, tensor in [*every.items(), *model.named_buffers()] if name not in moved}
    dtypes = {every[name].dtype for name in moved}
    if len(dtypes) > 1:
        raise TypeError(f"parameters that move must have one dtype, got {', '.join(sorted(map(str, dtypes)))}.")

    def drawn(tensors: Parameters, x: Tensor, seed: int) -> Tensor:
        with seeded(seed, x.device):
            return call(model, tensors, x)

    displaced = {ordinals[name]: every[name].detach() for name in moved}
    names = {ordinals[name]: name for name in moved}
    return General(drawn if draws else partial(call, model), displaced, names, rest, draws=draws)


def of_function(
    function: Callable[..., Tensor], parameters: Mapping[str, Tensor], draws: Draws | None = None
) -> General:
    """See a function of parameters by name and inputs as a general model.

    Args:
        function: ``f(parameters, x)`` with outputs [N, ...]; with draws ``f(parameters, x, seed)``.
        parameters: All parameters, by name; their order is that of the random stream.
        draws: What it is averaged over.

    Returns:
        The model.

    Raises:
        ValueError: If there are no parameters, or one is not finite.
        TypeError: If one is no float32 or float64 tensor, or they are of several dtypes.
    """
    if not parameters:
        raise ValueError("parameters must hold the tensors of the function by name, got none.")
    for name, tensor in parameters.items():
        checks.tensor(f"parameter {name!r}", tensor)
        if tensor.dtype not in checks.FLOATS or tensor.dtype != next(iter(parameters.values())).dtype:
            raise TypeError(f"parameters must all be float32, or all float64; {name!r} is {tensor.dtype}.")
        checks.finite(f"parameter {name!r}", tensor.detach())
    displaced = {ordinal: tensor.detach() for ordinal, tensor in enumerate(parameters.values())}
    return General(function, displaced, dict(enumerate(parameters)), draws=draws)


def of_black_box(box: BlackBox, draws: Draws | None = None) -> General:
    """See a black box as a general model: one parameter, evaluated one displacement after another."""

    def evaluate(parameters: Parameters, x: Tensor, *seed: int) -> Tensor:
        return box.outputs(parameters["parameters"], x, *seed)

    return General(evaluate, {0: box.vector}, {0: "parameters"}, opaque=True, draws=draws)
