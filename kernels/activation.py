"""What activation.metal calls its functions: the numbers of its enum, for template arguments."""

from __future__ import annotations

NO_ACTIVATION = 0  # never -1: MLX makes a part of the kernel's name of the number
ACTIVATIONS = {"silu": 1, "gelu": 2}
