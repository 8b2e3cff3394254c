"""Compilation of Triton kernels ahead of their use. Only this module knows the versions of Triton (3.6 to 3.9).

:func:`compile` compiles one kernel for any GPU, without a GPU. :func:`compile_ahead` compiles what a call would launch.

Modules of :mod:`nntk.bench.machine_code.cases` list the kernels of each op as ``cases(arch) -> list[Case]``;
``nntk-bench resources`` compiles them and checks their resources.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

TARGETS: dict[str, tuple[str, int | str, int]] = {
    "sm_80": ("cuda", 80, 32),
    "sm_86": ("cuda", 86, 32),
    "sm_89": ("cuda", 89, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "sm_120": ("cuda", 120, 32),
    "gfx942": ("hip", "gfx942", 64),
}
"""Architectures as Triton describes them: backend, name in the backend, threads of a warp."""

Signature = str | tuple["Signature", ...]


@dataclass(frozen=True)
class Product:
    """Matrix product [M, K] x [K, N] of one program.

    Attributes:
        m: Number of rows of the tile.
        n: Number of columns of the tile.
        k: Length of the sums.
        operand: Type of the operands: ``bf16``, ``fp16``, ``tf32`` or ``fp64`` for tensor cores, ``fp32`` for products
            on the ordinary pipes. A split form is listed as the products that it does: tf32x3 is three tf32 products.
    """

    m: int
    n: int
    k: int
    operand: str = "bf16"


@dataclass(frozen=True)
class Work:
    """Work of all threads of one program in one turn of a loop of the source, however it is unrolled.

    Attributes:
        normals: Number of normals generated.
        signs: Number of random signs generated.
        products: Matrix products.
        turns: Number of turns of this loop for one turn of the other loops; 1 for loops of equal length.
    """

    normals: int = 0
    signs: int = 0
    products: tuple[Product, ...] = ()
    turns: float = 1.0


@dataclass(frozen=True)
class Case:
    """Kernel in one configuration, with the resources that it may use.

    Attributes:
        name: Name for readers, unique in its module, e.g. ``layer_step gaussian bf16 hidden``.
        kernel: Function under ``triton.jit``.
        signature: Type of every argument that is not in ``constants``, as ``triton.tools.compile`` writes them:
            ``*bf16`` a pointer, ``*bf16:16`` one divisible by 16 bytes, ``i32``, ``i32:16``, ``fp32``; a tensor
            descriptor made on the host is ``tensordesc<bf16[64, 64]>`` with its block shape, and a tuple a tuple.
        constants: Values of ``tl.constexpr`` arguments (tuples and jitted functions too), and of any others that a
            launch makes constant (an integer that is 1, a pointer that is None).
        num_warps: Warps of a program.
        num_stages: Depth of the software pipeline.
        loops: Work of each main loop, in program order. Main loops are the innermost ones with a matrix
            instruction; in a kernel without products, the innermost ones.
        once: Work outside of the main loops, done once by a program (all work, in a kernel without loops).
        normal_budget: Maximum of instructions for a normal on sm_90, products included.
        sign_budget: Maximum of instructions for a sign on sm_90, products included.
        register_budget: Maximum of registers of a thread on sm_90.
        tensor_bound: True if issuing the main loops may cost no more cycles than their products on sm_90.
        options: Further options of the compiler of Triton, e.g. ``{"maxnreg": 128}``; a backend uses those it knows.

    Example:
        >>> Case("square", None, {"x": "*fp32:16", "n": "i32"}, {"BLOCK": 128}, once=Work(signs=128)).num_warps
        4
    """

    name: str
    kernel: Any
    signature: Mapping[str, Signature]
    constants: Mapping[str, Any] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 3
    loops: tuple[Work, ...] = ()
    once: Work = Work()
    normal_budget: float | None = None
    sign_budget: float | None = None
    register_budget: int | None = None
    tensor_bound: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Compiled:
    """Result of compiling a case.

    Attributes:
        name: Name of the function of the kernel in the machine code.
        cubin: Machine code for NVIDIA; empty for AMD.
        text: PTX for NVIDIA, assembly for AMD.
        num_warps: Number of warps of a program.
        shared: Number of bytes of shared memory (LDS) of a program.
        tensor_memory: Number of columns of tensor memory of a program (sm_100).
    """

    name: str
    cubin: bytes
    text: str
    num_warps: int
    shared: int
    tensor_memory: int


def compile(case: Case, arch: str) -> Compiled:
    """Compile a case. This needs neither a GPU nor its driver.

    Args:
        case: Kernel and configuration to compile.
        arch: Architecture, one of ``TARGETS``.

    Returns:
        Machine code and resources reported by Triton.

    Raises:
        RuntimeError: If the kernel was defined under the interpreter of Triton, whose functions cannot be compiled.
        ValueError: If an argument is listed twice or not at all.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if not isinstance(case.kernel, triton.runtime.JITFunction):
        raise RuntimeError(
            f"{case.name}: the kernel is interpreted and cannot be compiled; unset TRITON_INTERPRET before triton is "
            "imported."
        )
    listed = sorted([*case.signature, *case.constants])
    if listed != sorted(case.kernel.arg_names):
        raise ValueError(f"{case.name}: the kernel takes {sorted(case.kernel.arg_names)}, the case lists {listed}")
    order = case.kernel.arg_names
    # In the order of the arguments, since triton flattens descriptors and tuples in the order of this dict.
    signature = {name: _type(case.signature[name]) if name in case.signature else "constexpr" for name in order}
    aligned = {
        path: [["tt.divisibility", 16]]
        for name, kind in case.signature.items()
        for path in _aligned(kind, (order.index(name),))
    }
    source = ASTSource(case.kernel, signature, dict(case.constants), aligned)
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, **case.options}
    binary = triton.compile(source, target=GPUTarget(*TARGETS[arch]), options=options)
    return Compiled(
        name=binary.metadata.name,
        cubin=binary.asm.get("cubin", b""),
        text=binary.asm["amdgcn" if "amdgcn" in binary.asm else "ptx"],
        num_warps=binary.metadata.num_warps,
        shared=binary.metadata.shared,
        tensor_memory=getattr(binary.metadata, "tmem_size", None) or 0,
    )


def _type(kind: Signature) -> Any:
    return kind.removesuffix(":16") if isinstance(kind, str) else tuple(_type(part) for part in kind)


def _aligned(kind: Signature, path: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Return the paths to the parts of an argument that are divisible by 16."""
    if isinstance(kind, str):
        if kind.endswith(":16"):
            yield path
    else:
        for index, part in enumerate(kind):
            yield from _aligned(part, (*path, index))


Progress = Callable[[int, int], None]
"""Function that receives how many kernels are compiled, and how many there are."""


class _Compiler(ThreadPoolExecutor):
    """Threads that compile; compilation leaves Python's lock for most of its time."""

    def __init__(self, threads: int | None) -> None:
        super().__init__(threads, thread_name_prefix="nntk-compile")
        self.futures: list[Future[Any]] = []

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        """Begin a compilation, and remember it."""
        future: Future[Any] = super().submit(function, *arguments, **options)
        self.futures.append(future)
        return future


def compile_ahead(call: Callable[[], object], threads: int | None = None, progress: Progress | None = None) -> int:
    """Compile the kernels that a call launches, without launching any.

    The call is made once in full, with all its tensors, but its launches only say which kernels they need. So whatever
    it computes is arbitrary. Launches of other threads are made as ever. Compiled kernels are kept by this process, and
    on disk for later ones (``TRITON_CACHE_DIR``).

    Args:
        call: The call. Its result is dropped.
        threads: Number of kernels that are compiled at a time; None for the choice of Python, by the number of cores.
        progress: Receives the numbers of compiled and of all kernels, whenever one is compiled.

    Returns:
        Number of kernels that this process did not have yet; 0 where Triton interprets its kernels.

    Raises:
        Exception: If the call fails, or a kernel does not compile.
    """
    import triton
    from triton.runtime.jit import JITFunction

    run, caller = JITFunction.run, threading.get_ident()

    def compile_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        is_recorded = threading.get_ident() == caller
        return run(self, *arguments, grid=grid, warmup=warmup or is_recorded, **options)

    with _Compiler(threads) as compiler, triton.AsyncCompileMode(compiler, ignore_errors=True):
        JITFunction.run = compile_only
        try:
            call()
        finally:
            JITFunction.run = run
        for count, _ in enumerate(as_completed(compiler.futures), 1):
            if progress is not None:
                progress(count, len(compiler.futures))
    for future in compiler.futures:
        future.result()
    return len(compiler.futures)
