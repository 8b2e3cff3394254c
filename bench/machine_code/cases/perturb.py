"""Every kernel of this op for ``nntk-bench resources``: each family, precision and path, where it needs the most.

Compiling takes seconds, so what another case bounds is left out:

* a layer step's tile, where another tile of the same family and precision holds as many numbers a thread and as much
  shared memory. How a tile is laid out over warps and matrix instructions depends on whether noise comes from registers
  or from memory, and on no more: gaussian and none are compiled at every tile there is;
* layer 0 of families whose epilogue there is another's: low rank's, and all in tf32 and fp32;
* ranks but the largest (the smallest in bf16 too), and narrower weight-stationary steps, their layer 0 included;
* fused networks narrower or shallower than the largest, which stands for those without a mirrored half, and one layer
  shallower, with ten outputs, for those with;
* activations: gelu has the longest epilogue; quantise, which keeps two numbers of z, and softplus are tried at a tile.
"""

from collections.abc import Iterator

import triton.language as tl

from nntk.kernels.ahead_of_time import Case, Product, Signature, Work
from nntk.kernels.perturb.triton import config as tiles
from nntk.kernels.perturb.triton import kernel

_SHAPE = (1024, 1024, 2048)
"""Inputs, units and columns of a layer that fills the largest tiles."""

_STEPS = {
    "bf16": ("gaussian", "rademacher", "staged", "flipout", "lowrank", "none"),
    "tf32": ("gaussian", "rademacher", "flipout", "lowrank", "none"),
    "fp32": ("gaussian", "rademacher", "flipout", "lowrank", "none"),
}
_SMALLER = [(1024, height, columns) for height in (1024, 50) for columns in (2048, 100, 50)]
"""Shapes that take every size of tile there is, the largest first; shorter sums only take less memory."""
_EVERY_TILE = ("gaussian", "none")
"""One family with noise in registers, one without."""
_MIRRORED = ("gaussian", "rademacher", "staged", "flipout")
"""Families that have something of their own at layer 0, in bf16."""
_RANKS = (16, 64)
_FUSED = (((128,) * (tiles.FUSED_LAYERS + 1), "none"), ((128, 128, 128, 10), "odd"))
"""Widths, cut to what the tiles hold, and pairs."""
_BUDGETS = {("gaussian", True): 20.5, ("gaussian", False): 23.0, ("rademacher", True): 6.5, ("rademacher", False): 9.0}
"""Most instructions for a random number on sm_90 in bf16, products included, at layer 0 and behind it.

Signs were to cost 4.5 and 6.5 in steps of 128: measured, steps of 64 are an eighth faster, and share the loop's own
instructions among half as many.
"""

_EPILOGUE: dict[str, Signature] = {
    "bias_noise": "*fp32:16",
    "state_a": "*fp32:16",
    "state_b": "*fp32:16",
    "h_next": "*fp32:16",
    "scales": "*fp32",
    "parameter0": "fp32",
    "parameter1": "fp32",
    "stride": "i32:16",
}
_STREAM: dict[str, Signature] = {"rows": "*i64", "key0": "i32", "key1": "i32", "ordinal": "i32"}
_SIZES: dict[str, Signature] = {"width": "i32", "height": "i32", "num_inputs": "i32"}


def cases(arch: str) -> list[Case]:
    """The cases of one architecture."""
    return [*_steps(arch), *_stationary(arch), *_fused(arch), *_projections(arch)]


def _steps(arch: str) -> Iterator[Case]:
    for precision, sources in _STEPS.items():
        for source in sources:
            if precision == "bf16" and source in _MIRRORED:
                yield layer_step(arch, source, precision, True)
            for shape in _shapes(arch, source, precision):
                yield layer_step(arch, source, precision, False, shape=shape, rank=_RANKS[-1])
        yield layer_step(arch, "formed", precision, False, shape=(1024, 50, 2048))
    yield layer_step(arch, "lowrank", "bf16", False, rank=_RANKS[0])
    for activation in ("quantise", "softplus"):
        yield layer_step(arch, "gaussian", "bf16", False, activation)
    for source in tiles.GENERATED:
        if tiles.step_tiles(source, "bf16", 20, 300, 2048, arch) != tiles.step_tiles(source, "bf16", *_SHAPE, arch):
            yield layer_step(arch, source, "bf16", False, "relu", (20, 300, 2048))


def _shapes(arch: str, source: str, precision: str) -> Iterator[tuple[int, int, int]]:
    """A shape for each tile that is to be compiled."""
    found = {tiles.step_tiles(source, precision, *shape, arch): shape for shape in reversed(_SMALLER)}
    judged: list[tiles.Tiles] = []
    # Whatever bounds a tile comes before it.
    for cut in sorted(found, key=lambda cut: needs(source, cut), reverse=True):
        if source in _EVERY_TILE or not any(bounds(source, other, cut) for other in judged):
            judged.append(cut)
            yield found[cut]


def needs(source: str, cut: tiles.Tiles) -> tuple[int, int, int]:
    """What grows with a tile: numbers a thread of the accumulator and of the noise, and numbers in shared memory."""
    threads = 32 * cut.num_warps
    noise = cut.block_h * cut.block_k // threads if source in tiles.GENERATED else 0
    return cut.block_h * cut.block_n // threads, noise, cut.num_stages * (cut.block_h + cut.block_n) * cut.block_k


def bounds(source: str, larger: tiles.Tiles, smaller: tiles.Tiles) -> bool:
    """Whether one tile needs at least what another does."""
    return all(a >= b for a, b in zip(needs(source, larger), needs(source, smaller), strict=True))


def layer_step(
    arch: str,
    source: str,
    precision: str,
    first: bool,
    activation: str = "gelu",
    shape: tuple[int, int, int] = _SHAPE,
    rank: int = _RANKS[0],
    last: bool = False,
) -> Case:
    """The layer step of a family (or ``staged`` normals, ``formed`` low rank, ``none``) with its tiles at ``shape``."""
    width, height, columns = shape
    read = "staged" if source == "formed" else source
    cut = tiles.step_tiles(read, precision, width, height, columns, arch)
    operand = _operand(precision)
    shared = source == "formed"
    own = not (first or shared or source in ("none", "lowrank"))
    units, inputs = _descriptor(operand, cut.block_h, cut.block_k), cut.block_n if first else cut.block_n // 2
    columns_of_both = _descriptor(operand, 1, 2, inputs, cut.block_k)
    signature: dict[str, Signature] = {**_STREAM, **_SIZES, **_EPILOGUE, "weight": units}
    signature["x"] = columns_of_both if own else _descriptor(operand, inputs, cut.block_k)
    signature["d"] = _descriptor(operand, 1, 1, inputs, cut.block_k) if shared else columns_of_both
    signature |= {"d_out": f"*{operand}:16", "q_out": f"*{operand}:16"}
    if source == "lowrank":
        signature |= {
            "noise": _descriptor(operand, rank, cut.block_h),
            "factors": _descriptor(operand, 1, 1 if first else 2, inputs, rank),
        }
    elif source in ("staged", "flipout", "formed"):
        signature["noise"] = units
    if source == "flipout":
        signature |= {"slots": "*i32", "in_signs": _descriptor(operand, 1, cut.block_k), "out_signs": f"*{operand}:16"}
    if source in ("none", "lowrank"):
        del signature["x"]
    if last or shared or source == "lowrank":
        # Layers behind are of the same family.
        del signature["q_out"]
    if last:
        signature["d_out"] = "*fp32:16"
    if first:
        del signature["d"], signature["weight"]
    product = _products(cut.block_h, cut.block_n, cut.block_k, precision, arch)
    once_for_both = _products(cut.block_h, inputs, cut.block_k, precision, arch)
    numbers = cut.block_h * cut.block_k
    loops = [] if source in ("none", "lowrank") else [_noise(source, numbers, once_for_both if shared else product)]
    if not first:
        loops.append(_noise(source, numbers, product) if shared else Work(products=product))
    small = Work(products=_products(cut.block_h, cut.block_n, rank, precision, arch) if source == "lowrank" else ())
    budget = _BUDGETS.get((source, first)) if precision == "bf16" and shape == _SHAPE else None
    name = f"{source}({rank})" if source == "lowrank" else source
    place = "first" if first else "last" if last else "hidden"
    return _case(
        f"layer_step {name} {precision} {place} {activation} {width}x{height}x{columns}",
        kernel.layer_step,
        signature,
        {
            "SOURCE": read,
            "FIRST": first,
            "LAST": last,
            "OWN": own,
            "HALVES": 2,
            "ACTIVATION": activation,
        }
        | {"WIDE": False, "PARTS": cut.parts, "BH": cut.block_h, "BN": cut.block_n, "BK": cut.block_k, "RANK": rank},
        precision,
        arch,
        num_warps=cut.num_warps,
        num_stages=cut.num_stages,
        loops=tuple(loops),
        once=small,
        normal_budget=budget if source == "gaussian" else None,
        sign_budget=budget if source == "rademacher" else None,
        tensor_bound=budget is not None and not first,
    )


def _stationary(arch: str) -> Iterator[Case]:
    for precision in _STEPS:
        for source in tiles.GENERATED:
            for width in (256, 64):
                if tiles.stationary_tiles(source, precision, width, arch) is not None:
                    yield stationary_step(arch, source, precision, width)
                    break


def stationary_step(
    arch: str, source: str, precision: str, width: int, first: bool = False, activation: str = "gelu"
) -> Case:
    """The weight-stationary step, where ``tiles.stationary_tiles`` has one."""
    cut, operand = tiles.stationary_tiles(source, precision, width, arch), _operand(precision)
    assert cut is not None, "the path applies"
    columns = _descriptor(operand, 1, 2, cut.block_n // 2, cut.block_k)
    inputs = _descriptor(operand, cut.block_n, cut.block_k) if first else columns
    signature: dict[str, Signature] = {**_STREAM, **_SIZES, **_EPILOGUE, "q": inputs, "d": columns}
    signature |= {"weight": _descriptor(operand, cut.block_h, cut.block_k)}
    signature |= {"d_out": f"*{operand}:16", "q_out": f"*{operand}:16"}
    if first:
        del signature["d"], signature["weight"]
    product = _products(cut.block_h, cut.block_n, cut.block_k, precision, arch)
    return _case(
        f"stationary_step {source} {precision} {'first' if first else 'hidden'} {activation} {width}",
        kernel.stationary_step,
        signature,
        {"SOURCE": source, "FIRST": first, "LAST": False, "HALVES": 2, "ACTIVATION": activation, "PARTS": cut.parts}
        | {"BH": cut.block_h, "BN": cut.block_n, "BK": cut.block_k},
        precision,
        arch,
        num_warps=cut.num_warps,
        num_stages=cut.num_stages,
        loops=(Work(products=product if first else 2 * product),),
        once=_noise(source, cut.block_h * cut.block_k, ()),
    )


def _fused(arch: str) -> Iterator[Case]:
    for precision in _STEPS:
        for source in tiles.GENERATED:
            for widest, pairs in _FUSED:
                widths = tuple(min(width, tiles.fused_width(source, precision, arch)) for width in widest)
                cut = tiles.fused_tiles(source, precision, widths, ["gelu"] * (len(widths) - 2) + ["identity"], arch)
                if cut is not None:
                    yield _small_mlp(arch, source, precision, widths, cut, pairs)


def _small_mlp(arch: str, source: str, precision: str, widths: tuple[int, ...], cut: tiles.Fused, pairs: str) -> Case:
    operand, layers = _operand(precision), len(widths) - 1
    part = min(cut.part, cut.block_n if pairs == "none" else cut.block_n // 2)
    state = _descriptor("fp32", cut.pad, part)
    signature: dict[str, Signature] = {
        "inputs": "*fp32:16",
        "weights": _descriptor(operand, cut.pad, cut.pad),
        "last_weight": _descriptor(operand, cut.block_c(widths[-1]), cut.pad),
        "states_a": state,
        "states_b": state,
        "hidden": state,
        "rows": "*i64",
        "scales": "*fp32",
        "parameters": ("fp32",) * (2 * layers),
        "key0": "i32",
        "key1": "i32",
        "num_inputs": "i32",
        "num_rows": "i32",
        "out": "*fp32:16",
    }
    block_k, block_c = tiles.power_of_two(widths[0], 32, 128), cut.block_c(widths[-1])
    shapes = [(cut.pad, block_k), *[(cut.pad, cut.pad), (cut.pad, cut.pad)] * (layers - 2)]
    shapes += [(block_c, cut.pad)] * 2
    products = [one for h, k in shapes for one in _products(h, cut.block_n, k, precision, arch)]
    numbers = cut.pad * block_k + (layers - 2) * cut.pad**2 + block_c * cut.pad
    return _case(
        f"small_mlp {source} {precision} gelu {'-'.join(map(str, widths))} {pairs}",
        kernel.small_mlp,
        signature,
        {"SOURCE": source, "WIDTHS": widths, "ORDINALS": tuple(range(2 * layers)), "PAIRS": pairs}
        | {"ACTIVATIONS": ("gelu",) * (layers - 1), "BK": block_k, "PAD": cut.pad, "BC": block_c, "BN": cut.block_n}
        | {"BP": part},
        precision,
        arch,
        num_warps=cut.num_warps,
        num_stages=1,
        once=_noise(source, numbers, tuple(products)),
    )


def _projections(arch: str) -> Iterator[Case]:
    for precision in _STEPS:
        for rank in _RANKS:
            yield projection(arch, precision, rank)


def projection(arch: str, precision: str, rank: int, first: bool = False) -> Case:
    """The columns' products with the right factors of low rank, which go before a layer step."""
    cut = tiles.step_tiles("lowrank", precision, *_SHAPE, arch)
    operand = _operand(precision)
    inputs = _descriptor(operand, cut.block_n, cut.block_k)
    return _case(
        f"project({rank}) {precision}{' first' if first else ''}",
        kernel.project,
        {
            "h": inputs,
            **({} if first else {"d": inputs}),
            "factors": _descriptor(operand, rank, cut.block_k),
            "coefficients": "*fp32",
            "scales": "*fp32",
            "out": f"*{operand}:16",
            "width": "i32",
            "num_inputs": "i32",
        },
        {"HALVES": 1 if first else 2, "BN": cut.block_n, "BK": cut.block_k, "RANK": rank},
        precision,
        arch,
        num_warps=tiles.projection_warps(rank),
        num_stages=cut.num_stages,
        loops=(Work(products=_products(cut.block_n, rank, cut.block_k, precision, arch)),) * (1 if first else 2),
    )


def _case(
    name: str,
    function: object,
    signature: dict[str, Signature],
    constants: dict[str, object],
    precision: str,
    arch: str,
    **rest: object,
) -> Case:
    """A case whose arguments without a type are None."""
    constants = {**constants, "PRECISION": tiles.input_precision(precision, arch)}
    names: list[str] = function.arg_names  # type: ignore[attr-defined]
    ptx = arch.startswith("sm_")
    constants |= {"PTX": ptx, "DTYPE": tl.bfloat16 if precision == "bf16" else tl.float32}
    constants = {key: value for key, value in constants.items() if key in names}
    for key in names:
        if key not in signature and key not in constants:
            constants[key] = None
    return Case(name, function, signature, constants, **rest)  # type: ignore[arg-type]


def _operand(precision: str) -> str:
    return "bf16" if precision == "bf16" else "fp32"


def _descriptor(kind: str, *block: int) -> str:
    return f"tensordesc<{kind}[{', '.join(map(str, block))}]>"


def _products(m: int, n: int, k: int, precision: str, arch: str) -> tuple[Product, ...]:
    if precision == "fp32":
        # Split into three on tensor cores; elsewhere one product of float32.
        return (Product(m, n, k, "tf32"),) * 3 if arch.startswith("sm_") else (Product(m, n, k, "fp32"),)
    return (Product(m, n, k, precision),)


def _noise(source: str, numbers: int, products: tuple[Product, ...]) -> Work:
    return Work(
        normals=numbers if source == "gaussian" else 0,
        signs=numbers if source == "rademacher" else 0,
        products=products,
    )
