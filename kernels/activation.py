"""The values of the enum in activation.h, for template arguments and the structs of CPU kernels."""

from __future__ import annotations

from typing import get_args

from mlx_ferrum.options import Activation

NO_ACTIVATION = 0  # not negative: MLX puts the value into the kernel's name
ACTIVATIONS: dict[Activation, int] = {name: n for n, name in enumerate(get_args(Activation), 1)}
