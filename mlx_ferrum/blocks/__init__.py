"""One file per ggml type. `TYPES` knows every type's name and size; the ones under `supported` can be decoded."""

from .base import Block, BlockType
from .bf16 import BF16
from .f16 import F16
from .f32 import F32
from .iq4_nl import IQ4_NL
from .iq4_xs import IQ4_XS
from .mxfp4 import MXFP4
from .q2_k import Q2_K
from .q3_k import Q3_K
from .q4_0 import Q4_0
from .q4_1 import Q4_1
from .q4_k import Q4_K
from .q5_0 import Q5_0
from .q5_1 import Q5_1
from .q5_k import Q5_K
from .q6_k import Q6_K
from .q8_0 import Q8_0
from .q8_k import Q8_K
from .unsupported import REMOVED, UNSUPPORTED

SUPPORTED: tuple[type[Block], ...] = (
    *(F32, F16, BF16),
    *(Q4_0, Q4_1, Q5_0, Q5_1, Q8_0),
    *(Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_K),
    *(IQ4_NL, IQ4_XS, MXFP4),
)
TYPES: dict[int, type[BlockType]] = {block.id: block for block in (*SUPPORTED, *UNSUPPORTED)}
_BY_NAME = {block.name: block for block in TYPES.values()}


def by_name(name: str) -> type[Block]:
    """The block type called `name`, e.g. "Q4_K".

    Raises NotImplementedError for a type that ggml has and this package cannot decode, ValueError for any other name.
    """
    block = _BY_NAME.get(name)
    if block is None:
        raise ValueError(f"no ggml type is called {name!r}; known: {', '.join(_BY_NAME)}")
    if not issubclass(block, Block):
        known = ", ".join(b.name for b in SUPPORTED)
        raise NotImplementedError(f"tensors of type {name} cannot be decoded; supported: {known}")
    return block


__all__ = [
    "BF16",
    "F16",
    "F32",
    "IQ4_NL",
    "IQ4_XS",
    "MXFP4",
    "Q2_K",
    "Q3_K",
    "Q4_0",
    "Q4_1",
    "Q4_K",
    "Q5_0",
    "Q5_1",
    "Q5_K",
    "Q6_K",
    "Q8_0",
    "Q8_K",
    "REMOVED",
    "SUPPORTED",
    "TYPES",
    "Block",
    "BlockType",
    "by_name",
]
