"""The text before a kernel's body: its functions, and the decoders of the block types that it is for."""

from __future__ import annotations

from mlx_ferrum.launch import Header


def header(file: str, **blocks: str) -> Header:
    """`file` of kernels/ with its includes; each of `blocks`, a ggml type, under the name that the body gives it."""
    files = dict.fromkeys(f"blocks/{block.lower()}.h" for block in blocks.values())
    names = "".join(f"using {name} = {block};\n" for name, block in blocks.items())
    return Header(("prelude.metal", "numbers.h", *files, file), names)
