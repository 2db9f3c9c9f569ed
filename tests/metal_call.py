"""Launch a few lines of Metal: inputs are called a, b, c, d and outputs y, z."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from msl import Finding, metal_on_cpu

from mlx_ferrum.launch import Kernel

HAS_METAL = mx.metal.is_available()
needs_host = pytest.mark.skipif(HAS_METAL, reason="about the host, which stands in for Metal")

# What the host claims of Metal is put to the GPU where there is one; no Mac has confirmed it yet.
also_on_metal = pytest.mark.xfail(HAS_METAL, reason="not yet confirmed on a GPU", strict=False)

Output = tuple[Sequence[int], mx.Dtype]


def kernel(source: str, inputs: int, outputs: int, header: str = "", name: str = "test") -> Kernel:
    """A kernel of a few lines."""
    return Kernel(name, source, tuple("abcd"[:inputs]), tuple("yz"[:outputs]), header)


def launch(
    text: Kernel,
    arrays: Sequence[Any],
    outputs: Sequence[Output],
    *,
    grid: tuple[int, int, int] | int,
    threadgroup: tuple[int, int, int] | int = 32,
    template: Mapping[str, Any] | None = None,
    init_value: float | None = None,
) -> list[np.ndarray]:
    """One launch, in the runner that is in use; bfloat16 comes back as float32."""
    found = text(
        arrays,
        grid=(grid, 1, 1) if isinstance(grid, int) else grid,
        threadgroup=(threadgroup, 1, 1) if isinstance(threadgroup, int) else threadgroup,
        output_shapes=[shape for shape, _ in outputs],
        output_dtypes=[dtype for _, dtype in outputs],
        template=template,
        init_value=init_value,
    )
    return [np.array(y.astype(mx.float32) if y.dtype == mx.bfloat16 else y) for y in found]


def results(
    source: str, arrays: Sequence[Any], outputs: Sequence[Output], *, header: str = "", **how: Any
) -> list[np.ndarray]:
    """What the kernel writes, on the GPU or on the host: there in both modes, which must agree and find no fault."""
    text = kernel(source, len(arrays), len(outputs), header)
    with metal_on_cpu():
        plain = launch(text, arrays, outputs, **how)
    with metal_on_cpu(checked=True, seed=1) as host:
        checked = launch(text, arrays, outputs, **how)
    assert [str(f) for f in host.findings] == []
    for one, other in zip(plain, checked, strict=True):
        np.testing.assert_array_equal(one, other)
    return plain


def findings(
    source: str, arrays: Sequence[Any], outputs: Sequence[Output], *, header: str = "", **how: Any
) -> list[Finding]:
    """What checked mode finds."""
    text = kernel(source, len(arrays), len(outputs), header)
    with metal_on_cpu(checked=True) as host:
        launch(text, arrays, outputs, **how)
    return host.findings
