"""Cases of the perturbation kernels for ``nntk-bench resources``: each family, precision and path at its largest.

Compiling a case takes seconds. So a case is left out where another case needs at least as many resources:

* tiles of the layer step, where another tile of the same family and precision has as many numbers per thread and as
  much shared memory. The layout of a tile over warps and matrix instructions depends only on whether noise comes from
  registers or from memory, so the families gaussian and none are compiled at every tile;
* layer 0 of families that share its epilogue with another family: low rank, and all families in tf32 and fp32;
* all ranks but the largest (in bf16 the smallest is compiled too), and narrower weight-stationary steps with their
  layer 0;
* fused networks that are narrower or shallower than the largest. The largest network covers evaluations without pairs;
  a network one layer shallower, with ten outputs, covers antithetic pairs;
* activations other than gelu, which has the longest epilogue; quantise, whose state has two tensors, and softplus are
  compiled at one tile each.
"""

from collections.abc import Iterator

import triton.language as tl

from nntk.kernels.ahead_of_time import Case, Product, Signature, Work
from nntk.kernels.perturb.triton import config, group, kernel, passes, unperturbed
from nntk.kernels.target import input_precision

_SHAPE = (1024, 1024, 2048)
"""Numbers of inputs, units and columns of a layer that fills the largest tiles."""

_STEPS = {
    "bf16": ("gaussian", "rademacher", "staged", "flipout", "lowrank", "none"),
    "tf32": ("gaussian", "rademacher", "flipout", "lowrank", "none"),
    "fp32": ("gaussian", "rademacher", "flipout", "lowrank", "none"),
}
_SMALLER = [(1024, height, columns) for height in (1024, 50) for columns in (2048, 100, 50)]
"""Shapes that lead to every size of tile, the largest first; shorter sums only need less memory."""
_EVERY_TILE = ("gaussian", "none")
"""Families that are compiled at every tile: one with noise in registers, and the case without noise."""
_WITH_LAYER_0 = ("gaussian", "rademacher", "staged", "flipout")
"""Families whose layer 0 is compiled, in bf16."""
_RANKS = (16, 64)
_FUSED = (((128,) * (config.FUSED_LAYERS + 1), "none"), ((128, 128, 128, 10), "odd"))
"""Widths of fused networks, limited to those that the tiles hold, and values of ``pairs``."""
_BUDGETS = {("gaussian", True): 20.5, ("gaussian", False): 23.0, ("rademacher", True): 6.5, ("rademacher", False): 9.5}
"""Largest number of instructions for a random number on sm_90 in bf16, products included, by family and layer 0 or not.

The targets for signs were 4.5 and 6.5 in steps of 128. Steps of 64 were measured to be an eighth faster; they divide
the instructions of the loop itself among half as many signs. Versions of Triton differ by a third of an instruction.
"""

_EPILOGUE: dict[str, Signature] = {
    "bias_noise": "*fp32:16",
    "state_a": "*fp32:16",
    "state_b": "*fp32:16",
    "h_next": "*fp32:16",
    "scales": "*fp32",
    "parameter0": "fp32",
    "parameter1": "fp32",
    "stride_out_n": "i32:16",
}
_OUTPUTS: dict[str, Signature] = {"outputs": "*fp32", "stride_m": "i64", "stride_pair": "i64"}
"""Where the last layer writes its results."""
_STREAM: dict[str, Signature] = {"sample_ids": "*i64", "key0": "i32", "key1": "i32", "ordinal": "i32"}
_SIZES: dict[str, Signature] = {"width": "i32", "height": "i32", "num_inputs": "i32"}


def cases(arch: str) -> list[Case]:
    """List the cases of one architecture."""
    return [
        *_steps(arch), *_stacked(arch), *_stationary(arch), *_fused(arch), *_projections(arch), *_formed(arch),
        *_last_layers(arch), *_unperturbed_layers(arch), _assigned_bases(), _sorted_by_base(),
    ]  # fmt: skip


def _steps(arch: str) -> Iterator[Case]:
    for precision, sources in _STEPS.items():
        for source in sources:
            if precision == "bf16" and source in _WITH_LAYER_0:
                yield layer_step(arch, source, precision, True)
            for shape in _shapes(arch, source, precision):
                yield layer_step(arch, source, precision, False, shape=shape, rank=_RANKS[-1])
        yield layer_step(arch, "formed", precision, False, shape=(1024, 50, 2048))
    yield layer_step(arch, "lowrank", "bf16", False, rank=_RANKS[0])
    for activation in ("quantise", "softplus"):
        yield layer_step(arch, "gaussian", "bf16", False, activation)
    for source in config.GENERATED:
        if config.step_tiles(source, "bf16", 20, 300, 2048, arch) != config.step_tiles(source, "bf16", *_SHAPE, arch):
            yield layer_step(arch, source, "bf16", False, "relu", (20, 300, 2048))


def _shapes(arch: str, source: str, precision: str) -> Iterator[tuple[int, int, int]]:
    """Yield a shape for each tile that is to be compiled."""
    shapes = {config.step_tiles(source, precision, *shape, arch): shape for shape in reversed(_SMALLER)}
    compiled: list[config.Tiles] = []
    # In this order, a tile comes after all tiles that need more resources.
    for tiles in sorted(shapes, key=lambda tiles: needs(source, tiles), reverse=True):
        if source in _EVERY_TILE or not any(bounds(source, other, tiles) for other in compiled):
            compiled.append(tiles)
            yield shapes[tiles]


def needs(source: str, tiles: config.Tiles) -> tuple[int, int, int]:
    """Return how many numbers a tile has: in the accumulator and as noise for each thread, and in shared memory."""
    threads = 32 * tiles.num_warps
    noise = tiles.block_h * tiles.block_k // threads if source in config.GENERATED else 0
    shared = tiles.num_stages * (tiles.block_h + tiles.block_n) * tiles.block_k
    return tiles.block_h * tiles.block_n // threads, noise, shared


def bounds(source: str, larger: config.Tiles, smaller: config.Tiles) -> bool:
    """Return True if one tile needs at least as many resources as another."""
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
    pairs: str = "odd",
) -> Case:
    """Describe the layer step with its tiles for a layer.

    Args:
        arch: Architecture, e.g. ``"sm_90"``.
        source: Family of the noise, ``"staged"`` for normals in memory, ``"formed"`` for E of low rank in memory, or
            ``"none"``.
        precision: ``"bf16"``, ``"tf32"`` or ``"fp32"``.
        first: True for layer 0.
        activation: Name of the activation.
        shape: Numbers of inputs, units and columns of the layer.
        rank: Rows of a factor of low rank in memory.
        last: True for the last layer.
        pairs: What the last layer makes of both members of a pair, ``"odd"`` or ``"both"``.

    Returns:
        The case.
    """
    width, height, columns = shape
    kernel_source = "staged" if source == "formed" else source
    tiles = config.step_tiles(kernel_source, precision, width, height, columns, arch)
    operand = _operand(precision)
    formed = source == "formed"
    q_per_sample = not (first or formed or source in ("none", "lowrank"))
    units, inputs = _descriptor(operand, tiles.block_h, tiles.block_k), tiles.block_n if first else tiles.block_n // 2
    pair_columns = _descriptor(operand, 1, 2, inputs, tiles.block_k)
    signature: dict[str, Signature] = {**_STREAM, **_SIZES, **_EPILOGUE, "weight": units}
    signature["q"] = pair_columns if q_per_sample else _descriptor(operand, inputs, tiles.block_k)
    signature["d"] = _descriptor(operand, 1, 1, inputs, tiles.block_k) if formed else pair_columns
    signature |= {"d_out": f"*{operand}:16", "q_out": f"*{operand}:16"}
    if source == "lowrank":
        signature |= {
            "noise": _descriptor(operand, rank, tiles.block_h),
            "projections": _descriptor(operand, 1, 1 if first else 2, inputs, rank),
        }
    elif source in ("staged", "flipout", "formed"):
        signature["noise"] = units
    if source == "flipout":
        signature |= {
            "slots": "*i32",
            "in_signs": _descriptor(operand, 1, tiles.block_k),
            "out_signs": f"*{operand}:16",
        }
    if source in ("none", "lowrank"):
        del signature["q"]
    if last or formed or source == "lowrank":
        # No q is written: the layers behind are of the same family.
        del signature["q_out"]
    if last:
        del signature["d_out"], signature["h_next"]
        signature |= _OUTPUTS | ({"order": "*i64"} if source == "flipout" else {})
    if first:
        del signature["d"], signature["weight"]
    product = _products(tiles.block_h, tiles.block_n, tiles.block_k, precision, arch)
    shared_product = _products(tiles.block_h, inputs, tiles.block_k, precision, arch)
    numbers = tiles.block_h * tiles.block_k
    loops = [] if source in ("none", "lowrank") else [_noise(source, numbers, shared_product if formed else product)]
    if not first:
        loops.append(_noise(source, numbers, product) if formed else Work(products=product))
    once = Work(products=_products(tiles.block_h, tiles.block_n, rank, precision, arch) if source == "lowrank" else ())
    budget = _BUDGETS.get((source, first)) if precision == "bf16" and shape == _SHAPE else None
    name = f"{source}({rank})" if source == "lowrank" else source
    place = "first" if first else f"last{' both' if pairs == 'both' else ''}" if last else "hidden"
    return _case(
        f"layer_step {name} {precision} {place} {activation} {width}x{height}x{columns}",
        kernel.layer_step,
        signature,
        {
            "SOURCE": kernel_source,
            "FIRST": first,
            "PAIRS": pairs if last else None,
            "Q_PER_SAMPLE": q_per_sample,
            "MEMBERS": 2,
            "ACTIVATION": activation,
        }
        | {
            "WIDE": False,
            "PARTS": tiles.parts,
            "BH": tiles.block_h,
            "BN": tiles.block_n,
            "BK": tiles.block_k,
            "RANK": rank,
        },
        precision,
        arch,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        loops=tuple(loops),
        once=once,
        normal_budget=budget if source == "gaussian" else None,
        sign_budget=budget if source == "rademacher" else None,
        tensor_bound=budget is not None and not first,
    )


def _last_layers(arch: str) -> Iterator[Case]:
    """Yield layers whose results are outputs, which are sorted with flipout, at ten units and at many."""
    for precision in ("bf16", "fp32"):
        for source in ("gaussian", "rademacher", "flipout", "formed"):
            yield layer_step(arch, source, precision, False, "identity", (256, 10, 512), last=True)
        yield layer_step(arch, "gaussian", precision, False, "gelu", last=True, pairs="both")
        yield stacked_step(arch, precision, "identity", last=True)
        if config.stationary_tiles("gaussian", precision, 64, arch) is not None:
            yield stationary_step(arch, "gaussian", precision, 64, activation="identity", last=True)


def _stacked(arch: str) -> Iterator[Case]:
    for precision in _STEPS:
        for shape in _shapes(arch, "stacked", precision):
            yield stacked_step(arch, precision, shape=shape)


def stacked_step(
    arch: str, precision: str, activation: str = "gelu", shape: tuple[int, int, int] = _SHAPE, last: bool = False
) -> Case:
    """Describe the step of a layer behind the first, in one loop, with its tiles for a layer as in ``layer_step``."""
    tiles, operand = config.step_tiles("stacked", precision, *shape, arch), _operand(precision)
    signature: dict[str, Signature] = {**_SIZES, **_EPILOGUE, "noise_row": "i32"}
    signature["columns"] = _descriptor(operand, 1, 1, 2, tiles.block_n // 2, tiles.block_k)
    signature["matrices"] = _descriptor(operand, tiles.block_h, tiles.block_k)
    signature |= _OUTPUTS if last else {"d_out": f"*{operand}:16", "q_out": f"*{operand}:16"}
    if last:
        del signature["h_next"]
    product = _products(tiles.block_h, tiles.block_n, tiles.block_k, precision, arch)
    return _case(
        f"stacked_step {precision} {'last' if last else 'hidden'} {activation} {'x'.join(map(str, shape))}",
        kernel.stacked_step,
        signature,
        {
            "PAIRS": "odd" if last else None,
            "MEMBERS": 2,
            "ACTIVATION": activation,
            "PARTS": tiles.parts,
            "BH": tiles.block_h,
            "BN": tiles.block_n,
            "BK": tiles.block_k,
        },
        precision,
        arch,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        loops=(Work(products=product),),
        tensor_bound=precision == "bf16" and shape == _SHAPE,
    )


def _stationary(arch: str) -> Iterator[Case]:
    for precision in _STEPS:
        for source in config.GENERATED:
            for width in (256, 64):
                if config.stationary_tiles(source, precision, width, arch) is not None:
                    yield stationary_step(arch, source, precision, width)
                    break


def stationary_step(
    arch: str, source: str, precision: str, width: int, first: bool = False, activation: str = "gelu",
    last: bool = False,
) -> Case:  # fmt: skip
    """Describe the weight-stationary step, for which ``config.stationary_tiles`` must have tiles."""
    tiles, operand = config.stationary_tiles(source, precision, width, arch), _operand(precision)
    assert tiles is not None, "the path applies"
    columns = _descriptor(operand, 1, 2, tiles.block_n // 2, tiles.block_k)
    inputs = _descriptor(operand, tiles.block_n, tiles.block_k) if first else columns
    signature: dict[str, Signature] = {**_STREAM, **_SIZES, **_EPILOGUE, "q": inputs, "d": columns}
    signature |= {"weight": _descriptor(operand, tiles.block_h, tiles.block_k)}
    signature |= _OUTPUTS if last else {"d_out": f"*{operand}:16", "q_out": f"*{operand}:16"}
    if last:
        del signature["h_next"]
    if first:
        del signature["d"], signature["weight"]
    product = _products(tiles.block_h, tiles.block_n, tiles.block_k, precision, arch)
    place = "first" if first else "last" if last else "hidden"
    return _case(
        f"stationary_step {source} {precision} {place} {activation} {width}",
        kernel.stationary_step,
        signature,
        {
            "SOURCE": source,
            "FIRST": first,
            "PAIRS": "odd" if last else None,
            "MEMBERS": 2,
            "ACTIVATION": activation,
            "WIDE": False,
        }
        | {"PARTS": tiles.parts, "BH": tiles.block_h, "BN": tiles.block_n, "BK": tiles.block_k},
        precision,
        arch,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        loops=(Work(products=product if first else 2 * product),),
        once=_noise(source, tiles.block_h * tiles.block_k, ()),
    )


def _fused(arch: str) -> Iterator[Case]:
    for precision in _STEPS:
        for source in config.GENERATED:
            for widest, pairs in _FUSED:
                widths = tuple(min(width, config.fused_width(source, precision, arch)) for width in widest)
                tiles = config.fused_tiles(source, precision, widths, ["gelu"] * (len(widths) - 2) + ["identity"], arch)
                if tiles is not None:
                    yield _small_mlp(arch, source, precision, widths, tiles, pairs)


def _small_mlp(
    arch: str, source: str, precision: str, widths: tuple[int, ...], tiles: config.FusedTiles, pairs: str
) -> Case:
    operand, layers = _operand(precision), len(widths) - 1
    part = min(tiles.part_columns, tiles.block_n if pairs == "none" else tiles.block_n // 2)
    state = _descriptor("fp32", tiles.padded_width, part)
    signature: dict[str, Signature] = {
        "inputs": "*fp32:16",
        "weights": _descriptor(operand, tiles.padded_width, tiles.padded_width),
        "last_weight": _descriptor(operand, tiles.block_c(widths[-1]), tiles.padded_width),
        "states_a": state,
        "states_b": state,
        "hidden": state,
        "sample_ids": "*i64",
        "scales": "*fp32",
        "parameters": ("fp32",) * (2 * layers),
        "key0": "i32",
        "key1": "i32",
        "num_inputs": "i32",
        "num_samples": "i32",
        "out": "*fp32:16",
    }
    block_k, block_c = config.power_of_two(widths[0], 32, 128), tiles.block_c(widths[-1])
    shapes = [
        (tiles.padded_width, block_k),
        *[(tiles.padded_width, tiles.padded_width), (tiles.padded_width, tiles.padded_width)] * (layers - 2),
    ]
    shapes += [(block_c, tiles.padded_width)] * 2
    products = [product for h, k in shapes for product in _products(h, tiles.block_n, k, precision, arch)]
    numbers = tiles.padded_width * block_k + (layers - 2) * tiles.padded_width**2 + block_c * tiles.padded_width
    return _case(
        f"small_mlp {source} {precision} gelu {'-'.join(map(str, widths))} {pairs}",
        kernel.small_mlp,
        signature,
        {"SOURCE": source, "WIDTHS": widths, "ORDINALS": tuple(range(2 * layers)), "PAIRS": pairs}
        | {
            "ACTIVATIONS": ("gelu",) * (layers - 1),
            "BK": block_k,
            "PAD": tiles.padded_width,
            "BC": block_c,
            "BN": tiles.block_n,
        }
        | {"BP": part},
        precision,
        arch,
        num_warps=tiles.num_warps,
        num_stages=1,
        once=_noise(source, numbers, tuple(products)),
    )


def _projections(arch: str) -> Iterator[Case]:
    for precision in _STEPS:
        for rank in _RANKS:
            yield projection(arch, precision, rank)


def projection(arch: str, precision: str, rank: int, first: bool = False) -> Case:
    """Describe the products of the columns with the right factors of low rank, which precede a layer step."""
    tiles = config.step_tiles("lowrank", precision, *_SHAPE, arch)
    operand = _operand(precision)
    inputs = _descriptor(operand, tiles.block_n, tiles.block_k)
    return _case(
        f"project({rank}) {precision}{' first' if first else ''}",
        kernel.project,
        {
            "h": inputs,
            **({} if first else {"d": inputs}),
            "right_factors": _descriptor(operand, rank, tiles.block_k),
            "coefficients": "*fp64",
            "scales": "*fp32",
            "out": f"*{operand}:16",
            "width": "i32",
            "num_inputs": "i32",
        },
        {"MEMBERS": 1 if first else 2, "BN": tiles.block_n, "BK": tiles.block_k, "RANK": rank},
        precision,
        arch,
        num_warps=config.projection_warps(rank),
        num_stages=tiles.num_stages,
        loops=(Work(products=_products(tiles.block_n, rank, tiles.block_k, precision, arch)),) * (1 if first else 2),
    )


def _formed(arch: str) -> Iterator[Case]:
    for precision, height in (("bf16", 16), ("bf16", 64), ("tf32", 64), ("fp32", 64)):
        operand = _operand(precision)
        sizes: dict[str, Signature] = {"stride": "i32:16", "columns": "i32:16", "height": "i32", "rank": "i32"}
        tensors = {name: f"*{operand}:16" for name in ("left_factors", "right_factors", "out")}
        yield _case(
            f"form {precision} {height}",
            kernel.form,
            {**tensors, "coefficients": "*fp64", **sizes},
            {"BH": height, "BK": group.FORMED_COLUMNS},
            precision,
            arch,
            loops=(Work(),),
        )


def _unperturbed_layers(arch: str) -> Iterator[Case]:
    block_n, block_h, block_k = unperturbed.TILE
    numbers = ("stride_x", "stride_h", "stride_k", "stride_b", "num_inputs", "width", "height")
    sizes: dict[str, Signature] = dict.fromkeys(numbers, "i32")
    results: dict[str, Signature] = {"state": "*fp32:16", "hidden": "*fp32:16", "value": "*fp64:16"}
    # Of the other cards, a B200 has products of float64, which Triton uses from 3.8 on.
    products = (Product(block_n, block_h, block_k, "fp64"),) if arch in ("sm_80", "sm_90") else ()
    rounded: dict[str, Signature] = {"weight_operand": "*bf16:16", "operand": "*bf16:16"}
    inputs: dict[str, Signature] = {"x_operand": "*fp32:16", "weight_operand": "*fp32:16"}
    for name, x, activation, given, precision in (
        ("relu", "*fp64", "relu", results, "fp32"),
        ("first step", "*fp32", "step", results | inputs, "tf32"),
        ("operands relu", "*fp64", "relu", results | rounded, "bf16"),
        ("pre-activations", "*fp64", "identity", {"value": "*fp64:16"}, "fp32"),
        ("last", "*fp64", "identity", {"state": "*fp32:16"}, "fp32"),
    ):
        yield _case(
            f"unperturbed_layer {name}",
            passes.unperturbed_layer,
            {"x": x, "weight": "*fp32", "bias": "*fp32", **given, **sizes, "stride": "i32"},
            {"ACTIVATION": activation, "DOT": arch.startswith("sm_"), "BN": block_n, "BH": block_h, "BK": block_k},
            precision,
            arch,
            num_warps=unperturbed.WARPS,
            loops=(Work(products=products),),
        )


def _sorted_by_base() -> Case:
    given: dict[str, Signature] = {"sample_ids": "*i64", "scales": "*fp32", "samples": "i32", "count": "i32"}
    return _case(
        "sort_by_base",
        passes.sort_by_base,
        given | {"order": "*i64", "sorted_ids": "*i64", "sorted_scales": "*fp32"},
        {"BLOCK": group.SORTED_TILE[0], "STEP": group.SORTED_TILE[1]},
        "fp32",
        "sm_90",
        loops=(Work(),),
    )


def _assigned_bases() -> Case:
    sizes: dict[str, Signature] = dict.fromkeys(("samples", "count", "chunk_samples", "slot_count", "steps"), "i32")
    return _case(
        "assign_bases",
        passes.assign_bases,
        {"sample_ids": "*i64", "slots": "*i32", "base_ids": "*i64", **sizes},
        {"BLOCK": group.ASSIGNED},
        "fp32",
        "sm_90",
        loops=(Work(),) * 2,
    )


def _case(
    name: str,
    function: object,
    signature: dict[str, Signature],
    constants: dict[str, object],
    precision: str,
    arch: str,
    **settings: object,
) -> Case:
    """Describe a case; arguments that ``signature`` does not list are None."""
    constants = {**constants, "PRECISION": input_precision(precision, arch)}
    names: list[str] = function.arg_names  # type: ignore[attr-defined]
    ptx = arch.startswith("sm_")
    constants |= {"PTX": ptx, "DTYPE": tl.bfloat16 if precision == "bf16" else tl.float32}
    constants = {key: value for key, value in constants.items() if key in names}
    for key in names:
        if key not in signature and key not in constants:
            constants[key] = None
    return Case(name, function, signature, constants, options=config.OPTIONS, **settings)  # type: ignore[arg-type]


def _operand(precision: str) -> str:
    return "bf16" if precision == "bf16" else "fp32"


def _descriptor(kind: str, *block: int) -> str:
    return f"tensordesc<{kind}[{', '.join(map(str, block))}]>"


def _products(m: int, n: int, k: int, precision: str, arch: str) -> tuple[Product, ...]:
    if precision == "fp32":
        # On tensor cores a product of float32 is three products of tf32; elsewhere it is one.
        return (Product(m, n, k, "tf32"),) * 3 if arch.startswith("sm_") else (Product(m, n, k, "fp32"),)
    return (Product(m, n, k, precision),)


def _noise(source: str, numbers: int, products: tuple[Product, ...]) -> Work:
    return Work(
        normals=numbers if source == "gaussian" else 0,
        signs=numbers if source == "rademacher" else 0,
        products=products,
    )
