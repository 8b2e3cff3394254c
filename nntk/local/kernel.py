"""The ordinary (local) NTK of a model as an object: kernel, diagonal, features, operator and plan."""

import torch
from torch import Tensor, nn

from nntk.kernels import checks
from nntk.kernels.assemble import OUTPUTS
from nntk.kernels.perturb.config import default_bytes
from nntk.kernels.philox import displacements_by_ordinal, parse, split_seed
from nntk.kernels.slices import slices
from nntk.local.jacobian import jacobian_features, kernel_diagonal
from nntk.local.local_ntk import METHODS, is_structured, local_ntk, structured_inputs, structured_problem
from nntk.local.memory import LocalPlan, plan
from nntk.local.operator import LocalNTKOperator
from nntk.local.products import JacobianProducts
from nntk.local.subject import Parameters, Subject, plain_gradients
from nntk.models.black_box import Function
from nntk.models.data.inputs import Batch, InputValue, as_batch
from nntk.models.data.outputs import Output
from nntk.models.data.streams import SourceValue, Stream, as_source, example_of


class LocalNTK:
    r"""Ordinary neural tangent kernel of a model, from its gradients.

    .. math::
        \Theta_{nn'}^{cc'} = \langle \nabla_\theta f_c(x_n), \nabla_\theta f_{c'}(x_{n'}) \rangle

    It is the limit of :class:`nntk.NonlocalNTK` as gamma falls, and has the same methods. A call equals
    :func:`nntk.local_ntk`, which states the contract. Each call sees the present values of the parameters, and none
    modifies them.

    Args:
        model: An ``nn.Module`` that treats the inputs of a batch one by one, or a function ``f(parameters, x)``.
        parameters: For a module, names of the parameters that count, or patterns such as ``"head.*"`` or
            ``"*lora_*"``; by default all that require a gradient. For a function, all its tensors by name.
        outputs: Treatment of C outputs: ``"trace"`` or ``"mean"`` over them, ``"diagonal"`` or ``"full"``.
        output: Choice among several outputs, as for :func:`nntk.local_ntk`.
        method: Method of the kernel matrix, as for :func:`nntk.local_ntk`.
        dtype: Dtype of the computation and of the kernel; None for that of the parameters. ``torch.float64`` makes a
            reference for a model in float32.
        max_memory: Budget of temporary memory in bytes, at least 2**20; None for 128 MiB, on a GPU a fortieth of its
            memory.

    Attributes:
        model: The model.
        parameters: As given.
        outputs: Treatment of the outputs.
        output: Choice among several outputs, as given.
        method: Method of the kernel matrix.
        max_memory: Budget as given.

    Raises:
        ValueError: If a name is unknown, a number is out of range, a layer is in training mode, a parameter is not
            finite, or none counts.
        TypeError: If the model has no gradient by its kind, or an argument has the wrong type.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))
        >>> kernel = LocalNTK(model, parameters=["2.*"])
        >>> x = torch.randn(5, 3)
        >>> torch.allclose(kernel(x), kernel.operator(x) @ torch.eye(5), rtol=1e-4, atol=1e-5)
        True
    """

    def __init__(
        self,
        model: nn.Module | Function,
        *,
        parameters: Parameters = None,
        outputs: str = "trace",
        output: Output = None,
        method: str = "auto",
        dtype: torch.dtype | None = None,
        max_memory: int | None = None,
    ) -> None:
        self.model, self.parameters, self.output = model, parameters, output
        self.outputs = checks.choice("outputs", outputs, OUTPUTS)
        self.method = checks.choice("method", method, METHODS)
        self.max_memory = None if max_memory is None else checks.integer("max_memory", max_memory, 2**20)
        self._dtype = dtype
        self._subject()

    def __repr__(self) -> str:
        settings = ("parameters", "outputs", "output", "method", "dtype", "max_memory")
        return f"LocalNTK({', '.join(f'{name}={getattr(self, name)!r}' for name in settings)})"

    def __call__(self, x1: InputValue, x2: InputValue | None = None) -> Tensor:
        """Return the kernel between inputs, as :func:`nntk.local_ntk` does.

        Args:
            x1: Inputs of the rows, [N1, ...]: one tensor, or several as for :func:`nntk.local_ntk`.
            x2: Inputs of the columns, [N2, ...]; None for the symmetric kernel of ``x1``.

        Returns:
            [N1, N2] in the kernel's dtype, with axes [C] or [C, C] appended for ``outputs="diagonal"`` and ``"full"``.

        Raises:
            ValueError: For the reasons that :func:`nntk.local_ntk` names.
            TypeError: For the reasons that :func:`nntk.local_ntk` names.
            MemoryError: If the kernel and what makes it do not fit in the free memory.
        """
        return local_ntk(
            self.model, x1, x2, parameters=self.parameters, outputs=self.outputs, output=self.output,
            method=self.method, dtype=self._dtype, max_memory=self.max_memory,
        )  # fmt: skip

    def diagonal(self, x: InputValue) -> Tensor:
        r"""Return the kernel of each input with itself, :math:`\sum_c |\nabla_\theta f_c(x_n)|^2` where traced.

        Args:
            x: Inputs, [N, ...].

        Returns:
            [N] in the kernel's dtype, with axes [C] or [C, C] appended for ``outputs="diagonal"`` and ``"full"``.

        Raises:
            ValueError: For the reasons of a call.
            TypeError: For the reasons of a call.
            MemoryError: If the Jacobian of one input does not fit in the free memory.
        """
        subject = self._subject()
        with plain_gradients(subject.view.device):
            batch = as_batch("x", x)
            if is_structured(subject, batch, self.method):
                batch = structured_inputs(subject, "x", batch)
            else:
                batch = self._inputs(subject, batch)
            return kernel_diagonal(subject, batch, self.outputs, self._budget(subject))

    def features(self, x: InputValue, sketch: int | None = None, seed: int = 0, directions: str = "gaussian") -> Tensor:
        r"""Return features A with :math:`K(x, x') = A(x) A(x')^\top`, exactly or in the mean over sketches.

        Without a sketch they are the Jacobians. A sketch of size R multiplies them by R random vectors
        :math:`E_r` of unit variance,

        .. math::
            A_{n,rc} = R^{-1/2} \langle \nabla_\theta f_c(x_n), E_r \rangle, \qquad
            \mathbb{E}[A(x) A(x')^\top] = K(x, x'),

        each by a forward derivative. They are the displacements of ``NonlocalNTK(model, samples=R, seed=seed)``, whose
        features tend to these as gamma falls. The relative error is :math:`\sqrt{2 / R}` or more;
        :func:`nntk.monte_carlo_error` predicts it. ``nntk.KernelOperator`` takes features as a function.

        Args:
            x: Inputs, [N, ...].
            sketch: Number R of random vectors; None for the exact features.
            seed: Seed of the random vectors, in [0, 2**64).
            directions: Family of the random vectors, as for :class:`nntk.NonlocalNTK`.

        Returns:
            [N, C d] in the kernel's dtype, or [N, R C] with a sketch.

        Raises:
            ValueError: If outputs are neither traced nor averaged, a number is out of range, or for the reasons of a
                call.
            TypeError: If an argument has the wrong type, or for the reasons of a call.
            MemoryError: If the features do not fit in the free memory.
        """
        if self.outputs not in ("trace", "mean"):
            raise ValueError(f"outputs must be 'trace' or 'mean' to have features, got {self.outputs!r}.")
        if sketch is not None:
            checks.integer("sketch", sketch, 1, 2**32)
        split_seed(seed)
        family, subject = str(parse(directions)), self._subject()
        with plain_gradients(subject.view.device):
            batch = self._inputs(subject, x)
            budget = self._budget(subject)
            if sketch is None:
                features = jacobian_features(subject, batch, budget)
                num_outputs = features.shape[1] // subject.view.num_params
            else:
                products = JacobianProducts(subject, batch, budget)
                num_outputs = products.num_outputs
                features = self._sketch(subject, products, len(batch), sketch, seed, family)
        checks.finite("the features, from the model's gradients,", features)
        if self.outputs == "mean":
            features /= num_outputs**0.5
        return features

    @staticmethod
    def _sketch(
        subject: Subject, products: JacobianProducts, num_inputs: int, size: int, seed: int, directions: str
    ) -> Tensor:
        """Return products of the Jacobians with random vectors, [N, R C]."""
        displaced, device = subject.general.displaced, subject.general.device
        shapes = {index: tuple(parameter.shape) for index, parameter in displaced.items()}
        features = torch.empty(num_inputs, size, products.num_outputs, dtype=subject.dtype, device=device)
        for some in slices(size, products.vectors):
            ids = torch.arange(some.start, some.stop, device=device)
            noise = displacements_by_ordinal(ids, shapes, seed, directions, subject.dtype)
            vectors = torch.cat([noise[index].flatten(1) for index in displaced], dim=1)
            features[:, some] = products.push_forward(vectors).transpose(0, 1).to(subject.dtype)
        features /= size**0.5
        return features.flatten(1)

    def operator(self, x: InputValue) -> LocalNTKOperator:
        """Return the kernel of many inputs as a linear operator: no kernel and no Jacobian is formed.

        The model must not change while the operator is in use.

        Args:
            x: Inputs, [N, ...].

        Returns:
            The operator, N x N; for ``outputs="full"`` NC x NC, and entry n C + c belongs to output c at input n.

        Raises:
            ValueError: If the outputs are ``"diagonal"``, inputs do not fit the model or are not finite, or for the
                reasons of a call.
            TypeError: If inputs have another dtype than the model, or for the reasons of a call.
            MemoryError: If the gradient of one output does not fit in the free memory.
        """
        if self.outputs == "diagonal":
            raise ValueError("outputs must be 'trace', 'mean' or 'full' for an operator, got 'diagonal'.")
        subject = self._subject()
        with plain_gradients(subject.view.device):
            batch = self._inputs(subject, x)
        return LocalNTKOperator(subject, batch, self.outputs, self._budget(subject))

    def plan(self, x1: InputValue, x2: InputValue | None = None) -> LocalPlan:
        """Return the method and the memory of the kernel of some inputs, before it begins.

        Args:
            x1: Inputs of the rows, [N1, ...].
            x2: Inputs of the columns, [N2, ...]; None for the symmetric kernel of ``x1``.

        Returns:
            The plan; ``print`` shows it. ``method="auto"`` may still turn to ``"reverse"`` where ``torch.func`` is
            found to be wrong.

        Raises:
            ValueError: For the reasons of a call.
            TypeError: For the reasons of a call.
        """
        subject = self._subject()
        rows: Batch = as_batch("x1", x1)
        columns: Batch | None = None if x2 is None else as_batch("x2", x2)
        with plain_gradients(subject.view.device):
            if is_structured(subject, rows, self.method):
                first = structured_inputs(subject, "x1", rows)
                second = None if columns is None else structured_inputs(subject, "x2", columns)
                problem, method = structured_problem(subject, subject.mlp(), first, second, self.outputs), "structured"
            else:
                rows = self._inputs(subject, rows, "x1")
                columns = None if columns is None else self._inputs(subject, columns, "x2")
                problem = subject.problem(rows, columns, self.outputs)
                method = "jacobian" if self.method == "auto" else self.method
            sizes = plan(problem, method, self._budget(subject))
        return LocalPlan.of(method, problem, sizes, subject.view.device)

    def check_inputs(self, name: str, x: SourceValue) -> None:
        """Check that inputs fit the model, of a stream the first one.

        Args:
            name: Name of the argument, for messages.
            x: Inputs, as for a call, or a :class:`nntk.Stream` of them.

        Raises:
            ValueError: If they do not fit the model or are not finite.
            TypeError: If they have another dtype than the model.
        """
        subject, source = self._subject(), as_source(name, x)
        source = source.to(subject.view.device) if isinstance(source, Stream) else source
        with plain_gradients(subject.view.device):
            self._inputs(subject, example_of(source), name)

    @property
    def num_params(self) -> int:
        """Number d of parameters that count."""
        return self._subject().view.num_params

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of the kernel."""
        return self._subject().dtype

    @property
    def device(self) -> torch.device:
        """Device of the model's parameters."""
        return self._subject().view.device

    def _subject(self) -> Subject:
        """Return the model as it is now."""
        return Subject.of(self.model, self.parameters, self._dtype, self.output)

    @staticmethod
    def _inputs(subject: Subject, x: InputValue, name: str = "x") -> Batch:
        with torch.enable_grad():  # A forward pass may itself compute a gradient.
            return subject.inputs(name, as_batch(name, x))

    def _budget(self, subject: Subject) -> int:
        return default_bytes(subject.view.device) if self.max_memory is None else self.max_memory
