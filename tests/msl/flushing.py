"""A host that takes subnormal halves for 0 wherever they become floats, as Metal permits a GPU to do."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mlx_ferrum.launch import Launch

from . import compiler, native
from .host import Host, KernelError
from .native import Memory
from .signature import Signature

_WIDENED = re.compile(r"(?m)^ *%(\S+) = fpext (half|<\d+ x half>) (\S+) to (\S+|<[^>]+>)(, !.*)?$")
_SMALLEST = 0x38800000  # the bits of 2^-14, the smallest normal half, as a float


@dataclass
class FlushingHost(Host):
    """Runs LLVM's text of a kernel, with each conversion of a half flushed."""

    def _execute(self, made: Signature, call: Launch, memory: list[Memory]) -> None:
        library = compiler.library_of(flushed(compiler.llvm_ir(made)))
        found = native.run(
            library,
            memory,
            grid=call.grid,
            group=call.threadgroup,
            seed=self.seed,
            checked=False,
            threads=1,
        )
        if found:
            raise KernelError(f"{made.kernel} failed")


def flushed(llvm: str) -> str:
    """The text with a test after each conversion. Raises ValueError for a conversion of another form."""
    text, count = _WIDENED.subn(_flush, llvm)
    if count != len(re.findall(r"\bfpext\b.*\bhalf\b", llvm)):
        raise ValueError("a conversion of halves that is not known here")
    return text


def _flush(found: re.Match[str]) -> str:
    """As integers, which no compiler's option changes."""
    name, source, value, widened, debug = found.groups()
    lanes = re.sub(r"half", "i32", source) if "x" in source else "i32"
    truths = lanes.replace("i32", "i1")
    sign, smallest = (_splat(bits, lanes) for bits in (0x7FFFFFFF, _SMALLEST))
    end = debug or ""
    new = f"%flush.{name}".replace('"', "")
    return "\n".join(
        [
            f"  {new}.f = fpext {source} {value} to {widened}{end}",
            f"  {new}.i = bitcast {widened} {new}.f to {lanes}",
            f"  {new}.a = and {lanes} {new}.i, {sign}",
            f"  {new}.c = icmp ult {lanes} {new}.a, {smallest}",
            f"  %{name} = select {truths} {new}.c, {widened} zeroinitializer, {widened} {new}.f"
            if "x" in source
            else f"  %{name} = select i1 {new}.c, float 0.0, float {new}.f",
        ]
    )


def _splat(bits: int, lanes: str) -> str:
    """A constant of this type, with `bits` in each lane."""
    count = int(lanes[1:].split()[0]) if lanes != "i32" else 0
    return f"<{', '.join([f'i32 {bits}'] * count)}>" if count else str(bits)
