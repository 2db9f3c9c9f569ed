"""LLVM's text of a kernel: what each of its basic blocks costs, and the same text with calls that count."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from .instructions import NAME, POINTER, SPACES, VECTOR, Instruction, cost
from .tokens import SourceError
from .translate import ENTRY

_LABEL = re.compile(r'^((?:[\w.$-]+|"[^"]*")):')
_CODE = re.compile(rf"^\s+(?:({NAME}) = )?(?:(?:tail|notail|musttail) )?([a-z]\w*)\b(.*)$")
_GENERIC = re.compile(r"addrspacecast ptr addrspace\(\d\) .* to ptr addrspace\(4\)")
_BITS = {"half": 16, "bfloat": 16, "float": 32, "double": 64, "ptr": 64}
_MEMORY = ("load", "store", "call")
# Of these only the memory counts: where a thread's elements are is the host's business.
_HOSTS_OWN = "/matrix.h"
_DECLARATIONS = (
    "declare zeroext i1 @msl_count_wanted(ptr)",
    "declare void @msl_count_block(ptr, i32)",
    "declare void @msl_count_access(ptr, i32, i64, i32)",
)


@dataclass
class Site:
    """An access to memory in the text. space: of `SPACES`; bytes: of one thread."""

    block: int
    space: str
    writes: bool
    bytes: int


@dataclass
class Program:
    """A kernel's text that counts.

    costs: of each basic block, how many instructions of each kind a run of it is
    threadgroup_bytes: of its threadgroup variables
    """

    text: str
    costs: list[Counter[str]] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)
    threadgroup_bytes: int = 0


def instrument(text: str) -> Program:
    """The text of `compiler.llvm_ir`. Raises SourceError for an instruction that is not known here."""
    lines = text.splitlines()
    start = next(i for i, s in enumerate(lines) if s.startswith("define") and f"@{ENTRY}(" in s)
    stop = lines.index("}", start)
    body = _joined(lines[start + 1 : stop])
    if any(_GENERIC.search(line) for line in body):
        raise SourceError("a pointer to any address space, whose accesses cannot be counted")
    counter = _Counter(Program(""), Counter(re.findall(NAME, "\n".join(body))), _hosts_own(text))
    out = [
        "msl_start:",
        "  %msl_wanted = call zeroext i1 @msl_count_wanted(ptr %position)",
        f"  br i1 %msl_wanted, label %{_first_label(body)}, label %msl_skip",
        "msl_skip:",
        "  ret void",
    ]
    for label, block in _blocks(body):
        out += [label, *counter.block(block)]
    program = counter.program
    program.text = "\n".join([*lines[: start + 1], *out, *lines[stop:], *_DECLARATIONS]) + "\n"
    return program


@dataclass
class _Counter:
    """uses: how often each name is in the text; hosts_own: places of which only memory counts"""

    program: Program
    uses: Counter[str]
    hosts_own: set[str]

    def block(self, block: list[Instruction]) -> Iterator[str]:
        """The block's lines with calls that count; its costs go into the program."""
        number, costs = len(self.program.costs), Counter[str]()
        self.program.costs.append(costs)
        made = {i.name: i for i in block if i.name}
        counted = False
        for i in block:
            if i.opcode != "phi" and not counted:
                counted = True
                yield f"  call void @msl_count_block(ptr %position, i32 {number})"
            if i.opcode in _MEMORY:
                yield from self.accesses(i, number)
            kind, count = cost(i, self.uses, made)
            if kind and (i.opcode in _MEMORY or _place(i.line) not in self.hosts_own):
                costs[kind] += count
            if i.callee == "msl_threadgroup":
                self.program.threadgroup_bytes += int(
                    re.findall(r"i64 (?:noundef )?(\d+)", i.code)[0]
                )
            yield i.line

    def accesses(self, i: Instruction, block: int) -> Iterator[str]:
        """Calls that count what the instruction reads and writes."""
        sites = self.program.sites
        for space, name, writes, size in _accesses(i):
            if SPACES[space] == "stack":
                continue
            number = len(sites)
            sites.append(Site(block, SPACES[space], writes, size))
            value = f"i64 ptrtoint (ptr addrspace({space}) {name} to i64)"
            if name.startswith("%"):
                yield f"  %msl_address{number} = ptrtoint ptr addrspace({space}) {name} to i64"
                value = f"i64 %msl_address{number}"
            yield f"  call void @msl_count_access(ptr %position, i32 {number}, {value}, i32 {size})"


def _accesses(i: Instruction) -> list[tuple[str, str, bool, int]]:
    """(address space, pointer, whether it is written to, bytes) of each."""
    pointers = POINTER.findall(i.code)
    if i.opcode == "call":
        if not i.callee.startswith(("llvm.memcpy", "llvm.memset")):
            return []
        size = int(re.findall(r"i64 (\d+)", i.code)[-1])
        return [(*p, at == 0, size) for at, p in enumerate(pointers)]
    kind = re.match(r" (?:volatile )?(<[^>]*>|\w+)", i.code)
    if not kind or not pointers:
        raise SourceError(f"an access that is not understood: {i.line.strip()}")
    return [(*pointers[-1], i.opcode == "store", _bytes(kind[1]))]


def _bytes(kind: str) -> int:
    """Of a type: `i32`, `half`, `<4 x float>`."""
    found = VECTOR.match(kind)
    count, kind = (int(found[1]), found[2]) if found else (1, kind)
    bits = int(kind[1:]) if kind[0] == "i" and kind[1:].isdigit() else _BITS.get(kind.split()[0])
    if bits is None:
        raise SourceError(f"an LLVM type of unknown size: {kind}")
    return count * -(-bits // 8)


def _joined(lines: list[str]) -> list[str]:
    """One line an instruction: switches take several."""
    out: list[str] = []
    for line in lines:
        if out and out[-1].lstrip().startswith("switch") and "]" not in out[-1]:
            out[-1] += " " + line.strip()
        else:
            out.append(line)
    return out


def _first_label(body: list[str]) -> str:
    found = _LABEL.match(body[0])
    if not found:
        raise SourceError("the first block of the kernel's LLVM text has no name")
    return found[1]


def _blocks(body: list[str]) -> Iterator[tuple[str, list[Instruction]]]:
    label = body[0]
    block: list[Instruction] = []
    for line in body[1:]:
        if _LABEL.match(line):
            yield label, block
            label, block = line, []
        elif line.strip():
            found = _CODE.match(line)
            if not found:
                raise SourceError(f"an LLVM instruction that is not understood: {line.strip()}")
            block.append(Instruction(line, found[1], found[2], found[3]))
    yield label, block


def _place(line: str) -> str:
    found = re.search(r"!dbg (!\d+)", line)
    return found[1] if found else ""


def _hosts_own(text: str) -> set[str]:
    """The names of places in _HOSTS_OWN."""
    facts = dict(re.findall(r"^(!\d+) = (.*)$", text, re.M))

    def follow(name: str, *fields: str) -> str:
        for field_ in fields:
            while found := re.search(rf"\b{field_}: (!\d+)", facts[name]):
                name = found[1]
        return facts[name]

    places = (name for name, fact in facts.items() if fact.startswith("!DILocation("))
    return {name for name in places if f'{_HOSTS_OWN}"' in follow(name, "scope", "file")}
