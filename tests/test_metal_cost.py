"""What bench/metal_cost.py counts and estimates, and what matvec may cost."""

from __future__ import annotations

import math
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from metal_call import needs_host

from mlx_ferrum import blocks
from mlx_ferrum.backends.metal.shapes import rows_a_simdgroup

sys.path.append(str(Path(__file__).parent.parent / "bench"))
cases, cost = import_module("metal_cases"), import_module("metal_cost")
expert_cases, timed = import_module("metal_expert_cases"), import_module("metal_kernels")
prefill_cases = import_module("metal_prefill_cases")
recurrent_cases = import_module("metal_recurrent_cases")
machines, models = import_module("metal_machines"), import_module("metal_models")

pytestmark = needs_host
SHAPE = (32, 4096)
MOST_LINES = 1.25
# Blocks of 84 and 110 bytes: the four of a row that a step takes are a short stretch that starts anywhere in a line.
MORE_LINES = {"Q2_K": 1.35, "Q3_K": 1.28}
# Arithmetic instructions a weight of llama.cpp's kernel_mul_mv_q4_K_f32 and _q6_K_f32, counted in this way.
LLAMA_CPP = {"Q4_K": 5.10, "Q6_K": 7.56}


@pytest.mark.parametrize("block", blocks.SUPPORTED, ids=lambda b: b.name)
@pytest.mark.parametrize("batch", [1, 4])
def test_matvec_reads_weights_once_and_in_whole_lines(block, batch):
    found = cases.product(block.name, SHAPE, batch).cost(None)
    assert found.read <= 1.02
    assert found.read >= (1 if block is not blocks.Q8_K else 0.89)  # whose sums of 16 go unread
    assert found.step <= MORE_LINES.get(block.name, MOST_LINES)
    if batch == 1 or block.weights == 1:
        assert found.barriers == found.threadgroup_bytes == 0
    else:  # two for each step of 1,024 weights
        assert (found.barriers, found.threadgroup_bytes) == (8, batch * 2564)


@pytest.mark.parametrize("block", LLAMA_CPP)
def test_matvec_takes_fewer_instructions_than_llama_cpp(block):
    assert cases.product(block, SHAPE, 1).cost(None).arithmetic < LLAMA_CPP[block]


def test_q4_k_is_unpacked_by_constant_shifts():
    with cases.counting() as host:
        cases.product("Q4_K", SHAPE, 1).run()
    issued = host.counts[0].issued
    assert issued["shift"] and not issued["runtime shift"]


# Instructions a weight and row of x before activations were staged, when the cache took up to 2.6 times as long.
UNSTAGED = {"Q4_K": {2: 2.32, 8: 1.71}, "Q6_K": {2: 2.81, 8: 1.83}, "Q8_0": {2: 2.16, 8: 1.67}}


@pytest.mark.parametrize("block", UNSTAGED)
@pytest.mark.parametrize("batch", [2, 8])
def test_arithmetic_bounds_few_rows(block, batch):
    """Not the cache; and a loop's body leaves half of the instruction cache free."""
    found = cases.product(block, (4096, 4096), batch).cost(4)
    assert found.cache < 1.15 * found.cycles
    assert found.instructions <= 1.04 * UNSTAGED[block][batch]
    assert found.body <= 768
    assert found.threadgroup_bytes <= 24 << 10


def test_iq4_looks_numbers_up_where_lanes_do_not_meet():
    """A table of pairs of numbers in threadgroup memory has one look-up for two weights, but lanes meet in its banks.

    These look-ups alone would take longer than all that is done for a weight now.
    """
    found = cases.product("IQ4_NL", SHAPE, 1).cost(None)
    assert machines.conflicts(16) == 1
    assert found.cycles < machines.SCHEDULERS * machines.conflicts(256) / 2


def test_mxfp4_looks_nothing_up():
    with cases.counting() as host:
        cases.product("MXFP4", SHAPE, 1).run()
    counts = host.counts[0]
    simdgroups = counts.groups * counts.threads / 32
    assert counts.issued["constant load"] == 2 * simdgroups  # of the shapes


@pytest.mark.parametrize("batch, rows", [(1, 4096), (2, 64), (8, 64)])
def test_sums_of_a_simdgroup_are_exchanged(batch, rows):
    """n sums, n a power of 2, take n - 1 shuffles and one for each lane bit that is left."""
    with cases.counting(2) as host:
        cases.product("Q4_K", (rows, 512), batch).run()
    counts = host.counts[0]
    sums = batch * rows_a_simdgroup(rows)
    shuffles = sums - 1 + int(math.log2(32 // sums))
    assert counts.issued["shuffle"] == shuffles * counts.groups * counts.threads / 32
    assert not counts.issued["reduction"]


def test_tiles_are_stored_as_vectors():
    """64 x 64 floats by four simdgroups: eight stores of four a lane, three more each where rows end."""
    for rows, stores in [(64, 4 * 8), (63, 2 * 8 + 2 * (8 + 8 * 3))]:
        with cases.counting() as host:
            cases.product("Q4_K", (rows, 512), 64).run()
        assert host.counts[0].issued["device store"] == stores


@pytest.mark.parametrize("batch", [2, 128])
def test_a_sample_has_the_ratios_of_the_whole(batch):
    """Of matvec and matmul."""
    case = cases.product("Q6_K", (256, 512), batch)
    whole, part = case.cost(None), case.cost(2)
    assert part.sampled < whole.sampled == whole.groups
    for name in (
        "read",
        "flight",
        "barriers",
        "simd",
        "arithmetic",
        "instructions",
        "cycles",
        "x_bytes",
    ):
        assert getattr(part, name) == pytest.approx(getattr(whole, name), rel=1e-9), name
    for name in ("step", "access", "x_lines"):
        assert getattr(part, name) == pytest.approx(getattr(whole, name), rel=0.05), name


def test_tiles_read_weights_once_for_64_rows_of_x():
    assert cases.product("Q4_K", (64, 512), 128).cost(None).read == 2


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_bytes_of_x_for_a_weight(normed, batch):
    """16 rows of weights share a float of x, or two if there is one row of x; so with the norm's weights."""
    launch = models.Launch(
        "matmuls" if normed else "matmul", (("Q4_K", *SHAPE),) * (2 if normed else 1)
    )
    with cases.counting() as host:
        launch.run(mx.zeros((batch, launch.k)))
    (counts,) = host.counts
    read = sum(counts.reads[name].simdgroup_bytes for name in ("x", "norm") if name in counts.reads)
    weights = sum(rows * k for _, rows, k in launch.weights)
    assert read / weights == (2 if batch == 1 else batch / 4) * (1 + normed)
    everything = launch.nbytes + read
    assert everything <= cases.cache_bytes(counts) <= 1.01 * everything


def test_the_cache_bounds_where_it_takes_longest():
    chip = machines.Chip("a", 2, 1e9, bandwidth=8e9)
    launch = models.Launch("matmul", (("Q4_K", *SHAPE),))
    need = cost.Demand(cycles=8e6, cached=128e6)  # 1 ms and 2 ms
    work = [cost.Work(launch, 3, need, need)]
    assert cost.seconds(chip, work, 0, 1.0) == pytest.approx(6e-3)


def test_every_other_kernel_reads_once():
    for case in cases.others(1):
        assert 1 <= case.cost(10).read <= 1.02, case.name


def test_kernels_of_experts_read_what_is_chosen_once():
    """But the sort, which each expert does for itself."""
    seen: set[str] = set()
    for case in expert_cases.mixtures():
        kernel = case.name.split()[0]
        if kernel not in (*seen, expert_cases.SORT):
            found = case.cost(None if kernel == "gather_matmul" else 6)
            assert 0.99 <= found.read <= 1.02, case.name
        seen.add(kernel)
    assert len(seen) == 6


def test_a_tile_of_queries_reads_what_it_sees_once():
    """Four heads share a key head, so 8 positions are a tile."""
    one, three = (next(prefill_cases.prompts(rows, 0)).cost(None) for rows in (8, 20))
    assert (one.read, three.read) == (1, 0.4 + 0.8 + 1)
    assert one.step == three.step == 1
    # 16 keys in one step: 64 products; a vote, and two shuffles each for the maximum and the sum
    assert one.simd == 64 + 5


def recurrent(*batches: int) -> dict[str, Any]:
    sizes = recurrent_cases.Delta(key_heads=2, heads=4, size=128)
    return {case.name: case.cost(None) for case in recurrent_cases.recurrent(*batches, sizes=sizes)}


def test_a_state_is_read_once_in_whole_lines_however_long_the_prompt() -> None:
    costs = recurrent(1, 40)
    for case in costs.values():
        assert case.read == pytest.approx(1), case.name
        assert case.step == pytest.approx(1), case.name
    one, prompt = costs["gated_delta 1"], costs["gated_delta 40"]
    assert one.barriers == 2
    assert prompt.barriers == 40 + 5 + 4  # a row; a chunk of 8; before each but the first
    # A number takes two additions to sums, a product and a sum to change; the rest is shared by 32 rows of it.
    assert prompt.arithmetic < 5.3
    assert prompt.cache < prompt.cycles / 4
    assert prompt.threadgroup_bytes <= 12 << 10


def test_the_delta_rule_is_a_small_part_of_a_prompt() -> None:
    """Row by row, with the state in registers, beside the layer's products before its feed-forward.

    So a chunked form has little to win: for a chunk of C rows its products are 3 S² + 5/2 C S a row and head, which
    take 0.6 to 0.7 of these cycles on 8x8 matrices.
    """
    delta = recurrent_cases.SIZES
    rule = next(x for x in recurrent_cases.recurrent(512) if x.name == "gated_delta 512")
    layer = models.Launch("matmul", (("Q4_K", delta.channels + 2 * delta.values, 2048),))
    simdgroups = rule.cost(2).cycles * rule.products / 32
    assert simdgroups < 0.1 * cost.count(layer, 512, 4).cycles


@pytest.mark.parametrize(
    "mixture, measured",
    [
        ({"float": 4}, 4.12),
        ({"multiply": 1, "integer": 3}, 5.36),
        ({"multiply": 1, "float": 2}, 4.0),
        ({"multiply": 1, "convert": 1, "float": 1, "integer": 1}, 8.02),
        ({"convert": 1, "shift": 1, "integer": 2}, 8.02),
        ({"exponential": 1, "float": 3}, 5.2),
        ({"reciprocal": 1, "float": 3}, 6.16),
        ({"multiply": 3, "integer": 1}, 12.0),
        ({"reduction": 2}, 29.08),
    ],
)
def test_cycles_are_those_that_were_measured(mixture, measured):
    assert machines.cycles(mixture) == pytest.approx(measured, rel=0.07)


def test_both_ways_to_read_x_are_timed():
    with cases.counting() as host:
        ws = timed.weights(blocks.Q4_0, 64, 5000)
        rates = timed.speeds(ws, 3, runs=2)
    assert len(ws) == 3
    assert all(0 < rate.low <= rate.median <= rate.high for rate in rates.values())
    kernels = [counts.kernel for counts in host.counts]
    assert kernels.count("matvec_Q4_0") == kernels.count("staged_matvec_Q4_0") == 9


@pytest.mark.parametrize("name, size", [("Qwen3-8B", 5.028e9), ("Llama-3.1-8B", 4.921e9)])
def test_models_are_as_large_as_their_files(name, size):
    (model,) = (m for m in models.MODELS if m.name == name)
    embeddings = models.Launch("rows", (("Q4_K", model.vocab, model.dim),)).nbytes
    weights = sum(launch.nbytes * n for launch, n in models.launches(model).items())
    # less the norms, the vocabulary and other metadata
    assert weights + embeddings == pytest.approx(size, rel=2e-3)


def test_a_mixture_is_as_large_as_its_file():
    """17.2 GiB, as another system prints: 16.9 of layers, and the output."""
    (model,) = (m for m in models.MODELS if m.name == "Qwen3-30B-A3B")
    output = models.output(model)
    layers = sum(
        launch.nbytes * max(launch.experts, 1) // launch.used * n
        for launch, n in models.launches(model).items()
        if launch != output
    )
    assert layers / 2**30 == pytest.approx(16.9, abs=0.05)
    assert output.nbytes / 2**20 == pytest.approx(243.4, abs=0.05)


@pytest.mark.parametrize("name, numbers", [("Qwen3.6-35B-A3B", 35e9), ("Qwen3.6-27B", 27e9)])
def test_hybrid_models_have_the_numbers_of_their_names(name: str, numbers: float) -> None:
    (model,) = (m for m in models.MODELS if m.name == name)
    found = model.vocab * model.dim  # embeddings
    for launch, times in models.launches(model).items():
        if isinstance(launch, models.Launch):
            each = sum(rows * k for _, rows, k in launch.weights)
            found += times * max(launch.experts, 1) * each
    assert found == pytest.approx(numbers, rel=0.01)


def test_a_recurrent_layer_is_as_large_as_in_its_file() -> None:
    """MiB of the tensors of block 0 of Qwen3.6-27B in Q4_K, as llama.cpp lists them."""
    (model,) = (m for m in models.MODELS if m.name == "Qwen3.6-27B")
    layer = [x for x in models._delta(model, "Q4_K") if isinstance(x, models.Launch)]
    (qkv, z, b, a), (out,) = (launch.weights for launch in layer)
    mib = [models.Launch("rows", (weight,)).nbytes / 2**20 for weight in (qkv, z, b, a, out)]
    assert mib == pytest.approx([28.125, 16.875, 0.132, 0.132, 16.875], abs=5e-4)
    moved = sum(x.nbytes for x in models._delta(model, "Q4_K") if isinstance(x, models.StateLaunch))
    assert moved / 2**20 == pytest.approx(2 * (3 + 3 * 10240 / 2**18) + 0.15625, abs=1e-3)


def test_a_model_that_memory_bounds_is_as_fast_as_memory():
    model = models.Model("small", 8, 2048, 2048, 512, 4096, 8192)
    nbytes = sum(launch.nbytes * n for launch, n in models.launches(model).items())
    nbytes += model.cache_bytes(cost.HELD)
    for chip, speed in zip(machines.CHIPS, cost.speeds(model, 4), strict=True):
        low, high = (chip.bandwidth * share / nbytes for share in machines.SHARES)
        assert speed.low == pytest.approx(low)
        # the most bandwidth of all for a core: the cache bounds products of a norm
        least = 0.96 if chip.name in ("M1 Max", "M5 Max") else 1 - 1e-6
        assert least * high <= speed.high <= high * (1 + 1e-6)
        assert max(speed.busy, speed.cache) < 1
        assert speed.prompt > speed.low
