"""What a layer declares that it keeps of a sequence, and what every kind of state can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .pool import Pool


@dataclass(frozen=True)
class KV:
    """Keys and values of an attention layer.

    heads: key-value heads
    key_dim, value_dim: numbers in a key and in a value of one head
    window: positions that a row sees, itself included; None: all before it
    bits: of a stored number, 16 or 8
    shares: index of the layer whose keys and values this layer reads instead of its own
    """

    heads: int
    key_dim: int
    value_dim: int
    window: int | None = None
    bits: int = 16
    shares: int | None = None

    def __post_init__(self) -> None:
        for name in ("heads", "key_dim", "value_dim", "window"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"KV: {name} is {value}, expected at least 1")
        if type(self.bits) is not int or self.bits not in (8, 16):
            raise ValueError(f"KV: bits is {self.bits!r}, expected 8 or 16")
        if self.shares is not None and self.shares < 0:
            raise ValueError(f"KV: shares is {self.shares}, expected the index of a layer")


@dataclass(frozen=True)
class Recurrent:
    """What a recurrent layer keeps: the last inputs of a short convolution, and a matrix for each head.

    channels: of the convolution
    columns: earlier inputs that the convolution reads, one less than its kernel has
    heads: matrices, each (size, size) float32, with the key along the first axis
    """

    channels: int
    columns: int
    heads: int
    size: int

    def __post_init__(self) -> None:
        for name in ("channels", "columns", "heads", "size"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"Recurrent: {name} is {value}, expected at least 1")

    @property
    def nbytes(self) -> int:
        """Bytes that the state of one sequence takes."""
        return 4 * (self.columns * self.channels + self.heads * self.size**2)


Keeps = KV | Recurrent


class State(Protocol):
    """One kind of state for all sequences. A sequence has one part in each state; only the state looks into it.

    keys: chained hashes of the full blocks of a sequence's known tokens
    position: index of the next token to compute
    """

    pool: Pool
    """Ids of the blocks, or slots, that parts consist of. No other state has the same pool."""

    block: int
    """Positions in a block, the same for all states of a model."""

    unit: str
    """What the pool counts, for people."""

    def longest(self, keys: Sequence[bytes], most: int) -> int:
        """The most positions <= most that a new sequence can start with: a multiple of the block, or 0."""

    def begin(self, keys: Sequence[bytes], position: int) -> Any:
        """The part of a new sequence that starts at `position`, which `longest` gave for these keys."""

    def resume(self, position: int, first: int) -> Any:
        """The part of a sequence of `position` positions, whose contents from block `first` on the caller writes."""

    def needed(self, part: Any, position: int, count: int, known: int) -> int:
        """The free blocks that `reserve` needs."""

    def most(self, positions: int, count: int) -> int:
        """The most blocks that a sequence of `positions` holds if at most `count` are reserved at a time."""

    def whole(self, position: int, count: int) -> int:
        """How many of the next `count` rows of a prompt a pass should compute, so that the state after it is of use."""

    def reserve(self, part: Any, position: int, count: int, known: int) -> None:
        """Make positions position ... position + count - 1 writable. Raises OutOfBlocksError.

        known: the sequence may have to go back to this position, as ids of tokens behind it are not known yet
        """

    def advance(self, part: Any, position: int, count: int) -> None:
        """The rows position ... position + count - 1, which were reserved, are computed."""

    def publish(self, part: Any, keys: Sequence[bytes], known: int) -> None:
        """Make the full blocks below position `known` findable: their contents are final."""

    def fork(self, part: Any) -> Any:
        """A second part with the same contents."""

    def reach(self, part: Any, keys: Sequence[bytes], position: int) -> int:
        """The highest position <= position to which `rewind` can go back."""

    def rewind(self, part: Any, keys: Sequence[bytes], position: int) -> None:
        """Go back to a position that `reach` gave."""

    def free(self, part: Any) -> None:
        """Give up all blocks of the part. Published blocks can be found until they are evicted."""


class ArrayState(State, Protocol):
    """A State with arrays, which layers read and write."""

    def arrays(self, parts: Sequence[Any], positions: Sequence[range]) -> Any:
        """What a pass reads to find the parts of its sequences, whose new rows are at `positions`."""
