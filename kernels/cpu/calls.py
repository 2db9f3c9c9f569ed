"""The structs of calls.h for ctypes, field by field. `symbol` is the function that takes one."""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_float, c_int, c_long, c_void_p
from typing import Any, ClassVar


def _fields(*groups: tuple[Any, str]) -> tuple[tuple[str, Any], ...]:
    """Groups of a type and the names that have it, in their order."""
    return tuple((name, kind) for kind, names in groups for name in names.split())


class Weight(Structure):
    """A matrix of blocks in the file."""

    _fields_ = _fields((c_void_p, "data"), (c_long, "type rows"), (c_void_p, "bias"))


class Arguments(Structure):
    """What one function of the library takes."""

    symbol: ClassVar[str]


class Matmuls(Arguments):
    """Several weights that share x."""

    symbol = "ferrum_matmuls"
    _fields_ = _fields((c_void_p, "x w add out"), (c_int, "n k count"))


class GateUp(Arguments):
    """act(x gateᵀ) * (x upᵀ)."""

    symbol = "ferrum_gate_up"
    _fields_ = _fields((c_void_p, "x w out"), (c_int, "n k act"))


class Rows(Arguments):
    """Embedding rows."""

    symbol = "ferrum_rows"
    _fields_ = _fields((c_void_p, "w ids out"), (c_int, "n k"), (c_float, "scale"))


class Put(Arguments):
    """New keys and values into a cache."""

    symbol = "ferrum_put"
    _fields_ = _fields(
        (c_void_p, "source to"),
        (c_long, "at"),
        (c_int, "batch heads length row"),
        (c_long * 4, "source_strides to_strides"),
    )


class Attention(Arguments):
    """Attention over a cache, causal or both ways."""

    symbol = "ferrum_attend"
    _fields_ = _fields(
        (c_void_p, "q k v out"),
        (c_int, "batch heads groups length held d dv window halves both_ways"),
        (c_long, "k_batch k_head k_stride v_batch v_head v_stride"),
        (c_float, "scale"),
    )


class Rotate(Arguments):
    """Norm and rotation of queries and keys."""

    symbol = "ferrum_rotate"
    _fields_ = _fields(
        (c_void_p, "q k v q_weight k_weight frequencies offset turned added"),
        (c_int, "batch length heads groups d dv pairs interleaved"),
        (c_float, "magnitude eps"),
        (c_long, "later"),
    )


class RmsNorm(Arguments):
    """RMS norm of rows."""

    symbol = "ferrum_rms_norm"
    _fields_ = _fields(
        (c_void_p, "x weight add out"), (c_long, "rows"), (c_int, "d"), (c_float, "eps")
    )


class SigmoidGate(Arguments):
    """x * sigmoid(gate) + add."""

    symbol = "ferrum_sigmoid_gate"
    _fields_ = _fields((c_void_p, "x gate add out"), (c_long, "rows"), (c_int, "d"))


class Route(Arguments):
    """The choice of experts."""

    symbol = "ferrum_route"
    _fields_ = _fields(
        (c_void_p, "logits bias ids weights"),
        (c_int, "n experts used sigmoid normalise groups groups_used"),
        (c_float, "scale"),
    )


class Gather(Arguments):
    """Products with the chosen experts of one stack, or gate and up of two."""

    symbol = "ferrum_gather"
    _fields_ = _fields((c_void_p, "x w ids out"), (c_int, "n used experts k count act"))


class GatherDown(Arguments):
    """The weighted sum over the chosen experts."""

    symbol = "ferrum_gather_down"
    _fields_ = _fields((c_void_p, "x w ids weights add out"), (c_int, "n used experts k"))


class Gelu(Arguments):
    """The exact GELU."""

    symbol = "ferrum_gelu"
    _fields_ = _fields((c_void_p, "x out"), (c_long, "count"))


class Call(Structure):
    """A recorded call: which struct, and where it lies."""

    _fields_ = _fields((c_long, "kind"), (c_void_p, "arguments"))


KINDS: tuple[type[Arguments], ...] = (
    *(Matmuls, GateUp, Rows, Put, Attention, Rotate, RmsNorm),
    *(SigmoidGate, Route, Gather, GatherDown, Gelu),
)


def structs() -> tuple[type[Structure], ...]:
    """All structs of this file."""
    return (Weight, *KINDS, Call)


def recorded(calls: list[Arguments]) -> ctypes.Array[Call]:
    """Calls in their order, as ferrum_replay takes them; they must stay alive."""
    entries = [Call(KINDS.index(type(call)), ctypes.addressof(call)) for call in calls]
    return (Call * len(calls))(*entries)
