"""What must not be repeated is noticed: what Python computes, other calls, and whoever looks inside the model."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from backends import CPU, REFERENCE
from twins import Twins, load

from mlx_ferrum import blocks, ops, profile
from mlx_ferrum.batch import Batch
from mlx_ferrum.experts import observe
from mlx_ferrum.tensor import QTensor

Run = Callable[[Batch], Any]


@pytest.fixture(autouse=True)
def native() -> Iterator[None]:
    """The cpu backend, in use."""
    with CPU.in_use():
        yield


def stack_of(model: Any) -> QTensor:
    """Two experts over hidden states."""
    drawn = np.random.default_rng(1).normal(size=(2, 8, model.args.hidden_size)).astype(np.float32)
    return QTensor(blocks.F32, drawn.shape, drawn.view(np.uint8).reshape(-1))


def between(model: Any) -> Run:
    return lambda batch: model.scores(model.body(batch) * np.float32(2))


def at_the_end(model: Any) -> Run:
    return lambda batch: model.body(batch) * np.float32(1 + batch.positions[0])


def one_of_several(model: Any) -> Run:
    def run(batch: Batch) -> Any:
        x = model.body(batch)
        return x, x[:, :3] + np.float32(1)

    return run


def at_the_start(model: Any) -> Run:
    def run(batch: Batch) -> Any:
        x = model.body.embed_tokens(batch.tokens) + np.float32(batch.positions[0])
        return model.body.run(x, batch, 0, len(model.body.layers))

    return run


def as_mlx(model: Any) -> Run:
    return lambda batch: ops.to_mlx(model.body(batch))


def weights_of_the_moment(model: Any) -> Run:
    weight = mx.ones(model.args.hidden_size)
    return lambda batch: ops.rms_norm(
        model.body(batch), weight * float(1 + batch.positions[0]), 1e-6
    )


def weights_of_another_type(model: Any) -> Run:
    """They are copied for each call, and the copy is gone after it."""
    weight = mx.random.normal((model.args.hidden_size,)).astype(mx.float16)
    return lambda batch: ops.rms_norm(model.body(batch), weight, 1e-6)


def other_tokens(model: Any) -> Run:
    return lambda batch: model.body(replace(batch, tokens=batch.tokens[::-1].copy()))


def other_positions(model: Any) -> Run:
    return lambda batch: model.body(replace(batch, positions=batch.positions // 2))


def experts_by_token(model: Any) -> Run:
    stack = stack_of(model)

    def run(batch: Batch) -> Any:
        ids = (batch.tokens % 2).astype(np.int32)
        return ops.gather_matmul(model.body(batch), stack, ids[:, None])[:, 0]

    return run


PYTHON: dict[str, Callable[[Any], Run]] = {
    "between operations": between,
    "at the end": at_the_end,
    "for one of several results": one_of_several,
    "at the start": at_the_start,
    "an array of mlx": as_mlx,
    "weights of the moment": weights_of_the_moment,
    "weights of another type": weights_of_another_type,
    "other tokens": other_tokens,
    "other positions": other_positions,
    "experts by token": experts_by_token,
}


@pytest.mark.parametrize("name", PYTHON)
@pytest.mark.parametrize("held", [[3], [5, 1, 8]], ids=str)
def test_what_python_computes_is_computed_each_time(
    name: str, held: list[int], tmp_path: Path
) -> None:
    model = load(tmp_path)
    twins = Twins(model, PYTHON[name](model), block=32)
    which = twins.begin(*held)
    for token in (4, 6, 8, 5, 3, 9, 2, 7):  # of the first ones nothing depends on which it is
        twins(which, [token] * len(which))
    assert twins.calls == 8


@pytest.mark.parametrize("tokens", [(1, 2, 3, 4, 1, 2), (2, 2, 1, 1, 2, 2)], ids=str)
def test_other_calls_for_other_tokens_are_noticed(tokens: tuple[int, ...], tmp_path: Path) -> None:
    """Odd tokens take a second norm, by the first of which the two recordings differ."""
    model, taken = load(tmp_path), []
    weight = mx.ones(model.args.hidden_size)

    def run(batch: Batch) -> Any:
        x, first = model.body(batch), int(batch.tokens[0])
        taken.append(first)
        return ops.rms_norm(x, weight, 1e-6 * (1 + len(taken))) if first else x

    twins = Twins(model, run, block=32)
    which = twins.begin(4)
    found = []
    for token in tokens:
        batch = twins.sides[0].batch([(twins.texts[which[0]][0], 1)], np.array([token]))
        found.append(twins.step(batch))
        batch.advance()
    assert taken == list(tokens) and twins.calls == len(tokens)


def test_slices_and_shapes_of_results_are_no_arithmetic(tmp_path: Path) -> None:
    """A view lies where its array lies."""
    model = load(tmp_path)

    def run(batch: Batch) -> Any:
        logits = model.scores(model.body(batch))
        return logits[:, :7], logits.reshape(-1)[-3:], ops.choose(logits)[0]

    twins = Twins(model, run, block=32)
    which = twins.begin(4, 2)
    for _ in range(8):
        twins(which)
    assert twins.calls <= 4


# -- whoever looks inside ----------------------------------------------------------------------


def settled(model: Any, run: Run | None = None) -> tuple[Twins, list[int]]:
    """Sequences whose steps are repeated."""
    twins = Twins(model, run, block=32)
    which = twins.begin(4, 9)
    for _ in range(4):
        twins(which)
    twins.calls = 0
    twins(which)
    assert twins.calls == 0
    return twins, which


def test_stages_are_timed_in_every_step(tmp_path: Path) -> None:
    twins, which = settled(load(tmp_path))
    with profile.Profile() as timed:
        for _ in range(3):
            twins(which)
    assert twins.calls == 3 and timed.stages.keys() == {"attention", "mlp", "head"}
    twins(which)
    assert twins.calls == 3


def test_products_are_observed_in_every_step(tmp_path: Path) -> None:
    """By an observer that comes when steps are recorded already."""
    twins, which = settled(load(tmp_path))
    seen: list[Any] = []
    with ops.observed(lambda x, ws, ids: seen.append(x.shape)):
        for _ in range(3):
            twins(which)
    assert twins.calls == 3
    assert len(seen) == 2 * 3 * (4 * 3 + 1), (
        "of both twins: four products of three layers, and the head"
    )
    twins(which)
    assert twins.calls == 3


def test_other_tensors_are_used_in_every_step(tmp_path: Path) -> None:
    model = load(tmp_path)
    twins, which = settled(model)
    name = model.output.weight.name
    drawn = np.zeros(model.output.weight.shape, np.float32)
    zeros = QTensor(blocks.F32, drawn.shape, drawn.view(np.uint8).reshape(-1))
    with ops.substituted({name: zeros}):
        logits, *_ = twins(which)
    assert not np.asarray(logits).any()
    logits, *_ = twins(which)
    assert np.asarray(logits).any()


def test_weights_live_as_long_as_the_step_that_reads_them(tmp_path: Path) -> None:
    model = load(tmp_path)
    twins, _ = settled(model)
    weight = weakref.ref(model.body.layers[0].mlp.down_proj.weight)
    model.body.layers = []
    gc.collect()
    assert weight() is not None
    del twins
    gc.collect()
    assert weight() is None


def test_choices_of_experts_are_observed_in_every_step(tmp_path: Path) -> None:
    model = load(tmp_path, "qwen3moe")
    twins, which = settled(model)
    with observe(model) as layers:
        for _ in range(3):
            twins(which)
    assert twins.calls == 3
    used = model.args.experts.routing.used
    assert [int(layer.counts.sum()) for layer in layers] == [2 * 3 * len(which) * used] * 2
    twins(which)
    assert twins.calls == 3


def test_an_observer_that_is_there_from_the_start(tmp_path: Path) -> None:
    model, seen = load(tmp_path), list[int]()
    with ops.observed(lambda x, ws, ids: seen.append(1)):
        twins = Twins(model, block=32)
        which = twins.begin(2)
        for _ in range(4):
            twins(which)
    assert twins.calls == 4 and seen


def test_another_backend_takes_no_recorded_step(tmp_path: Path) -> None:
    """What was recorded is native code over native arrays."""
    model = load(tmp_path)
    calls = list[str]()
    step = ops.repeated(lambda batch: calls.append(ops.backend_name()))
    twins = Twins(model, block=32)
    twins.begin(1)
    batch = twins.sides[0].batch([(twins.texts[0][0], 1)], np.array([3]))
    with REFERENCE.in_use():
        step(batch)
    assert calls == ["reference"]
