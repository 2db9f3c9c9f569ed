"""The text before a kernel's body: its functions, and the decoders of the block types that it is for."""

from __future__ import annotations

from mlx_ferrum.launch import expand


def header(file: str, **blocks: str) -> str:
    """`file` of kernels/ with its includes; each of `blocks`, a ggml type, under the name that the body gives it."""
    files = dict.fromkeys(f"blocks/{block.lower()}.h" for block in blocks.values())
    names = "".join(f"using {name} = {block};\n" for name, block in blocks.items())
    return expand("prelude.metal", *files, file) + names
