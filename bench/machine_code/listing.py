"""Machine code as a list of instructions, from the text of nvdisasm (SASS) or of Triton's AMD assembly."""

import re
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Instruction:
    """Instruction of a warp.

    Attributes:
        opcode: Mnemonic with all modifiers, e.g. ``IMAD.WIDE.U32`` or ``v_mfma_f32_32x32x8_bf16``.
        operands: Rest of the line.
        target: Label that it may branch to.
        taken: Probability of the branch; otherwise the next instruction follows.
        ends: True if the program ends here.
    """

    opcode: str
    operands: str = ""
    target: str | None = None
    taken: float = 0.0
    ends: bool = False


@dataclass
class Listing:
    """Instructions of a kernel in the order of their addresses, and the indices that labels name."""

    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


_LABEL = re.compile(r"([.$\w]+):")
_SASS = re.compile(r"/\*[0-9a-f]+\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_AMD = re.compile(r"\t([a-z]\w*)(?:\s+([^;]*))?")
_ENDS = ("EXIT", "RET.", "s_endpgm", "s_setpc_b64")


def sass(text: str) -> Listing:
    """Read a disassembly of nvdisasm -c.

    Three branches are read as if nothing had to wait, because their slow paths would look like loops: a wait for a
    barrier (TRYWAIT) or for tensor memory (FIND_AND_SET) succeeds at once, and the threads of a warp do not diverge
    (BRA.DIV).

    Args:
        text: Output of nvdisasm for one cubin.

    Returns:
        The instructions; those of called functions follow those of the kernel.
    """
    listing = Listing()
    waits: set[str] = set()
    immediates: dict[str, int] = {}
    for line in text.splitlines():
        line = line.strip()
        if match := _SASS.match(line):
            predicate, opcode, operands = match[1] or "", match[2], match[3]
            listing.instructions.append(_sass_instruction(predicate, opcode, operands, waits, immediates))
        elif match := _LABEL.fullmatch(line):
            listing.labels[match[1]] = len(listing.instructions)
            waits.clear()
    return listing


def _sass_instruction(
    predicate: str, opcode: str, operands: str, waits: set[str], immediates: dict[str, int]
) -> Instruction:
    """Read an instruction; ``waits`` are the predicates of successful waits, ``immediates`` the known registers."""
    # A call to a label inside the kernel is a long jump of ptxas; calls of functions return.
    if (target := re.search(r"`\((.+?)\)", operands)) and (
        opcode.startswith("BRA") or opcode.startswith("CALL") and target[1].startswith(".L")
    ):
        taken = _branch_probability(opcode, predicate or operands, waits)
        return Instruction(opcode, operands, target[1] if taken else None, taken)
    # The disassembler writes hints to the hardware behind the operands, such as ?trans1.
    first, _, rest = operands.partition("?")[0].rstrip().partition(", ")
    waits.discard(first)
    if "TRYWAIT" in opcode or "FIND_AND_SET" in opcode:
        waits.add(first)
    # The value of a register is known if the last instruction that wrote it set a number or copied a known register.
    known = immediates.get(rest) if opcode == "UMOV" else None
    immediates.pop(first, None)
    if opcode == "UMOV" and rest.startswith("0x"):
        known = int(rest, 16)
    if known is not None:
        immediates[first] = known
    if opcode.startswith("UTC") and (descriptor := re.search(r"idesc\[(\w+)\]", operands)):
        opcode += _tcgen05_shape(immediates.get(descriptor[1], 0))
    # A predicated EXIT ends programs without work; the others continue.
    return Instruction(opcode, operands, ends=not predicate and opcode.startswith(_ENDS))


def _branch_probability(opcode: str, condition: str, waits: set[str]) -> float:
    """Return the probability of a branch whose condition, if any, is the first word."""
    match = re.match(r"(!?)(U?P\d)\b", condition)
    if opcode.startswith("BRA.DIV"):
        return 0.0
    if not match:
        return 1.0
    if match[2] in waits:
        return 0.0 if match[1] else 1.0
    return 0.5


def _tcgen05_shape(descriptor: int) -> str:
    """Return the shape in the instruction descriptor of tcgen05, in the notation of wgmma's opcodes."""
    m, n, tf32 = (descriptor >> 24 & 31) * 16, (descriptor >> 17 & 63) * 8, descriptor >> 7 & 7 == 2
    return f".{m}x{n}x{8 if tf32 else 16}{'.TF32' if tf32 else ''}"


def amd(text: str) -> Listing:
    """Read the assembly of an AMD kernel.

    A branch over code for which no thread is active (``s_cbranch_execz``) is read as not taken: in the interior of a
    tensor every mask has active threads.

    Args:
        text: Assembly that Triton stores as ``amdgcn``.

    Returns:
        The instructions.
    """
    listing = Listing()
    for line in text.splitlines():
        if line.startswith(".Lfunc_end"):
            break
        if match := _LABEL.match(line):
            listing.labels[match[1]] = len(listing.instructions)
        elif match := _AMD.match(line):
            opcode, operands = match[1], (match[2] or "").strip()
            branches = opcode.startswith(("s_branch", "s_cbranch"))
            taken = {"s_branch": 1.0, "s_cbranch_execz": 0.0}.get(opcode, 0.5) if branches else 0.0
            target = operands if branches else None
            listing.instructions.append(Instruction(opcode, operands, target, taken, opcode.startswith(_ENDS)))
    return listing
