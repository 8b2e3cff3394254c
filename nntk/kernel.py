"""The nonlocal neural tangent kernel: its settings and its public methods."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from nntk.attention import Attention
from nntk.displaced_model import DisplacedModel
from nntk.displacements import Displacements, remedy
from nntk.estimators.assembly import assemble_kernel, kernel_plan, shared_plan
from nntk.estimators.errors.build import error_estimator
from nntk.estimators.errors.estimate import Estimate, check_limits, estimate
from nntk.estimators.features import features, gradients
from nntk.estimators.plan import Plan
from nntk.estimators.rank_plan import H100, Rates
from nntk.kernels import checks
from nntk.kernels.fixed_weights import FixedKernel, warn_if_few
from nntk.linalg.operator import KernelOperator
from nntk.models.black_box import BlackBox, Function
from nntk.models.data.inputs import Batch, InputValue
from nntk.models.data.outputs import Output
from nntk.models.data.streams import Source, SourceValue, Stream, as_source, example_of
from nntk.models.isolation.evaluation import plain_arithmetic
from nntk.settings import KernelSettings


class NonlocalNTK(DisplacedModel):
    r"""Nonlocal neural tangent kernel of a model, estimated from random displacements of its parameters.

    The gradient in the NTK is replaced by the nonlocal gradient of Nagaraj & Hari (arXiv 2509.12467),

    .. math::
        G_\gamma f(x) = \int \frac{f(x; \theta + \delta) - f(x; \theta)}{|\delta|^2}\,
        \delta\,\rho_\gamma(\delta)\,d\delta, \qquad \rho_\gamma(\delta) \propto e^{-|\delta|^2 / \gamma^2},

    so that models without a useful gradient have a kernel too. M displacements are drawn from rho, which has standard
    deviation :math:`\gamma / \sqrt 2` per coordinate. From their differences :math:`D_m(x)` the default estimator,
    ``"energy"``, is

    .. math::
        K(x, x') = \frac{d}{M} \sum_m \frac{D_m(x) D_m(x')}{|\delta_m|^2} \to \Theta(x, x') \quad (\gamma \to 0).

    For smooth models the limit is the NTK. The error falls as :math:`1 / \sqrt M`; relative to a kernel of one output
    it is :math:`\sqrt{2 / M}` or more, and :func:`nntk.monte_carlo_error` predicts it. The estimators are defined by
    this project, in the README of ``kernels/assemble``. The same seed gives the same displacements on every device, in
    every dtype and for every batch.

    Args:
        model: An ``nn.Module`` that treats the inputs of a batch one by one; a callable ``f(parameters, x)``, with its
            tensors as ``parameters``; or a :class:`nntk.BlackBox` of one vector. No parameter is ever modified, and
            each call sees the present values. An ``nn.Sequential`` of Linear layers and known activations (see
            :func:`nntk.models.recognise.recognise`) is evaluated by its layers. Any other model is evaluated at
            displaced copies in float32, if that changes the kernel by less than a tenth of its Monte-Carlo error, which
            is measured at the first inputs. Else a model with jumps is evaluated at copies in float64 on a CPU; others,
            and where copies lose digits, by rules for PyTorch's functions (:mod:`nntk.propagation`). What has no rule
            is evaluated at copies in float64 unless ``precision="fp32"``. :meth:`plan` says which route a model takes,
            and why.
        gamma: Length scale of the displacements, in parameter units, in [1e-30, 1e30].
        samples: Number M of displacements; an antithetic one costs two evaluations.
        directions: Family of the unit displacements: ``"gaussian"``; ``"rademacher"``, random signs of the same
            standard deviation; ``"flipout(B)"``, signs that share B bases; ``"lowrank(R)"``, products of two factors of
            rank R, the cheapest family, with a larger Monte-Carlo error (README.md has the figures).
        antithetic: Take the odd part :math:`[f(\theta + \delta) - f(\theta - \delta)] / 2` as difference. It is closer
            to :math:`\langle G f, G f \rangle`, and free of the second-order term.
        weights: A :class:`nntk.FixedKernel`, from which displacements are drawn (or, given a proposal, by which they
            are weighted), or :class:`nntk.Attention`; the gaussian above by default.
        estimator: ``"energy"``, ``"plugin"`` or ``"unbiased"``.
        normalization: ``"gradient"``, with the NTK as limit, or ``"paper"``, smaller by d squared.
        outputs: Treatment of the C outputs: ``"trace"`` or ``"mean"`` over them, ``"diagonal"`` or ``"full"``.
        parameters: For a module, names of the displaced parameters, or patterns such as ``"head.*"``; by default all
            that require a gradient, a tied one once. For a callable, all its parameters by name.
        output: Choice among several outputs: a key or attribute, an index, or a function of what the model returns. By
            default a tensor as it is, and ``"logits"`` of a mapping or a dataclass that has it.
        propagation: ``"difference"``, which fails where differences cannot be propagated; ``"direct"``, evaluation and
            subtraction; ``"auto"``: see :func:`nntk.kernels.perturb.mlp_differences`, for other models ``model``.
        precision: Precision of the operands of float32 products: ``"fp32"``, ``"tf32"``, ``"bf16"``, or ``"auto"`` for
            the cheapest whose error is below a tenth of the Monte-Carlo error: for an MLP on a GPU, else ``"fp32"``. A
            CPU emulates ``"tf32"`` and ``"bf16"``. Rules use them on request, unless the model jumps.
        draws: Number R of draws of a stochastic model's random numbers. The kernel is that of the mean output over R
            draws, which are the same at every displacement. A module draws from PyTorch's generators, seeded for each
            draw (Dropout may be in training mode); a callable or a BlackBox is given a seed as its last argument. The
            noise of an input may depend on its place in the batch.
        seed: Seed of the displacements and of the draws, in [0, 2**64).
        max_memory: Budget of temporary memory in bytes, at least 2**20; None for 128 MiB, on a GPU a fortieth of its
            memory (2 GiB of 80 GiB, at least 256 MiB). The results come on top, a float64 copy of one weight at a time,
            and for plugin and unbiased the differences, M N C numbers, with the M^2 products of displacements and M
            slices of four rows of a weight.

    Raises:
        ValueError: If a number is out of range, a name unknown, settings exclude each other, a parameter is not finite,
            no parameter is displaced, layers do not fit, or a layer is in training mode or mixes the inputs of a batch.
        TypeError: If the model is nothing that can be evaluated, or an argument or a parameter has the wrong type.

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
        output: Output = None,
        propagation: str = "auto",
        precision: str = "auto",
        draws: int | None = None,
        seed: int = 0,
        max_memory: int | None = None,
    ) -> None:
        settings = KernelSettings(
            gamma, samples, directions, antithetic, FixedKernel("gaussian") if weights is None else weights, estimator,
            normalization, outputs, propagation, precision, draws, seed, max_memory,
        )  # fmt: skip
        super().__init__(model, parameters, settings, output)

    def __repr__(self) -> str:
        return f"NonlocalNTK({', '.join(f'{name}={value!r}' for name, value in vars(self.settings).items())})"

    @plain_arithmetic()
    def __call__(self, x1: SourceValue, x2: SourceValue | None = None) -> Tensor:
        """Return the kernel between inputs.

        Args:
            x1: Inputs of the rows, [N1, ...], floating ones in the model's dtype: a tensor; a tuple or a mapping of
                tensors, which is evaluated as ``model(*x1)`` or ``model(**x1)``; :class:`nntk.Inputs`; or a DataLoader
                or another :class:`nntk.Stream` of batches, of which only as many are held as the budget has room for.
            x2: Inputs of the columns, [N2, ...]; None for the symmetric kernel of ``x1``.

        Returns:
            [N1, N2] in the model's dtype, with axes [C] or [C, C] appended for ``outputs="diagonal"`` and ``"full"``.
            Exactly symmetric without ``x2``; positive semi-definite for energy and plugin.

        Raises:
            ValueError: If inputs do not fit the model or are not finite, the model's outputs are not finite, every
                displacement has weight zero, custom scores or a projection do not fit, or the model has changed to
                what the constructor refuses.
            TypeError: If inputs have another dtype than the model, or the model returns no tensor with a row for each
                input, cannot be evaluated in float64, or cannot be propagated where ``propagation="difference"``.
            MemoryError: If the kernel does not fit in the memory that is free.
        """
        displacements = self._displacements()
        return assemble_kernel(displacements, *self._sources(displacements.model, x1, x2))

    def plan(
        self, x1: SourceValue, x2: SourceValue | None = None, *, ranks: int = 1, over: str = "inputs",
        rates: Rates = H100,
    ) -> Plan:  # fmt: skip
        """Return the memory that the kernel of some inputs takes, and the route of its evaluation, before it begins.

        Args:
            x1: Inputs of the rows, as for a call.
            x2: Inputs of the columns; None for the symmetric kernel of ``x1``.
            ranks: Number of ranks; from 2 on, the plan is a :class:`nntk.distributed.RankPlan`.
            over: Way in which ranks share the kernel: ``displacements``, ``inputs``, ``features`` or ``tiles``.
            rates: Rates of a rank.

        Returns:
            The plan; ``print`` shows it. Its ``paths`` name the path of each layer of an MLP on a GPU.

        Raises:
            ValueError: If inputs do not fit the model or are not finite, or cannot be planned over ranks.
            TypeError: If inputs have another dtype than the model.
        """
        displacements = self._displacements()
        with plain_arithmetic():
            sources = self._sources(displacements.model, x1, x2)
            return (
                kernel_plan(displacements, *sources)
                if ranks == 1
                else shared_plan(displacements, *sources, ranks, over, rates)
            )

    @plain_arithmetic()
    def jacobian(self, x: InputValue) -> Tensor:
        r"""Return the nonlocal gradients :math:`G f(x) = d \sum_m \alpha_m(x) D_m(x)\, \delta_m / |\delta_m|^2`.

        Their inner products are the ``"plugin"`` kernel. For a smooth model they tend to the gradients as gamma falls
        and M grows beyond d. They are N C d numbers: for small models.

        Args:
            x: Inputs, as for a call of the kernel.

        Returns:
            [N, C, d] in the model's dtype, with the displaced parameters flattened in registration order; divided by d
            for ``normalization="paper"``.

        Raises:
            ValueError: If inputs do not fit the model or are not finite, or for the reasons of a call.
            TypeError: If inputs have another dtype than the model, or as a call does.
        """
        displacements = self._displacements()
        return gradients(displacements, displacements.model.inputs("x", x))

    @plain_arithmetic()
    def features(self, x: InputValue) -> Tensor:
        r"""Return features A with :math:`K(x, x') = A(x) A(x')^\top`.

        The features of some inputs need no other inputs, so that kernels with later inputs reuse them. For energy
        :math:`A_{n,mc} = \sqrt{d\,\alpha_m(x_n)}\, D_{mnc} / |\delta_m|`; for plugin they are the nonlocal gradients.

        Args:
            x: Inputs, as for a call of the kernel.

        Returns:
            [N, F] in the model's dtype: F = M C for energy, C d for plugin.

        Raises:
            ValueError: If the estimator is unbiased, whose kernel is indefinite, the outputs are neither traced nor
                averaged, inputs do not fit the model or are not finite, or for the reasons of a call.
            TypeError: If inputs have another dtype than the model, or as a call does.
        """
        self.check_features()
        displacements = self._displacements()
        return features(displacements, displacements.model.inputs("x", x))

    def check_features(self) -> None:
        """Check that the kernel has features.

        Raises:
            ValueError: If the estimator is unbiased, or the outputs are neither traced nor averaged.
        """
        self.settings.check_features()

    @plain_arithmetic()
    def diagonal(self, x: InputValue) -> Tensor:
        """Return the kernel of each input with itself.

        Args:
            x: Inputs, as for a call of the kernel.

        Returns:
            [N], with axes [C] or [C, C] appended for ``outputs="diagonal"`` and ``"full"``.

        Raises:
            ValueError: If inputs do not fit the model or are not finite, or for the reasons of a call.
            TypeError: If inputs have another dtype than the model, or as a call does.
        """
        displacements = self._displacements()
        model = displacements.model
        batch = model.inputs("x", x)
        if self.outputs in ("trace", "mean") and self.estimator != "unbiased":
            return self._operator(displacements, batch).diagonal().to(model.dtype)
        # One input at a time, so that no other entry of the kernel is computed.
        entries = [assemble_kernel(displacements, batch[n : n + 1], None)[0] for n in range(len(batch))]
        return (
            torch.cat(entries)
            if entries
            else torch.diagonal(assemble_kernel(displacements, batch, None)).movedim(-1, 0)
        )

    def operator(self, x: SourceValue) -> KernelOperator:
        """Return the kernel of many inputs as a linear operator: products, solutions and spectra without the matrix.

        The model must not change while the operator is in use.

        Args:
            x: Inputs, as for a call of the kernel.

        Returns:
            The operator.

        Raises:
            ValueError: If the kernel has no features (see :meth:`features`), inputs do not fit the model or are not
                finite, or for the reasons of a call.
            TypeError: If inputs have another dtype than the model, or as a call does.
        """
        displacements = self._displacements()
        source, model = as_source("x", x), displacements.model
        source = source.to(model.device) if isinstance(source, Stream) else source
        model.inputs("x", example_of(source))
        self.check_features()
        return self._operator(displacements, source)

    def _operator(self, displacements: Displacements, x: Source) -> KernelOperator:
        """Return the operator of checked inputs; it evaluates one view of the model."""

        @plain_arithmetic()
        def features_of(inputs: Batch) -> Tensor:
            return features(displacements, displacements.model.inputs("x", inputs))

        @plain_arithmetic()
        def kernel_of(inputs: Source) -> Tensor:
            return assemble_kernel(displacements, *self._sources(displacements.model, inputs, None))

        return KernelOperator(features_of, kernel_of, x, self.settings.budget(displacements.model.device))

    @plain_arithmetic()
    def estimate(
        self,
        x1: InputValue,
        x2: InputValue | None = None,
        *,
        rtol: float = 0.05,
        max_samples: int = 2**17,
        progress: Callable[[Estimate], None] | None = None,
        keep_replicates: bool = False,
    ) -> Estimate:
        """Return the kernel with error bars, from as many displacements as the tolerance requires.

        Displacements are drawn in groups, of a sixteenth of ``samples`` each, until the standard error of the matrix,
        from the scatter of the groups, is small enough. They are the first ones of the stream: the kernel is that of a
        :class:`NonlocalNTK` with as many samples. For a stochastic model each group has ``draws`` draws of its own: the
        kernel is the mean over draws, and the error is that of displacements and draws together.

        Energy without weights is a mean over groups. The error of any other kernel is that of a jackknife, which keeps
        up to 31 groups, each with its kernel, or for plugin and unbiased with its differences, of which each error
        check makes float64 copies; 32 groups are joined in pairs. Where M is not large against d, the error of plugin
        and unbiased is overstated, by a factor of 1.44 at most. The error of plugin is about the mean of plugin kernels
        of as many displacements: see :meth:`nntk.Estimate.interval`.

        Args:
            x1: Inputs of the rows, as for a call.
            x2: Inputs of the columns; None for the symmetric kernel of ``x1``.
            rtol: Standard error of the matrix over its Frobenius norm that ends the estimate.
            max_samples: Number of displacements that ends the estimate with ``converged=False``; at least 16 groups.
            progress: Receives the estimate so far, from sixteen groups on.
            keep_replicates: Keep up to 31 kernels without one group each, from which :func:`nntk.compare` has its
                errors.

        Returns:
            The kernel, the standard error of each entry, and the numbers of samples and groups.

        Raises:
            ValueError: If a number is out of range, inputs do not fit the model or are not finite, every displacement
                has weight zero, or the model's outputs are not finite.
            TypeError: If inputs have another dtype than the model.
        """
        rtol, max_samples = check_limits(rtol, max_samples, self.samples)
        checks.boolean("keep_replicates", keep_replicates)
        view = self._view()
        errors = error_estimator(self.settings, view, *self._inputs(view, x1, x2), keep_replicates)
        result = estimate(errors, view.dtype, self.settings.members, rtol, max_samples, progress)
        warn_if_few(result.effective_samples, result.samples, remedy(self.weights))
        return result
