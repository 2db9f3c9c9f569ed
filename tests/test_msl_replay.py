"""Recorded launches in other orders, and what they cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
import random_models
from backends import METAL
from metal_call import needs_host
from msl.recorder import Recorder, recording
from msl.recording import Extent, Recording, Work
from msl.replay import differences, orders
from msl.schedule import APART, Limits, counts, schedule
from test_msl_schedule import ADD, READ, SIZE, WRITE, numbers, run, step

import mlx_ferrum

pytestmark = needs_host

ORDERS = 200


def changed(recorded: Recording, limits: Limits = APART) -> set[str]:
    """The names of what some order changes."""
    return {d.name for d in differences(recorded, schedule(recorded, limits), ORDERS)}


def test_an_order_by_outputs_has_one_result() -> None:
    pool, x = numbers(2)
    with recording() as recorder:
        step(pool, step(pool, x))
    assert changed(recorder.recording) == set()


def test_a_reader_without_an_order_sees_both_states() -> None:
    pool, x = numbers(2)
    with recording() as recorder:
        run(WRITE, pool, x)
        run(READ, pool, x)
    assert changed(recorder.recording) == {"read"}
    assert changed(recorder.recording, Limits()) == {"read"}


def test_a_second_step_without_a_path_changes_the_first() -> None:
    pool, x, other = numbers(3)
    with recording() as recorder:
        step(pool, x)
        step(pool, other)
    assert "read" in changed(recorder.recording, Limits())


@pytest.mark.parametrize("removed", [0, 1, 2])
def test_each_link_is_needed(removed: int) -> None:
    pool, x = numbers(2)
    with recording() as recorder:
        step(pool, step(pool, x))
    works = recorder.recording.works
    (link,) = works[removed].outputs
    works[removed + 1] = works[removed + 1].without(link)
    assert changed(replace(recorder.recording, events=[*works]))


def test_all_kinds_of_work_again() -> None:
    """Copies, initial values, views, bfloat16, no elements, operations of MLX: in its own order all is as it was."""
    x, y = numbers(2)
    empty = mx.zeros((0,))
    with recording() as recorder:
        z = run(ADD, x.reshape(8, 8).T.astype(mx.bfloat16), y, init_value=0)
        run(ADD, z.reshape(8, 8).T, mx.exp(z), init_value=1)
        run(ADD, z[::-1], z)
        run(ADD, mx.concatenate([empty, z]), mx.broadcast_to(z[:1], z.shape))
    assert {"copy", "fill", "add", "Exp"} <= {work.name for work in recorder.recording.works}
    assert changed(recorder.recording) == set()


def test_memory_first_seen_after_a_write() -> None:
    pool, x = mx.random.normal((2, SIZE), key=mx.random.key(5)), numbers(1)[0]
    mx.eval(pool)
    flat = pool.reshape(-1)
    with recording() as recorder:
        y = run(WRITE, pool[:1], x)
        run(READ, flat[SIZE // 2 : SIZE // 2 + SIZE], y)
    assert changed(recorder.recording) == set()


def test_what_was_recorded_has_to_come_out() -> None:
    pool, x = numbers(2)
    with recording() as recorder:
        step(pool, x)
    recorder.recording.given[0][1][:] = 0
    with pytest.raises(AssertionError, match=r"write \(0\) does not give what was recorded"):
        changed(recorder.recording)


def test_arrays_of_no_elements_give_no_order() -> None:
    first = replace(ADD, name="first", source="y[0] = 1;", outputs=("y", "z"))
    x, y = numbers(2)
    how: Any = {"grid": (1, 1, 1), "threadgroup": (1, 1, 1), "output_dtypes": [mx.float32] * 2}
    with recording() as recorder:
        _, none = first([x, y], output_shapes=[(8,), (0,)], **how)
        first([none, x], output_shapes=[(8,), (0,)], **how)
    made = schedule(recorder.recording, APART)
    assert made.before == [0, 0] and made.fences == 0
    assert changed(recorder.recording) == set()


def test_orders_are_many_and_allowed() -> None:
    x, y = numbers(2)
    with recording() as recorder:
        first = run(ADD, x, y)
        run(ADD, run(ADD, x, y), first)
        run(ADD, first, y)
    made = schedule(recorder.recording, APART)
    seen = {tuple(order) for order in orders(made, ORDERS)}
    assert seen == {
        order
        for order in seen
        if sorted(order) == [0, 1, 2, 3]
        and order.index(2) > max(order.index(0), order.index(1))
        and order.index(3) > order.index(0)
    }
    assert len(seen) == 5  # all that there are


def decode(path: Path, steps: int) -> Recorder:
    """Steps of two sequences, each encoded while the one before it is in flight."""
    with METAL.in_use():
        model, _ = mlx_ferrum.load(path)
        cache = model.make_cache()
        token = mx.array([[3], [7]])
        mx.eval(token)
        with recording() as recorder:
            for _ in range(steps):
                batch = cache.batch(token)
                logits = model.head(model.body(batch))
                token = mx.argmax(logits, axis=-1).reshape(-1, 1)
                mx.async_eval(token)
                batch.advance()
    return recorder


def test_decode_steps_of_a_model(tmp_path: Path) -> None:
    """Three steps, with nothing waited for: whatever they write in place, the token chains them."""
    path = tmp_path / "m.gguf"
    sizes = random_models.Sizes(layers=2)
    random_models.write(path, arch="qwen3", seed=1, types=("Q4_K",), sizes=sizes)
    recorded = decode(path, 3).recording
    for limits in (APART, Limits()):
        made = schedule(recorded, limits)
        assert [str(c) for c in made.conflicts()] == []
        assert [str(d) for d in differences(recorded, made, ORDERS)] == []
    assert counts(recorded).waits == 0


def test_launches_texts_and_kernels() -> None:
    x, y = numbers(2)
    with recording() as recorder:
        z = run(ADD, x, y)
        run(ADD, z, y)
        run(READ, mx.exp(z), y)
    found = counts(recorder.recording)
    assert (found.launches, found.operations, found.kernels) == (3, 1, 2)
    assert (found.barriers, found.fences, found.commits, found.waits) == (2, 0, 1, 0)
    works = [work for work in recorder.recording.works if work.text]
    assert found.text == sum(work.text for work in works)
    longer = len("read") - len("add") + 2 * (len("pool") - len("a"))
    assert works[2].text - works[0].text == longer


def update(before: Callable[[mx.array], object]) -> tuple[int, int]:
    """Copies, and their bytes, of a change of 4 numbers of a pool after `before`."""
    pool, x = numbers(2)
    with recording() as recorder:
        recorder.hold(pool)
        before(pool)
        pool[4:8] = x[:4]
        mx.async_eval(pool)
    found = counts(recorder.recording)
    return found.copies, found.copied


def test_copies() -> None:
    x = numbers(1)[0]
    assert update(lambda pool: None) == (0, 0)
    assert update(lambda pool: run(READ, pool, x)) == (1, SIZE * 4)  # a launch in flight holds it
    assert update(lambda pool: mx.eval(run(READ, pool, x))) == (0, 0)
    assert update(lambda pool: run(ADD, mx.zeros((SIZE, 2))[:, 0], x)) == (1, SIZE * 4)


@pytest.mark.parametrize(("outputs", "copies"), [(1, 0), (2, 1)])
def test_a_launch_in_flight_holds_several_outputs_only(outputs: int, copies: int) -> None:
    made = tuple(Extent(1024 * i, 1024 * i + 512) for i in range(1, 4))
    launched = Work("launch", (), made[:outputs])
    updated = Work("SliceUpdate", made[:1], made[2:], updates=made[0])
    found = counts(Recording([launched, updated]))
    assert (found.copies, found.copied) == (copies, 512 * copies)
