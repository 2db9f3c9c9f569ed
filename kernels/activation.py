"""The numbers of the activation functions in activation.h, for template arguments and for the CPU's structs."""

from __future__ import annotations

from typing import get_args

from mlx_ferrum.options import Activation

NO_ACTIVATION = 0  # never negative: MLX makes the number a part of the kernel's name
ACTIVATIONS: dict[Activation, int] = {name: n for n, name in enumerate(get_args(Activation), 1)}
