"""Each Metal kernel in checked mode: no race, no access out of bounds, nothing read before it is written."""

from __future__ import annotations

import mlx.core as mx
import pytest
from msl import metal_on_cpu
from test_metal_kernels import activations
from test_ops import random_tensor

from mlx_ferrum import blocks
from mlx_ferrum.kernels.gate_up import gate_up
from mlx_ferrum.kernels.matmul import matmul
from mlx_ferrum.kernels.matvec import matvec
from mlx_ferrum.kernels.matvecs import matvecs
from mlx_ferrum.kernels.norm_matvec import norm_matvec
from mlx_ferrum.kernels.rms_norm import rms_norm
from mlx_ferrum.kernels.rows import rows

SEEDS = (1, 2, 3)


@pytest.fixture
def no_findings():
    """Evaluate a call under each seed."""

    def check(call):
        for seed in SEEDS:
            with metal_on_cpu(checked=True, seed=seed) as host:
                mx.eval(call())
            assert not host.findings, "\n".join(map(str, host.findings))

    return check


@pytest.mark.parametrize("block", blocks.SUPPORTED, ids=lambda b: b.name)
def test_decoders(no_findings, block):
    k = 3 * max(block.weights, 13)
    k -= k % block.weights
    w = random_tensor(block, 5, k, seed=1)
    no_findings(lambda: [matvec(activations(2, k), w), rows(w, mx.array([4, 0]))])
    no_findings(lambda: matmul(activations(9, k), w, columns=32))


def test_products(no_findings):
    q4, q6, f16 = (
        random_tensor(b, 7, 256, seed=b.id) for b in (blocks.Q4_K, blocks.Q6_K, blocks.F16)
    )
    x, bias, add = activations(3, 256), activations(1, 7)[0], activations(3, 7)
    no_findings(lambda: matvec(x, q4, bias=bias, add=add, rows=2))
    no_findings(lambda: matvecs(x, [q4, q6, f16], [None, bias, None], rows=2))
    no_findings(lambda: [gate_up(x, q4, q4, "silu"), gate_up(x, q4, q6, "gelu")])


@pytest.mark.parametrize("columns", [16, 32, 64])
def test_tiles(no_findings, columns):
    w = random_tensor(blocks.Q4_K, 67, 512, seed=1)
    x, add = activations(columns + 2, 512), activations(columns + 2, 67)
    no_findings(lambda: matmul(x, w, add=add, gate=(add, "silu"), columns=columns))


@pytest.mark.parametrize("n_rows", [1, 7])
def test_products_of_a_norm(no_findings, n_rows):
    q4, q6, f32 = (
        random_tensor(b, n_rows, 512, seed=b.id) for b in (blocks.Q4_K, blocks.Q6_K, blocks.F32)
    )
    x, bias, norm = activations(3, 512), activations(1, n_rows)[0], (activations(1, 512)[0], 1e-5)
    biases = [None, bias, None, bias]
    no_findings(lambda: matvecs(x, [q4, q6, f32, q4], biases, norm=norm, rows=2))
    no_findings(lambda: [gate_up(x, q4, w, "silu", norm=norm) for w in (q4, q6)])
    no_findings(lambda: [*norm_matvec(x, f32, norm), *norm_matvec(x, q4, norm, rows=2)])


@pytest.mark.parametrize("d", [6, 300, 4100])
def test_rms_norm(no_findings, d):
    x, weight = activations(3, d), activations(1, d)[0]
    no_findings(lambda: rms_norm(x, weight, 1e-5, x))
