"""Products of tiles by Metal 4's tensor operations, on the host, which has them by their documented meaning."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from metal_call import needs_host
from msl import Host, metal_on_cpu
from test_metal_kernels import HALVES, activations, assert_product, wide
from test_ops import float64, random_tensor

from mlx_ferrum import blocks, launch
from mlx_ferrum.kernels.gather_matmul import gather_matmul
from mlx_ferrum.kernels.matmul import matmul
from mlx_ferrum.kernels.sort_pairs import sort_pairs

pytestmark = needs_host
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"
COLUMNS = pytest.mark.parametrize("columns", [16, 32, 64])


@COLUMNS
@pytest.mark.parametrize("block", [blocks.Q4_K, blocks.Q6_K], ids=lambda b: b.name)
def test_matmul(block, columns):
    for n_rows, batch in [(67, 9), (1, columns + 3), (130, 2 * columns + 1)]:
        w, x = random_tensor(block, n_rows, 512, seed=n_rows), activations(batch, 512)
        with metal_on_cpu() as host:
            found = matmul(x, w, columns=columns, tensor=True)
        assert_product(found, x, w, HALVES)
        assert all("tiles.tensor.metal" in k.text() for k in host.kernels)


def test_floats_end_anywhere_in_a_step():
    with metal_on_cpu():
        for k in (1, 31, 33, 77):
            w, x = random_tensor(blocks.F32, 70, k, seed=k), activations(33, k)
            assert_product(matmul(x, w, columns=32, tensor=True), x, w, HALVES)


def test_both_forms_add_the_same_products():
    """Bias, residual, gate and clamped numbers: what surrounds the sums is one text."""
    w, x = random_tensor(blocks.Q5_K, 67, 256, seed=3), activations(35, 256)
    x = mx.where(mx.abs(x) > 2.5, 1e6 * x, x)
    add, bias = activations(35, 67), activations(1, 67)[0]
    with metal_on_cpu():
        found, wanted = (
            matmul(x, w, bias=bias, add=add, gate=(add, "silu"), tensor=tensor)
            for tensor in (True, False)
        )
    assert np.abs(wide(found) - wide(wanted)).max() <= 1e-6 * np.abs(wide(wanted)).max()


@COLUMNS
def test_experts(columns):
    """An expert without tokens, one with more than a tile, and an id that is none."""
    rng = np.random.default_rng(columns)
    w, x = random_tensor(blocks.Q4_0, 4 * 70, 96, seed=1), activations(columns, 96)
    w.shape = (4, 70, 96)
    w.array = w.array.reshape(4, 70, -1)
    ids = rng.choice([0, 2, 3], (columns, 2), p=[0.8, 0.1, 0.1]).astype(np.int32)
    ids[1, 0] = 4
    with metal_on_cpu():
        order = sort_pairs(mx.array(ids.reshape(-1)), 4, size=columns)
        found = wide(gather_matmul(x, w, order, tensor=True)).reshape(columns, 2, 70)
    assert np.isnan(found[1, 0]).all()
    matrices = float64(w)
    for token, slot in np.ndindex(columns, 2):
        if (token, slot) != (1, 0):
            matrix, row = matrices[ids[token, slot]], wide(x)[token]
            allowed = HALVES * np.linalg.norm(row) * np.linalg.norm(matrix, axis=-1)
            assert (np.abs(found[token, slot] - matrix @ row) <= allowed).all()


@COLUMNS
def test_nothing_is_found_in_checked_mode(columns):
    w, x = random_tensor(blocks.Q4_K, 67, 256, seed=1), activations(columns + 2, 256)
    for seed in (1, 2):
        with metal_on_cpu(checked=True, seed=seed) as host:
            matmul(x, w, columns=columns, tensor=True)
        assert not host.findings, "\n".join(map(str, host.findings))


@pytest.mark.parametrize("barrier", [0, 1])
def test_each_barrier_is_needed(barrier):
    def without(kernel):
        parts = kernel.text().split(BARRIER)
        assert len(parts) == 3
        parts[barrier : barrier + 2] = ["".join(parts[barrier : barrier + 2])]
        return replace(kernel, header=BARRIER.join(parts))

    w, x = random_tensor(blocks.Q4_K, 67, 256, seed=1), activations(20, 256)
    host = Host(checked=True, seed=1, edit=without)
    with launch.use_runner(host):
        matmul(x, w, columns=32, tensor=True)
    assert host.findings


def test_both_forms_have_a_text_for_gpus_without_subnormals():
    """Files that replace others do so together."""
    with metal_on_cpu() as host:
        matmul(activations(9, 64), random_tensor(blocks.Q8_0, 8, 64, seed=1), tensor=True)
    (kernel,) = host.kernels
    for file in ("tiles.tensor.metal", "halves.flushed.metal"):
        assert f'"kernels/{file}"' in kernel.text("flushed")
