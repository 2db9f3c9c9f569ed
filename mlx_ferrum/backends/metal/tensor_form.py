"""Whether tiles are multiplied by tensor operations: on GPUs with hardware for them, from the M5 on, where they work.

MLX compiles kernels as Metal 4 from macOS 26 on, which has the operations; 26.2 is the first release whose
operations MLX itself uses.
"""

from __future__ import annotations

import functools
import platform
import re
from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from ... import notice
from ...kernels import tensor_products

FIRST, FIRST_PHONE = 17, 18  # generations, as in applegpu_g17s; phones end with p
DARWIN = (25, 2)  # the kernel of macOS 26.2; platform.mac_ver gives older programs another version
_ARCHITECTURE = re.compile(r"applegpu_g(\d+)([a-z])")
_LONGEST = 200  # characters of an error


def suits(architecture: str, darwin: str) -> bool:
    """Whether a GPU of this architecture, under this release of Darwin, has the operations and hardware for them."""
    found, release = _ARCHITECTURE.fullmatch(architecture), re.match(r"(\d+)\.(\d+)", darwin)
    if not found or not release or (int(release[1]), int(release[2])) < DARWIN:
        return False
    return int(found[1]) >= (FIRST_PHONE if found[2] == "p" else FIRST)


def has_hardware() -> bool:
    """Whether this machine suits."""
    if not mx.metal.is_available():
        return False
    info: Mapping[str, Any] = mx.device_info(mx.gpu)
    return suits(str(info.get("architecture", "")), platform.release())


@functools.cache
def works(columns: int) -> bool:
    """Whether kernels take the form for tiles of `columns` rows of x: asked once, where there is hardware.

    If a small product fails or is wrong, one line says so, and kernels keep to simdgroup matrices.
    """
    if not has_hardware():
        return False
    failed = tensor_products.failure(columns)
    if failed:
        notice.warn(
            f"tensor operations do not work for tiles of {columns} rows, so kernels use simdgroup matrices: "
            f"{failed[:_LONGEST]}"
        )
    return not failed
