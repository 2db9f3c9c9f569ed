"""The native backend: C++ kernels that read the mapped bytes in place.

`python -m mlx_ferrum.backends.cpu` builds their library ahead of time without MLX, so the operations are imported when
the first of them is read.
"""

TYPE_CHECKING = False

if TYPE_CHECKING:
    from .operations import *  # noqa: F403 -- operations.py is the only list of operations
else:
    from ...lazy import names_of

    __getattr__ = names_of(__name__, "operations")
