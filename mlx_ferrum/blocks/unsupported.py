"""ggml types that are recognised in a file, so that it can be listed, but not decoded; and those that ggml removed."""

from .base import BlockType


def _known(id: int, name: str, weights: int, size: int) -> type[BlockType]:
    return type(name, (BlockType,), {"id": id, "name": name, "weights": weights, "bytes": size})


UNSUPPORTED: tuple[type[BlockType], ...] = (
    _known(9, "Q8_1", 32, 2 + 2 + 32),
    _known(16, "IQ2_XXS", 256, 2 + 64),
    _known(17, "IQ2_XS", 256, 2 + 64 + 8),
    _known(18, "IQ3_XXS", 256, 2 + 64 + 32),
    _known(19, "IQ1_S", 256, 2 + 32 + 16),
    _known(21, "IQ3_S", 256, 2 + 64 + 8 + 32 + 4),
    _known(22, "IQ2_S", 256, 2 + 64 + 16),
    _known(24, "I8", 1, 1),
    _known(25, "I16", 1, 2),
    _known(26, "I32", 1, 4),
    _known(27, "I64", 1, 8),
    _known(28, "F64", 1, 8),
    _known(29, "IQ1_M", 256, 32 + 16 + 8),
    _known(34, "TQ1_0", 256, 2 + 4 + 48),
    _known(35, "TQ2_0", 256, 2 + 64),
    _known(40, "NVFP4", 64, 4 + 32),
    _known(41, "Q1_0", 128, 2 + 16),
    _known(42, "Q2_0", 64, 2 + 16),
)
# Number to name, and the type to take instead. Those with sizes of tiles in their names hold the rows of another type
# interleaved for one processor, which runtimes do themselves now.
REMOVED = {
    4: ("Q4_2", "Q4_0"),
    5: ("Q4_3", "Q4_1"),
    31: ("Q4_0_4_4", "Q4_0"),
    32: ("Q4_0_4_8", "Q4_0"),
    33: ("Q4_0_8_8", "Q4_0"),
    36: ("IQ4_NL_4_4", "IQ4_NL"),
    37: ("IQ4_NL_4_8", "IQ4_NL"),
    38: ("IQ4_NL_8_8", "IQ4_NL"),
}
