"""What LLVM's instructions cost a GPU: kinds of instructions, and how many of each.

An instruction counts once for each element of a vector, for the GPU has none. What costs it nothing counts nothing:
choosing elements, changes of type without a change of bits, half to float and back (operands may be of either size),
extensions, negation, and the comparison before a selection or branch. A right shift and the mask of low bits after
it are one instruction, the extraction of bits; another right shift by an amount known at run time only is a kind of
its own, as GPUs may have a sequence of instructions for it. Addresses at a constant distance are part of the load.
The records in which the host's threads meet for simdgroup operations are on the stack, which is not counted, nor is
what the host does to find a thread's elements of a simdgroup_matrix.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from .tokens import SourceError

# 4: any space, of which only the stack is let through
SPACES = {"": "stack", "1": "device", "2": "constant", "3": "threadgroup", "4": "stack"}
NAME = r'[%@](?:[\w.$-]+|"[^"]*")'
POINTER = re.compile(rf"ptr(?: addrspace\((\d)\))? ({NAME}|null)")
VECTOR = re.compile(r"<(\d+) x ([\w ]+)>")
_LAST_NUMBER = re.compile(r"(?:, |splat \(i\d+ )(\d+)\)?$")
_VARIABLE_AMOUNT = re.compile(rf", {NAME}$")
_VARIABLE_INDEX = re.compile(rf"i(?:32|64) {NAME}")

# By opcode or by the start of a function's name; None: costs nothing.
_OPCODES: dict[str, str | None] = {
    **dict.fromkeys(("fadd", "fsub", "fmul", "fcmp"), "float"),
    **dict.fromkeys(("add", "sub", "and", "or", "xor", "icmp"), "integer"),
    **dict.fromkeys(("shl", "lshr", "ashr"), "shift"),  # or a runtime shift, see `_operation`
    "mul": "multiply",
    **dict.fromkeys(("udiv", "sdiv", "urem", "srem"), "division"),
    **dict.fromkeys(("uitofp", "sitofp", "fptoui", "fptosi"), "convert"),
    **dict.fromkeys(("fdiv", "frem"), "reciprocal"),
    "select": "select",
    **dict.fromkeys(("br", "switch"), "branch"),
    **dict.fromkeys(("trunc", "zext", "sext", "fpext", "fptrunc", "bitcast", "fneg"), None),
    **dict.fromkeys(("phi", "ret", "freeze", "alloca", "unreachable", "addrspacecast"), None),
    **dict.fromkeys(("extractelement", "insertelement", "shufflevector"), None),
    **dict.fromkeys(("extractvalue", "insertvalue", "ptrtoint", "inttoptr"), None),
}
_CALLS: dict[str, str | None] = {
    **dict.fromkeys(("llvm.fma", "llvm.fmuladd", "fma", "llvm.m", "fmin", "fmax"), "float"),
    **dict.fromkeys(("llvm.smin", "llvm.smax", "llvm.umin", "llvm.umax", "llvm.abs"), "integer"),
    **dict.fromkeys(("llvm.fshl", "llvm.fshr", "llvm.ctpop", "llvm.ct", "llvm.bswap"), "shift"),
    **dict.fromkeys(("llvm.floor", "llvm.rint", "llvm.trunc", "llvm.ceil"), "convert"),
    **dict.fromkeys(("llvm.exp", "exp", "llvm.log", "log"), "exponential"),
    **dict.fromkeys(("llvm.sqrt", "sqrt"), "root"),
    **dict.fromkeys(("llvm.sin", "llvm.cos", "sin", "cos", "tan", "llvm.pow", "pow"), "sine"),
    **dict.fromkeys(("llvm.fabs", "llvm.copysign", "llvm.lifetime", "llvm.assume"), None),
    **dict.fromkeys(("llvm.dbg", "llvm.experimental", "llvm.memcpy", "llvm.memset"), None),
    **dict.fromkeys(("msl_lane", "msl_threadgroup"), None),
    "msl_barrier": "barrier",
    "msl_simdgroup_barrier": "simdgroup barrier",
}
_COLLECTIVES = {"msl_product": "matrix", "msl_shuffle": "shuffle", "msl_first": "shuffle"}


@dataclass
class Instruction:
    """A line of LLVM's text. rest: what follows on the opcode"""

    line: str
    name: str | None
    opcode: str
    rest: str

    @property
    def code(self) -> str:
        """Without what follows on types and places."""
        return re.split(r", ![a-z]", self.rest)[0]

    @property
    def callee(self) -> str:
        """The name of the function that is called, or nothing."""
        found = re.search(r"@([\w.$]+|\"[^\"]*\")\(", self.rest)
        return found[1].strip('"') if found else ""


def cost(
    i: Instruction, uses: Counter[str], made: Mapping[str, Instruction]
) -> tuple[str | None, int]:
    """The kind of instruction that this is, and how many of them the GPU needs.

    uses: how often each name is in the text; made: the instructions of the block by name
    Raises SourceError for one that is not known.
    """
    if i.opcode in ("load", "store"):
        space = SPACES[POINTER.findall(i.code)[-1][0]]
        return (None if space == "stack" else f"{space} {i.opcode}"), 1
    if i.opcode == "getelementptr":
        return ("address" if _VARIABLE_INDEX.search(i.code) else None), 1
    if i.opcode == "call":
        return _call_kind(i), _elements(i.code)
    if i.opcode not in _OPCODES:
        raise SourceError(f"an LLVM instruction of unknown cost: {i.line.strip()}")
    return _operation(i, uses, made)


def _operation(
    i: Instruction, uses: Counter[str], made: Mapping[str, Instruction]
) -> tuple[str | None, int]:
    kind, count = _OPCODES[i.opcode], _elements(i.code)
    if kind == "branch" and i.code.count("label") < 2:
        return None, 0
    if "bfloat" in i.code and i.opcode in ("fpext", "fptrunc"):
        return "convert", count
    if i.opcode in ("icmp", "fcmp") and uses[i.name or ""] == 2:
        return None, 0
    if i.opcode == "and" and _is_extraction(i, uses, made):
        return None, 0
    if i.opcode in ("lshr", "ashr") and _VARIABLE_AMOUNT.search(i.code):
        return ("shift" if _is_extracted(i, uses, made) else "runtime shift"), count
    divisor = _LAST_NUMBER.search(i.code)
    if kind == "division" and divisor:  # by a constant: shifts, or a product and a shift
        return ("multiply" if int(divisor[1]) & (int(divisor[1]) - 1) else "shift"), 2 * count
    return kind, count


def _is_extraction(i: Instruction, uses: Counter[str], made: Mapping[str, Instruction]) -> bool:
    """Whether this masks low bits of what a shift just for it made: the shift counts for both."""
    mask, operand = _LAST_NUMBER.search(i.code), _operand(i)
    if not mask or not operand or int(mask[1]) & (int(mask[1]) + 1):
        return False
    before = made.get(operand)
    return before is not None and before.opcode == "lshr" and uses[operand] == 2


def _is_extracted(i: Instruction, uses: Counter[str], made: Mapping[str, Instruction]) -> bool:
    """Whether all that is used of this shift is its low bits, a constant number of them."""
    users = (j for j in made.values() if j.opcode == "and" and _operand(j) == i.name)
    return any(_is_extraction(j, uses, made) for j in users)


def _operand(i: Instruction) -> str | None:
    found = re.search(NAME, i.code)
    return found[0] if found else None


def _call_kind(i: Instruction) -> str | None:
    if i.callee.startswith("msl_collective"):
        return next((kind for name, kind in _COLLECTIVES.items() if name in i.rest), "reduction")
    best = max((n for n in _CALLS if i.callee.startswith(n)), key=len, default=None)
    if best is None:
        raise SourceError(f"a call of unknown cost: {i.line.strip()}")
    return _CALLS[best]


def _elements(code: str) -> int:
    found = VECTOR.search(code)
    return int(found[1]) if found else 1
