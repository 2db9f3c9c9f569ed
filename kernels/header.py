"""The header of a kernel: its functions, and the decoders of the block types that it reads."""

from __future__ import annotations

from mlx_ferrum.launch import Header


def header(file: str, **blocks: str) -> Header:
    """`file` of kernels/ with its includes. blocks: the name of a block type in the body -> its ggml type"""
    files = dict.fromkeys(f"blocks/{block.lower()}.h" for block in blocks.values())
    names = "".join(f"using {name} = {block};\n" for name, block in blocks.items())
    return Header(("prelude.metal", "numbers.h", *files, file), names)
