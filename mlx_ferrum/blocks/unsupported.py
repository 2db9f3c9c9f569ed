"""ggml types that are recognised in a file, so that it can be listed, but not decoded."""

from .base import BlockType


def _known(id: int, name: str, weights: int, size: int) -> type[BlockType]:
    return type(name, (BlockType,), {"id": id, "name": name, "weights": weights, "bytes": size})


UNSUPPORTED: tuple[type[BlockType], ...] = (
    _known(9, "Q8_1", 32, 4 + 4 + 32),
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
)
