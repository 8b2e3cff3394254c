"""A model with displacements of its parameters: differences, displacements, and their weights."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from nntk.displacements import Displacements, displacements_of
from nntk.estimators.memory import check_room
from nntk.estimators.weighted import attend_to_outputs, bytes_per_displacement, query_outputs
from nntk.kernels import checks
from nntk.kernels.perturb import check_precision
from nntk.kernels.philox import unit_displacements
from nntk.models.black_box import BlackBox, Function
from nntk.models.data.inputs import Batch, InputValue
from nntk.models.data.outputs import Output, OutputChoice
from nntk.models.data.streams import Source, SourceValue, Stream, as_source, example_of
from nntk.models.draws import Draws
from nntk.models.isolation.evaluation import plain_arithmetic
from nntk.models.view import FindingsByStructure, ModelView, check_model, view_model
from nntk.settings import KernelSettings, SettingsOfKernel


class DisplacedModel(SettingsOfKernel):
    """Model with displacements of its parameters; :class:`nntk.NonlocalNTK` adds the kernel that they give.

    Args:
        model: The model.
        parameters: Names of the displaced parameters of a module, or the tensors of a callable by name.
        settings: Settings of the kernel.
        output: Choice among what the model returns.

    Attributes:
        model: The model.
        parameters: As given.
        settings: Settings of the kernel.
        output: As given.

    Raises:
        ValueError: If the model is in training mode, not finite, or does not fit the settings.
        TypeError: If the model or its parameters are of the wrong type.
    """

    def __init__(
        self,
        model: nn.Module | BlackBox | Function,
        parameters: Sequence[str] | Mapping[str, Tensor] | None,
        settings: KernelSettings,
        output: Output = None,
    ) -> None:
        self.model, self.parameters, self.settings = model, parameters, settings
        self.output, self._choose = output, OutputChoice(output)
        self._findings: FindingsByStructure = {}
        check_model(model, parameters, settings.propagation, settings.precision, settings.draws)
        check_precision(settings.precision, settings.propagation, self._view().dtype)

    @plain_arithmetic()
    def differences(self, x: InputValue, halves: bool = False) -> Tensor:
        r"""Return differences :math:`D_m(x) = f(x; \theta + \delta_m) - f(x; \theta)`, or odd parts if antithetic.

        Args:
            x: Inputs, as for a call of the kernel.
            halves: Return the differences of the plus and minus members of each antithetic pair, not the odd part.

        Returns:
            [M, N, C] in the model's dtype; with ``halves``, [2, M, N, C], the member at :math:`-\delta_m` second.

        Raises:
            ValueError: If inputs do not fit the model or are not finite, ``halves`` is requested of a kernel that is
                not antithetic, or for the reasons of a call.
            TypeError: If inputs have another dtype than the model, ``halves`` is not a bool, or as a call does.
            MemoryError: If the differences do not fit in the memory that is free.
        """
        if checks.boolean("halves", halves) and not self.antithetic:
            raise ValueError("halves must be False for a kernel with antithetic=False, got True.")
        displacements = self._displacements()
        model = displacements.model
        batch = model.inputs("x", x)
        copies = bytes_per_displacement(displacements, len(batch), model.num_outputs(batch)) // 4
        size = (2 if halves else 1) * copies * self.samples
        check_room("The differences of all displacements", size, model.device, "Fewer inputs at a time fit.")
        pairs = "both" if halves else displacements.pairs
        unit, _ = displacements.unit_differences(batch, displacements.indices, pairs)
        result = unit.mul_(displacements.scales[:, None, None])
        checks.finite("the differences of the model's outputs", result)
        return result

    @plain_arithmetic()
    def model_outputs(self, x: InputValue) -> Tensor:
        """Return the outputs at the parameters as they are, from which :meth:`differences` are taken.

        Args:
            x: Inputs, as for a call of the kernel.

        Returns:
            [N, C] in the model's dtype.

        Raises:
            ValueError: If inputs do not fit the model or are not finite.
            TypeError: If inputs have another dtype than the model.
        """
        view = self._view()
        return view.outputs(view.inputs("x", x))

    @plain_arithmetic()
    def displacement_weights(self, x: InputValue | None = None) -> Tensor:
        r"""Return the weights :math:`\alpha_m`, which sum to one over the displacements.

        Args:
            x: Inputs, [N, K], for attention on outputs, whose weights depend on them; else None.

        Returns:
            [M], float64; with attention on outputs [M, N] in the model's dtype.

        Raises:
            ValueError: If inputs are missing or given without need, do not fit the model or are not finite, or for the
                reasons of a call.
            TypeError: If inputs have another dtype than the model, or as a call does.
        """
        displacements = self._displacements()
        if self.settings.attends_to_outputs != (x is not None):
            need = "be given for attention on outputs" if x is None else "be None for weights that ignore the inputs"
            raise ValueError(f"x must {need}, got {'None' if x is None else 'a tensor'}.")
        if x is None:
            return displacements.sample_weights
        batch = displacements.model.inputs("x", x)
        queries = query_outputs(displacements, batch, None)
        state, _, _ = attend_to_outputs(displacements, batch, None, queries, displacements.indices)
        weights = state.weights().to(displacements.model.dtype)
        checks.finite("the weights, from scores at displaced parameters,", weights)
        return weights

    def displacements(self, m: int) -> dict[str, Tensor]:
        r"""Return the displacement :math:`\delta_m` itself, for inspection.

        Args:
            m: Number of the displacement, in [0, samples).

        Returns:
            One tensor for each displaced parameter, by its name in the model; add it to the parameter to get
            :math:`\theta + \delta_m`.

        Raises:
            ValueError: If ``m`` is out of range.
            TypeError: If ``m`` is not an integer.
        """
        m = checks.integer("m", m, 0, self.samples - 1)
        single = displacements_of(self.settings, self._view(), range(m, m + 1))
        model, ids = single.model, single.sample_ids
        return {
            model.names[index]: single.scales[0]
            * unit_displacements(ids, index, parameter.shape, self.seed, self.directions, model.dtype)[0]
            for index, parameter in model.displaced.items()
        }

    def squared_norms(self) -> Tensor:
        r"""Return the squared norms :math:`|\delta_m|^2`, [M], float64, in squared parameter units."""
        return self._displacements().squared_lengths

    def check_inputs(self, name: str, x: SourceValue) -> None:
        """Check that inputs fit the model, of a stream the first one.

        Args:
            name: Name of the argument, for messages.
            x: Inputs, as for a call of the kernel.

        Raises:
            ValueError: If they do not fit the model or are not finite.
            TypeError: If they have another dtype than the model.
        """
        view, source = self._view(), as_source(name, x)
        source = source.to(view.device) if isinstance(source, Stream) else source
        view.inputs(name, example_of(source))

    @property
    def num_params(self) -> int:
        """Number d of displaced parameters."""
        return self._view().num_params

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of the model's parameters, and of the kernel."""
        return self._view().dtype

    @property
    def device(self) -> torch.device:
        """Device of the model's parameters."""
        return self._view().device

    def _displacements(self) -> Displacements:
        """Return all displacements of the model as it is now."""
        return displacements_of(self.settings, self._view())

    def _view(self) -> ModelView:
        """Return the view of the model as it is now."""
        draws = None if self.draws is None else Draws(self.seed, 0, self.draws)
        return view_model(self.model, self.parameters, draws, self._findings, self._choose)

    @staticmethod
    def _inputs(view: ModelView, x1: InputValue, x2: InputValue | None) -> tuple[Batch, Batch | None]:
        """Check the inputs of rows and columns, and return them as the view takes them."""
        return view.inputs("x1", x1), None if x2 is None else view.inputs("x2", x2)

    @staticmethod
    def _sources(view: ModelView, x1: SourceValue, x2: SourceValue | None) -> tuple[Source, Source | None]:
        """Check inputs, or the first one of a stream, and return them as the view takes them."""

        def checked(name: str, x: SourceValue) -> Source:
            source = as_source(name, x)
            if not isinstance(source, Stream):
                return view.inputs(name, source)
            stream = source.to(view.device)
            view.inputs(name, stream.first)
            return stream

        return checked("x1", x1), None if x2 is None else checked("x2", x2)
