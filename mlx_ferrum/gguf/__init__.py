"""GGUF files, version 2 and 3: metadata and tensors, mapped and checked, nothing copied.

`python -m mlx_ferrum.gguf FILE` prints what a file holds. Layout of the format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

TYPE_CHECKING = False

if TYPE_CHECKING:
    from .command import main
    from .file import GGUF, read
    from .header import TensorInfo
    from .values import Strings
else:
    from ..lazy import attributes

    __getattr__ = attributes(
        __name__,
        {
            "main": "command",
            "GGUF": "file",
            "read": "file",
            "TensorInfo": "header",
            "Strings": "values",
        },
    )

__all__ = ["GGUF", "Strings", "TensorInfo", "main", "read"]
