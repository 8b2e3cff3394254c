"""The nonlocal neural tangent kernel: finite, randomly displaced parameter differences instead of gradients."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from nntk.displacements.attention import Attention
from nntk.displacements.displacements import remedy
from nntk.estimators.estimate import Estimate, check_limits, estimate
from nntk.estimators.evaluation import Evaluation, Model
from nntk.estimators.memory import MemoryPlan, check_room
from nntk.kernels import checks
from nntk.kernels.assemble import (
    ESTIMATORS,
    NORMALIZATIONS,
    OUTPUTS,
    nonlocal_gradients,
)
from nntk.kernels.fixed_weights import FixedKernel, warn_if_few
from nntk.kernels.perturb import DEFAULT_BYTES, PRECISIONS, PROPAGATION, check_precision
from nntk.kernels.philox import parse, split_seed, unit_displacements
from nntk.linalg.operator import KernelOperator
from nntk.models.draws import Draws
from nntk.models.general import BlackBox, Function, of_black_box, of_function, of_module
from nntk.models.mlp import NotRecognised, recognise

_GAMMA_HINT = "gamma is the length scale of the displacements, e.g. 0.1; the kernel tends to the NTK as it falls."

_log = logging.getLogger("nntk")
_INSTEAD = (
    "kernel.operator(x) has its products, solutions and spectra without the matrix, nntk.write_kernel(path, kernel, x) "
    "writes it to a file tile by tile, and estimator='energy' holds the differences of few displacements at a time; "
    "kernel.plan(x) says what takes how much."
)
_SAMPLES_HINT = "Each sample is one displacement theta + delta_m; a thousand give about 5 % error."


class NonlocalNTK:
    r"""Nonlocal neural tangent kernel of a model, estimated from random displacements of its parameters.

    The gradient in the NTK is replaced by the nonlocal one of Nagaraj & Hari (arXiv 2509.12467),

    .. math::
        G_\gamma f(x) = \int \frac{f(x; \theta + \delta) - f(x; \theta)}{|\delta|^2}\,
        \delta\,\rho_\gamma(\delta)\,d\delta, \qquad \rho_\gamma(\delta) \propto e^{-|\delta|^2 / \gamma^2},

    so that models without a useful gradient have a kernel too. From M displacements drawn from rho, here of standard
    deviation :math:`\gamma / \sqrt 2` per coordinate, and the differences :math:`D_m(x)`, the default ``"energy"``
    estimator is

    .. math::
        K(x, x') = \frac{d}{M} \sum_m \frac{D_m(x) D_m(x')}{|\delta_m|^2} \to \Theta(x, x') \quad (\gamma \to 0),

    the NTK, for smooth models; its error falls as :math:`1 / \sqrt M`, and relative to a kernel of one output is
    :math:`\sqrt{2 / M}` or more (:func:`nntk.monte_carlo_error` predicts it). The estimators are this project's
    definitions; README.md of ``kernels/assemble`` states them. The same seed gives the same displacements on every
    device, in every dtype and for every batch.

    Args:
        model: An ``nn.Module`` that treats the inputs of a batch one by one; a callable ``f(parameters, x)`` with
            ``parameters`` to go with it; or an :class:`nntk.BlackBox` of one vector. No parameter is ever modified, and
            each call sees the present ones. An ``nn.Sequential`` of Linear layers and known activations (see
            :func:`nntk.models.mlp.recognise`) takes the fused path. Through anything else differences are propagated by
            rules for PyTorch's functions (:mod:`nntk.propagation.rules`: convolutions, norms, attention, embeddings,
            pooling, products, views), without displaced copies of its large weights; where one has no rule, the model
            is evaluated at displaced copies, in float64 unless ``precision="fp32"``, several at a time where vmap takes
            it.
        gamma: Length scale of the displacements, in parameter units, in [1e-30, 1e30].
        samples: Number M of displacements; an antithetic one costs two evaluations.
        directions: ``"gaussian"``; ``"rademacher"``, random signs of the same standard deviation; ``"flipout(B)"``,
            signs that share B bases; ``"lowrank(R)"``, products of two factors of rank R, the cheapest to evaluate and
            make, at a larger Monte-Carlo error (README.md has the figures).
        antithetic: Take the odd part :math:`[f(\theta + \delta) - f(\theta - \delta)] / 2` as difference: closer to
            :math:`\langle G f, G f \rangle`, and free of the second-order term.
        weights: A :class:`nntk.FixedKernel`, from which displacements are drawn (or, given a proposal, by which they
            are weighted), or :class:`nntk.Attention`. The gaussian above by default.
        estimator: ``"energy"``, ``"plugin"`` or ``"unbiased"``.
        normalization: ``"gradient"``, with the NTK as limit, or ``"paper"``, smaller by d squared.
        outputs: What to make of C outputs: ``"trace"`` or ``"mean"`` over them, ``"diagonal"`` or ``"full"``.
        parameters: Of a module, names of the parameters that move, or patterns such as ``"head.*"``; all that require a
            gradient by default, a tied one once. Of a callable, all its parameters by name.
        propagation: ``"difference"``, an error where it cannot be; ``"direct"``, evaluation and subtraction; or
            ``"auto"``: see :func:`nntk.kernels.perturb.mlp_differences`, and for other models the first where it can.
        precision: Of the operands of float32 products: ``"fp32"``, ``"tf32"``, ``"bf16"``, or ``"auto"`` for the
            cheapest whose error is below a tenth of the Monte-Carlo error; a CPU emulates the lower two, only if asked.
        draws: Of a stochastic model, number R of draws of its random numbers: the kernel is that of its mean output
            over R draws, the same ones at every displacement. A module draws from PyTorch's generators, seeded for
            each draw (Dropout may be in training mode); a callable or a BlackBox is given a seed as its last argument.
            The noise of an input may depend on its place in the call.
        seed: Seed of the displacements, and of draws, in [0, 2**64).
        max_memory: Bytes of temporary memory, at least 2**20; None for 128 MiB, on a GPU 256 MiB. On top come the
            results, a float64 copy of one weight at a time, and for plugin and unbiased the differences, M N C numbers,
            with the M^2 products of displacements and M slices of four rows of a weight.

    Raises:
        ValueError: If a number is out of range, a name unknown, settings exclude each other, or a parameter is not
            finite, none moves, layers do not fit, or one is in training mode or mixes the inputs of a batch.
        TypeError: If the model is nothing that can be evaluated, if a precision that only MLPs have is asked of another
            module (the message names its layer), or an argument or a parameter has the wrong type.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))
        >>> kernel = NonlocalNTK(model, gamma=1e-3, samples=256)
        >>> x = torch.randn(5, 3)
        >>> k = kernel(x)
        >>> k.shape, torch.equal(k, k.T), torch.equal(k, kernel(x))
        (torch.Size([5, 5]), True, True)
    """

    def __init__(
        self,
        model: nn.Module | BlackBox | Function,
        *,
        gamma: float = 0.1,
        samples: int = 1024,
        directions: str = "gaussian",
        antithetic: bool = True,
        weights: FixedKernel | Attention | None = None,
        estimator: str = "energy",
        normalization: str = "gradient",
        outputs: str = "trace",
        parameters: Sequence[str] | Mapping[str, Tensor] | None = None,
        propagation: str = "auto",
        precision: str = "auto",
        draws: int | None = None,
        seed: int = 0,
        max_memory: int | None = None,
    ) -> None:
        self.gamma = checks.positive_float("gamma", gamma, 1e-30, 1e30, _GAMMA_HINT)
        self.samples = checks.integer("samples", samples, 1, 2**32, _SAMPLES_HINT)
        self.directions = str(parse(directions))
        self.antithetic = checks.boolean("antithetic", antithetic)
        self.weights = FixedKernel("gaussian") if weights is None else weights
        if not isinstance(self.weights, FixedKernel | Attention):
            raise TypeError(f"weights must be a FixedKernel or an Attention, got {type(weights).__name__}.")
        self.estimator = checks.choice("estimator", estimator, ESTIMATORS)
        self.normalization = checks.choice("normalization", normalization, NORMALIZATIONS)
        self.outputs = checks.choice("outputs", outputs, OUTPUTS)
        self.propagation = checks.choice("propagation", propagation, PROPAGATION)
        self.precision = checks.choice("precision", precision, PRECISIONS)
        self.draws = None if draws is None else checks.integer("draws", draws, 1, 2**20)
        split_seed(seed)
        self.seed = seed
        self.max_memory = None if max_memory is None else checks.integer("max_memory", max_memory, 2**20)
        if estimator == "unbiased" and samples < 2:
            raise ValueError(f"samples must be at least 2 for the unbiased estimator, got {samples}.")
        self.model, self.parameters = model, parameters
        self._check_model()
        check_precision(precision, propagation, self._model().dtype)

    def _check_model(self) -> None:
        """Check what the model is, and that its parameters are given in the way that goes with it.

        Raises:
            TypeError: If it is nothing that can be evaluated, or they are given in another way.
            ValueError: If a form of the evaluation was chosen that only MLPs have.
        """
        model, parameters = self.model, self.parameters
        if self.draws and (self.propagation == "difference" or self.precision in ("tf32", "bf16")):
            raise ValueError(
                "propagation must be 'auto' or 'direct', and precision 'auto' or 'fp32', for a stochastic model; got "
                f"{self.propagation!r} and {self.precision!r}."
            )
        if isinstance(model, nn.Module):
            if isinstance(parameters, Mapping):
                raise TypeError("parameters must be names for an nn.Module, which holds the tensors; got a mapping.")
            return
        if not (isinstance(model, BlackBox) or callable(model)):
            raise TypeError(f"model must be an nn.Module, a BlackBox or a callable, got {type(model).__name__}.")
        if isinstance(model, BlackBox) != (parameters is None) or not isinstance(parameters, Mapping | None):
            need = "be None for a BlackBox" if isinstance(model, BlackBox) else "map names to tensors for a callable"
            raise TypeError(f"parameters must {need}, got {type(parameters).__name__}.")
        if isinstance(model, BlackBox) and self.propagation == "difference" or self.precision in ("tf32", "bf16"):
            raise ValueError(
                "precision must be 'auto' or 'fp32' for a model that is no MLP, and propagation 'auto' or 'direct' for "
                f"a BlackBox; got {self.precision!r} and {self.propagation!r}."
            )

    def __repr__(self) -> str:
        settings = {name: value for name, value in vars(self).items() if name not in ("model", "parameters")}
        return f"NonlocalNTK({', '.join(f'{name}={value!r}' for name, value in settings.items())})"

    @torch.no_grad()
    def __call__(self, x1: Tensor, x2: Tensor | None = None) -> Tensor:
        """The kernel between inputs.

        Args:
            x1: The rows' inputs, [N1, K] (or [N1, ...] where the model flattens), in the model's dtype.
            x2: The columns' inputs, [N2, K]; None for the symmetric kernel of ``x1``.

        Returns:
            [N1, N2] in the model's dtype, with axes [C] or [C, C] appended for ``outputs="diagonal"`` and ``"full"``.
            Exactly symmetric without ``x2``; positive semi-definite for energy and plugin.

        Raises:
            ValueError: If inputs do not fit the model or are not finite, the model's outputs are not finite, no
                displacement is left any weight, scores or a projection of one's own do not fit, or the model has become
                what is refused on construction.
            TypeError: If inputs have another dtype than the model, or the model returns no tensor with a row for each
                input, cannot be evaluated in float64, or not be propagated where ``propagation="difference"``.
            MemoryError: If the kernel does not fit in the memory that is free.
        """
        at = self._now()
        model = at.model
        first = model.inputs("x1", x1)
        second = None if x2 is None else model.inputs("x2", x2)
        plan = at.plan(first, second)
        _log.info("%s", plan)
        check_room("The kernel and what makes it", plan.total, model.device, _INSTEAD)
        if self.estimator != "energy":
            kernel = at.inner_product(first, second)
        elif (drawn := at.displacements()).by_input:
            kernel = at.attended_energy(drawn, first, second, at.keys(first, second)).result()
        else:
            kernel = at.energy(drawn, first, second)
        checks.finite("the kernel, from the model's outputs at displaced parameters,", kernel)
        return kernel

    def plan(self, x1: Tensor, x2: Tensor | None = None) -> MemoryPlan:
        """What the kernel of some inputs takes of memory, before it is made.

        Args:
            x1: The rows' inputs, as for a call.
            x2: The columns' inputs; None for the symmetric kernel of ``x1``.

        Returns:
            The plan, to be printed.

        Raises:
            ValueError: If inputs do not fit the model or are not finite.
            TypeError: If inputs have another dtype than the model.
        """
        at = self._now()
        model = at.model
        first, second = model.inputs("x1", x1), None if x2 is None else model.inputs("x2", x2)
        return at.plan(first, second)

    @torch.no_grad()
    def differences(self, x: Tensor, halves: bool = False) -> Tensor:
        r"""Differences :math:`D_m(x) = f(x; \theta + \delta_m) - f(x; \theta)`, or their odd parts if antithetic.

        Args:
            x: Inputs, [N, K], in the model's dtype.
            halves: Return both one-sided differences of each antithetic pair instead of the odd part.

        Returns:
            [M, N, C] in the model's dtype; with ``halves``, [2, M, N, C], that of :math:`-\delta_m` second.

        Raises:
            ValueError: If inputs do not fit the model or are not finite, or ``halves`` is asked of a kernel that is
                not antithetic, or for what a call of the kernel raises one.
            TypeError: If inputs have another dtype than the model, ``halves`` is no bool, or as a call does.
            MemoryError: If the differences do not fit in the memory that is free.
        """
        if checks.boolean("halves", halves) and not self.antithetic:
            raise ValueError("halves must be False for a kernel with antithetic=False, got True.")
        at = self._now()
        model, drawn = at.model, at.displacements()
        pairs = "none" if not self.antithetic else "both" if halves else "odd"
        x = model.inputs("x", x)
        size = (2 if halves else 1) * at.row_bytes(len(x), model.num_outputs(x)) // 4 * self.samples
        check_room("The differences of all displacements", size, model.device, "Fewer inputs at a time fit.")
        unit, _ = at.unit_differences(drawn, x, drawn.places, pairs)
        differences = unit.mul_(drawn.scales[:, None, None])
        checks.finite("the differences of the model's outputs", differences)
        return differences

    @torch.no_grad()
    def jacobian(self, x: Tensor) -> Tensor:
        r"""The nonlocal gradients :math:`G f(x) = d \sum_m \alpha_m(x) D_m(x)\, \delta_m / |\delta_m|^2`, estimated.

        Their inner products are the ``"plugin"`` kernel; for a smooth model they tend to the gradients as gamma falls
        and M grows beyond d. N C d numbers: for small models.

        Args:
            x: Inputs, [N, K], in the model's dtype.

        Returns:
            [N, C, d] in the model's dtype, the displaced parameters flattened in registration order; divided by d for
            ``normalization="paper"``.

        Raises:
            ValueError: If inputs do not fit the model or are not finite, or for what a call of the kernel raises one.
            TypeError: If inputs have another dtype than the model, or as a call does.
        """
        at = self._now()
        model, drawn = at.model, at.displacements()
        unit, _, weights, _, norms = at.everything(drawn, model.inputs("x", x), None)
        made = nonlocal_gradients(unit, weights, norms, model.displaced, drawn.rows, self.seed, self.directions)
        checks.finite("the nonlocal gradients", made)
        return made / model.num_params if self.normalization == "paper" else made

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        r"""Features A with :math:`K(x, x') = A(x) A(x')^\top`: inputs of other calls need none of them again.

        Of the energy form :math:`A_{n,mc} = \sqrt{d\,\alpha_m(x_n)}\, D_{mnc} / |\delta_m|`, of plugin the nonlocal
        gradients.

        Args:
            x: Inputs, [N, K], in the model's dtype.

        Returns:
            [N, F] in the model's dtype: F = M C for energy, C d for plugin.

        Raises:
            ValueError: If the estimator is unbiased, whose kernel is indefinite, or the outputs are neither traced nor
                averaged, or inputs do not fit the model or are not finite, or for what a call raises one.
            TypeError: If inputs have another dtype than the model, or as a call does.
        """
        self.check_features()
        if self.estimator == "plugin":
            made = self.jacobian(x).flatten(1)
            return made / self._num_outputs(x) ** 0.5 if self.outputs == "mean" else made
        at = self._now()
        model, drawn = at.model, at.displacements()
        unit, _, weights, _, norms = at.everything(drawn, model.inputs("x", x), None)
        weights = weights if weights.dim() == 2 else weights[:, None]
        roots = (weights * (model.num_params / norms)[:, None]).sqrt().to(unit.dtype)
        if self.outputs == "mean":
            roots = roots / unit.shape[-1] ** 0.5
        if self.normalization == "paper":
            roots = roots / model.num_params
        made = unit.mul_(roots[:, :, None]).transpose(0, 1).flatten(1)
        checks.finite("the features, from the model's outputs at displaced parameters,", made)
        return made

    def check_features(self) -> None:
        """Check that the kernel has features.

        Raises:
            ValueError: If the estimator is unbiased, or the outputs are neither traced nor averaged.
        """
        if self.estimator == "unbiased":
            raise ValueError(
                "estimator must be 'energy' or 'plugin' to have features, got 'unbiased': unbiased kernels are "
                "indefinite."
            )
        if self.outputs not in ("trace", "mean"):
            raise ValueError(f"outputs must be 'trace' or 'mean' to have features, got {self.outputs!r}.")

    def check_inputs(self, name: str, x: Tensor) -> None:
        """Check that inputs fit the model.

        Args:
            name: Name of the argument, for messages.
            x: Inputs, [N, ...].

        Raises:
            ValueError: If they do not fit the model or are not finite.
            TypeError: If they have another dtype than the model.
        """
        self._model().inputs(name, x)

    def _num_outputs(self, x: Tensor) -> int:
        model = self._model()
        return model.num_outputs(model.inputs("x", x))

    @torch.no_grad()
    def diagonal(self, x: Tensor) -> Tensor:
        """The kernel of each input with itself.

        Args:
            x: Inputs, [N, K], in the model's dtype.

        Returns:
            [N], with axes [C] or [C, C] appended for ``outputs="diagonal"`` and ``"full"``.

        Raises:
            ValueError: If inputs do not fit the model or are not finite, or for what a call of the kernel raises one.
            TypeError: If inputs have another dtype than the model, or as a call does.
        """
        if self.outputs in ("trace", "mean") and self.estimator != "unbiased":
            return self.operator(x).diagonal().to(self._model().dtype)
        x = self._model().inputs("x", x)
        # One input at a time: nothing else of the kernel is made.
        made = [self(x[n : n + 1])[0] for n in range(len(x))]
        return torch.cat(made) if made else torch.diagonal(self(x)).movedim(-1, 0)

    def operator(self, x: Tensor) -> KernelOperator:
        """The kernel of many inputs as a linear operator: products, solutions and spectra without the matrix.

        Args:
            x: Inputs, [N, K], in the model's dtype.

        Returns:
            The operator.

        Raises:
            ValueError: If the kernel has no features (see :meth:`features`), or inputs do not fit the model or are not
                finite, or for what a call of the kernel raises one.
            TypeError: If inputs have another dtype than the model, or as a call does.
        """
        self.check_inputs("x", x)
        self.check_features()
        return KernelOperator(self.features, self.__call__, x, self.max_memory or DEFAULT_BYTES)

    @torch.no_grad()
    def estimate(
        self,
        x1: Tensor,
        x2: Tensor | None = None,
        *,
        rtol: float = 0.05,
        max_samples: int = 2**17,
        progress: Callable[[Estimate], None] | None = None,
    ) -> Estimate:
        """The kernel with error bars, of as many displacements as the tolerance needs.

        Displacements come in groups, of a sixteenth of ``samples`` each, until the standard error of the matrix, by the
        scatter of the groups, is small enough. They are those of the stream from the first on: the kernel is that of a
        :class:`NonlocalNTK` of as many samples. Of a stochastic model each group has ``draws`` draws of its own: its
        kernel is the mean over draws, and the error is that of displacements and draws together.

        Energy without weights is a mean over groups, whose scatter tells. No other kernel is: its error is that of the
        kernels without one group (a jackknife). For that, up to 31 groups are kept, each with its kernel, or for plugin
        and unbiased with its differences, of which each look makes float64 copies; beyond, two become one. Where M is
        not large against d, the error of plugin and unbiased is overstated, by a factor of 1.44 at most. That of plugin
        is about the mean of plugin kernels of as many displacements: see :meth:`nntk.Estimate.interval`.

        Args:
            x1: The rows' inputs, [N1, K].
            x2: The columns' inputs, [N2, K]; None for the symmetric kernel of ``x1``.
            rtol: Standard error of the matrix over its Frobenius norm that ends it.
            max_samples: Displacements that end it, with ``converged=False``; 16 groups at least.
            progress: Is given the estimate so far, from sixteen groups on.

        Returns:
            The kernel, the standard error of each entry, and how they came about.

        Raises:
            ValueError: If a number is out of range, inputs do not fit the model or are not finite, no displacement has
                a weight, or the model's outputs are not finite.
            TypeError: If inputs have another dtype than the model.
        """
        rtol, max_samples = check_limits(rtol, max_samples, self.samples)
        at = self._now()
        model = at.model
        first = model.inputs("x1", x1)
        second = None if x2 is None else model.inputs("x2", x2)
        tally = at.tally(first, second)
        found = estimate(tally, model.dtype, 2 if self.antithetic else 1, rtol, max_samples, progress)
        warn_if_few(found.effective_samples, found.samples, remedy(self.weights))
        return found

    @torch.no_grad()
    def displacement_weights(self, x: Tensor | None = None) -> Tensor:
        r"""The weights :math:`\alpha_m`, which sum to one over the displacements.

        Args:
            x: Inputs, [N, K]; needed for attention on outputs, whose weights depend on them, and else not taken.

        Returns:
            [M], float64; with attention on outputs [M, N] in the model's dtype.

        Raises:
            ValueError: If inputs are missing or of no use, do not fit the model or are not finite, or for what a call
                of the kernel raises one.
            TypeError: If inputs have another dtype than the model, or as a call does.
        """
        at = self._now()
        model, drawn = at.model, at.displacements()
        if drawn.by_input != (x is not None):
            need = "be given for attention on outputs" if x is None else "be None for weights that ignore the inputs"
            raise ValueError(f"x must {need}, got {'None' if x is None else 'a tensor'}.")
        if x is None:
            return drawn.row_weights
        x = model.inputs("x", x)
        attended, _, _ = at.attend(drawn, x, None, at.keys(x, None), drawn.places)
        weights = attended.weights().to(model.dtype)
        checks.finite("the weights, from scores at displaced parameters,", weights)
        return weights

    def displacements(self, m: int) -> dict[str, Tensor]:
        r"""The displacement :math:`\delta_m` itself, for inspection.

        Args:
            m: Which one, in [0, samples).

        Returns:
            One tensor for each displaced parameter, by its name in the model: add it to the parameter to get
            :math:`\theta + \delta_m`.

        Raises:
            ValueError: If ``m`` is out of range.
            TypeError: If ``m`` is no integer.
        """
        m = checks.integer("m", m, 0, self.samples - 1)
        at = self._now()
        model = at.model
        drawn = at.displacements(range(m, m + 1))
        return {
            model.names[ordinal]: drawn.scales[0]
            * unit_displacements(drawn.rows, ordinal, parameter.shape, self.seed, self.directions, model.dtype)[0]
            for ordinal, parameter in model.displaced.items()
        }

    def squared_norms(self) -> Tensor:
        r"""Squared norms :math:`|\delta_m|^2` of the displacements, [M], float64, in squared parameter units."""
        return self._now().displacements().squared_lengths

    @property
    def num_params(self) -> int:
        """Number d of displaced parameters."""
        return self._model().num_params

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of the model's parameters, and of the kernel."""
        return self._model().dtype

    @property
    def evaluations(self) -> int:
        """Displaced evaluations of the model for each input: an antithetic sample counts two."""
        return self.samples * (2 if self.antithetic else 1)

    def _now(self) -> Evaluation:
        """The settings with the model as it is now."""
        return Evaluation(self, self._model())

    def _model(self) -> Model:
        """The model as it is now: an MLP by its layers, anything else by plain evaluation."""
        draws = None if self.draws is None else Draws(self.seed, 0, self.draws)
        if isinstance(self.model, BlackBox):
            return of_black_box(self.model, draws)
        if not isinstance(self.model, nn.Module):
            assert isinstance(self.parameters, Mapping), "checked on construction"
            return of_function(self.model, self.parameters, draws)
        names = cast("Sequence[str] | None", self.parameters)
        if draws:
            return of_module(self.model, names, draws)
        if self.precision in ("tf32", "bf16"):
            return recognise(self.model, names)
        try:
            return recognise(self.model, names)
        except NotRecognised:
            return of_module(self.model, names)
