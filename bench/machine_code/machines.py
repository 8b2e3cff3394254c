"""Architectures: pipes, multiply-adds of products in a clock, limits, and the pipe of each instruction.

Rates of the ordinary pipes are those of the CUDA programming guide's table of arithmetic instructions and of AMD's
CDNA 3 instruction set guide. Rates of products are the data sheets' dense peaks over multiprocessors and boost clock,
e.g. sm_90: 989.4 TFLOP/s / (2 x 132 x 1.83 GHz) = 2048 multiply-adds per clock and multiprocessor.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

CLASSES = {
    "alu": "IADD IADD3 IADD32I LOP LOP3 LOP32I PLOP3 SHF SHL SHR PRMT ISETP ISET SEL IMNMX VIMNMX VIMNMX3 VIADD "
    "VIADDMNMX LEA FSETP FSET FSEL FMNMX FMNMX3 FCHK F2FP I2FP BMSK SGXT IABS MOV MOV32I P2R R2P HMNMX2 "
    "HSETP2 HSET2 VABSDIFF VABSDIFF4 VOTE",
    "fma": "FFMA FFMA32I FFMA2 FADD FADD2 FADD32I FMUL FMUL2 FMUL32I HFMA2 HADD2 HMUL2 HADD2_32I HFMA2_32I",
    "imad": "IMAD IMUL IMAD32I IDP IDP4A",
    "special": "MUFU I2F F2I F2F FRND POPC FLO BREV I2I",
    "fp64": "DADD DMUL DFMA DSETP DMNMX",
    "tensor": "HMMA IMMA BMMA DMMA HGMMA IGMMA QGMMA BGMMA UTCHMMA UTCIMMA UTCQMMA UTCOMMA",
    "memory": "LDG STG LDS STS LDSM STSM LD ST LDL STL LDGSTS SHFL ATOM ATOMG ATOMS RED REDG LDT STT LDTM STTM MATCH",
}
"""Pipe of each SASS opcode. Those that start with U, VOTEU and R2UR are the uniform pipe's; all others (branches,
barriers, special registers, constants, copies by TMA) only take an issue slot here: ``other``."""

_CLASS_OF = {opcode: name for name, opcodes in CLASSES.items() for opcode in opcodes.split()}
_AMD_CLASSES = (
    ("tensor", r"v_s?mfmac?_"),
    ("special", r"v_(exp|log|rcp|rsq|sqrt|sin|cos)_|v_mul_(lo|hi)_[iu]32|v_mad_[iu]64_[iu]32|v_\w+_f64"),
    ("alu", r"v_"),
    ("memory128", r"(ds|buffer|global|flat|scratch)_\w+(128|x4|x3)"),
    ("memory64", r"(ds|buffer|global|flat|scratch)_\w+(64|x2)"),
    ("memory", r"(ds|buffer|global|flat|scratch)_"),
    ("uniform", r"s_(?!c?branch|barrier|waitcnt|endpgm|nop|sleep|setprio)"),
)


@dataclass(frozen=True)
class Machine:
    """Multiprocessor (compute unit) of an architecture.

    Attributes:
        warp_size: Threads of a warp.
        pipes: Clocks that an instruction of a class keeps a pipe of the multiprocessor busy, by pipe and class; the
            class ``*`` stands for all classes that are not named.
        products: Multiply-adds of the matrix pipe in a clock, by operand.
        shared: Largest number of bytes of shared memory (LDS) that a program may have.
        tensor_memory: Columns of tensor memory.
        warps: Largest number of warps of all programs together.
    """

    warp_size: int
    pipes: Mapping[str, Mapping[str, float]]
    products: Mapping[str, float]
    shared: int
    tensor_memory: int = 0
    warps: int = 64


def _nvidia(
    fp32: int,
    products: float,
    shared: int,
    tensor_memory: int = 0,
    fp64: int = 64,
    integers: int = 64,
    warps: int = 64,
    fp64_products: int = 64,
) -> Machine:
    """Describe a multiprocessor by its results a clock: float32, products in bfloat16, float64, additions of int32."""
    pipes: dict[str, dict[str, float]] = {
        "issue": {"*": 1 / 4},
        "integer": {"alu": 32 / integers},
        "fp": {"fma": 32 / fp32, "imad": 32 / fp32},
        "integer multiply": {"imad": 32 / 64},
        "special": {"special": 32 / 16},
        "fp64": {"fp64": 32 / fp64},
        "memory": {"memory": 1, "memory64": 2, "memory128": 4},
    }
    rates = {"bf16": products, "fp16": products, "tf32": products / 2, "fp64": fp64_products}
    return Machine(32, pipes, rates, shared, tensor_memory, warps)


MACHINES = {
    "sm_80": _nvidia(64, 1024, 166_912),
    # Cards for consumers: 256 multiply-adds where products are summed in float32, e.g. RTX 4090:
    # 165.2 TFLOP/s / (2 x 128 x 2.52 GHz).
    "sm_86": _nvidia(128, 256, 101_376, fp64=2, warps=48),
    "sm_89": _nvidia(128, 256, 101_376, fp64=2, warps=48),
    # Products in float64 have 1/16 of the rate of those in bfloat16 on an A100 and an H100, and 1/64 on a B200.
    "sm_90": _nvidia(128, 2048, 232_448, fp64_products=128),
    "sm_100": _nvidia(128, 4096, 232_448, 512),
    "sm_120": _nvidia(128, 256, 101_376, fp64=2, integers=128, warps=48),
    # Four SIMDs of 16 lanes: a wave's vector or matrix instruction takes one of them 4 clocks, a transcendental or a
    # wide integer multiply 16; scalar and memory instructions issue beside them.
    "gfx942": Machine(
        64,
        {
            "issue": {"alu": 4 / 4, "special": 16 / 4, "tensor": 4 / 4},
            "memory": {"memory": 2, "memory64": 4, "memory128": 8},
            "scalar": {"uniform": 1 / 4},
        },
        {"bf16": 1024, "fp16": 1024, "tf32": 512, "fp32": 128},
        65_536,
    ),
}


def classify(opcode: str) -> str:
    """Find the pipe of an instruction.

    Args:
        opcode: Mnemonic of the instruction with all modifiers.

    Returns:
        A name of ``CLASSES``, ``uniform`` or ``other``; wide accesses to memory are ``memory64`` and ``memory128``.

    Example:
        >>> classify("IMAD.WIDE.U32"), classify("LDS.128"), classify("UIADD3"), classify("v_mfma_f32_32x32x8_bf16")
        ('imad', 'memory128', 'uniform', 'tensor')
    """
    if opcode[0].islower():
        return next((name for name, pattern in _AMD_CLASSES if re.match(pattern, opcode)), "other")
    base, _, modifiers = opcode.partition(".")
    name = _CLASS_OF.get(base) or (
        "uniform" if base.startswith(("U", "VOTEU", "R2UR")) and not base.startswith(("UTMA", "UTC")) else "other"
    )
    if name == "memory" and (wide := re.search(r"\b(64|128)\b", modifiers)):
        name += wide[1]
    return {"LDSM": {"2": "memory64", "4": "memory128"}.get(modifiers[-1:], name)}.get(base, name)


@dataclass(frozen=True)
class MatrixShape:
    """Shape of the product of one matrix instruction.

    Attributes:
        operand: Key of ``Machine.products``.
        multiply_adds: Number of multiply-adds.
        warps: Number of warps that issue the instruction together.
    """

    operand: str
    multiply_adds: int
    warps: float


def matrix_shape(opcode: str, num_warps: int) -> MatrixShape:
    """Read a matrix instruction's opcode.

    Args:
        opcode: Opcode of class ``tensor``.
        num_warps: Warps of the program; with tcgen05 one thread issues the instruction for all of them.

    Returns:
        The shape; it has no multiply-adds if the opcode is not known.

    Example:
        >>> matrix_shape("HGMMA.64x256x16.F32.BF16", 8)
        MatrixShape(operand='bf16', multiply_adds=262144, warps=4)
        >>> matrix_shape("HMMA.1688.F32.TF32", 4).multiply_adds
        1024
        >>> matrix_shape("DMMA.884", 4)
        MatrixShape(operand='fp64', multiply_adds=256, warps=1)
    """
    if opcode.startswith("v_"):
        match = re.search(r"_(\d+)x(\d+)x(\d+)_?(?:(\d)b_)?(bf16|f16|xf32|f32)", opcode)
        operand = {"f16": "fp16", "xf32": "tf32", "f32": "fp32"}.get(match[5], match[5]) if match else ""
        warps = 1
    else:
        match = re.search(r"\.(\d+)x(\d+)x(\d+)", opcode) or re.match(r"\w+\.(16|8)(8)(\d+)()", opcode)
        operand = (
            "fp64"
            if opcode.startswith("DMMA")
            else "tf32"
            if ".TF32" in opcode
            else "bf16"
            if ".BF16" in opcode or opcode.startswith("UTC")
            else "fp16"
        )
        warps = num_warps if opcode.startswith("UTC") else 4 if "GMMA" in opcode else 1
    if not match:
        return MatrixShape(operand, 0, warps)
    m, n, k, *blocks = (int(number) for number in match.groups()[:4] if number and number.isdecimal())
    return MatrixShape(operand, m * n * k * (blocks[0] if blocks else 1), warps)
