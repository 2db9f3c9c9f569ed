"""The host's model of MLX's scheduling: which launches have an order, and whether it suffices."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from metal_call import needs_host
from msl.recorder import Recorder, recording
from msl.recording import Extent, Recording, Work
from msl.schedule import APART, Limits, schedule

from mlx_ferrum.launch import Kernel

pytestmark = needs_host

SIZE = 64
INDEX = "uint i = thread_position_in_grid.x; "
# The write hides behind a const pointer; y tells others that it is done.
WRITE = Kernel(
    "write",
    INDEX + "((device float*)pool)[i] = pool[i] * 2 + x[i]; y[i] = x[i] + 1;",
    ("pool", "x"),
    ("y",),
    writes=("pool",),
)
READ = Kernel("read", INDEX + "y[i] = pool[i] + x[i];", ("pool", "x"), ("y",))
ADD = Kernel("add", INDEX + "y[i] = a[i] + b[i];", ("a", "b"), ("y",))


def run(kernel: Kernel, *arrays: mx.array, init_value: float | None = None) -> mx.array:
    """A launch of a thread for each of SIZE numbers."""
    return kernel(
        arrays,
        grid=(SIZE, 1, 1),
        threadgroup=(32, 1, 1),
        output_shapes=[(SIZE,)],
        output_dtypes=[mx.float32],
        init_value=init_value,
    )[0]


def numbers(count: int) -> list[mx.array]:
    made = [mx.random.normal((SIZE,), key=mx.random.key(i)) for i in range(count)]
    mx.eval(made)
    return made


def found(recorder: Recorder, limits: Limits = APART) -> list[tuple[str, str]]:
    """The names of all pairs that conflict."""
    return [(c.earlier, c.later) for c in schedule(recorder.recording, limits).conflicts()]


def step(pool: mx.array, x: mx.array) -> mx.array:
    """Append, then attend."""
    return run(READ, pool, run(WRITE, pool, x))


@pytest.mark.parametrize("limits", [APART, Limits()], ids=["apart", "together"])
def test_reader_binds_what_the_writer_made(limits: Limits) -> None:
    pool, x = numbers(2)
    before = np.array(pool)
    with recording() as recorder:
        y = step(pool, x)
    assert found(recorder, limits) == []
    after = before * 2 + np.array(x)
    np.testing.assert_allclose(np.array(pool), after, rtol=1e-6)
    np.testing.assert_allclose(np.array(y), after + np.array(x) + 1, rtol=1e-6)


@pytest.mark.parametrize("limits", [APART, Limits()], ids=["apart", "together"])
def test_reader_binds_nothing_of_the_writer(limits: Limits) -> None:
    pool, x = numbers(2)
    with recording() as recorder:
        run(WRITE, pool, x)
        run(READ, pool, x)
    assert found(recorder, limits) == [("write", "read")]


def test_second_step_without_a_path() -> None:
    pool, x, other = numbers(3)
    with recording() as recorder:
        step(pool, x)
        step(pool, other)
    # The last reader, too: it waits for the second writer only.
    unordered = [("write", "write"), ("read", "write"), ("write", "read")]
    assert found(recorder) == unordered
    # Together, one barrier stands before each reader, and the second writer runs with the first reader.
    assert found(recorder, Limits()) == [("read", "write")]


@pytest.mark.parametrize("removed", [None, 0, 1, 2])
def test_chain_of_outputs(removed: int | None) -> None:
    """Each step begins with what the last one made: without any one of these links, a pair has no order."""
    pool, x = numbers(2)
    with recording() as recorder:
        step(pool, step(pool, x))
    works = recorder.recording.works
    if removed is not None:
        (link,) = works[removed].outputs
        works[removed + 1] = works[removed + 1].without(link)
    limits = (APART, Limits(2), Limits())
    conflicts = [schedule(Recording([*works]), limit).conflicts() for limit in limits]
    assert [bool(c) for c in conflicts] == [removed is not None] * 3


def test_links_through_operations_of_mlx() -> None:
    pool, x = numbers(2)
    with recording() as recorder:
        y = step(pool, x)
        z = step(pool, mx.exp(y.reshape(8, 8)).reshape(-1))
        step(pool, z.reshape(8, 8).T.reshape(-1))
    names = [work.name for work in recorder.recording.works]
    assert names == ["write", "read", "Exp", "write", "read", "Reshape", "write", "read"]
    assert found(recorder) == []


def test_an_operation_of_mlx_reads_the_pool() -> None:
    pool, x = numbers(2)
    with recording() as recorder:
        y = run(WRITE, pool, x)
        mx.async_eval(pool[3:9] + 1)
        mx.async_eval(pool[3:9] + y[3:9])
    assert found(recorder) == [("write", "Add")]
    assert schedule(recorder.recording).conflicts()[0].numbers == (0, 1)


def test_host_waits() -> None:
    pool, x, other = numbers(3)
    with recording() as recorder:
        mx.eval(step(pool, x))
        step(pool, other)
    assert found(recorder) == []
    assert schedule(recorder.recording).waits == 1


def test_evaluation_later_is_no_wait() -> None:
    pool, x, other = numbers(3)
    with recording() as recorder:
        mx.async_eval(step(pool, x))
        step(pool, other)
    assert ("read", "write") in found(recorder, Limits())


def test_parts_of_a_pool() -> None:
    pool, x = mx.random.normal((2, SIZE)), numbers(1)[0]
    mx.eval(pool)
    flat = pool.reshape(-1)
    for start, expected in ((SIZE, []), (SIZE - 1, [("write", "read")])):
        with recording() as recorder:
            run(WRITE, pool[:1], x)
            run(READ, flat[start : start + SIZE], x)
        assert found(recorder) == expected
        assert [work.name for work in recorder.recording.works] == ["write", "read"]


def test_what_is_written_is_contiguous() -> None:
    pool, x = mx.random.normal((SIZE, 2)), numbers(1)[0]
    with (
        recording(),
        pytest.raises(ValueError, match=r"pool .* is written in place, expected a contiguous"),
    ):
        run(WRITE, pool[:, 0], x)


A, B = Extent(1024, 2048), Extent(2048, 3072)  # one begins where the other ends
PAIRS: dict[str, tuple[Work, Work, int]] = {  # and the barriers between them
    "outputs that are donated": (Work("a", (A,), (B,)), Work("b", (), (A,)), 1),
    "the same output": (Work("a", (), (A,)), Work("b", (), (A,)), 1),
    "a part of an output": (Work("a", (), (A,)), Work("b", (Extent(1500, 1600),), (B,)), 1),
    "the same input": (Work("a", (A,), ()), Work("b", (A,), (B,)), 0),
    "neighbours": (Work("a", (), (A,)), Work("b", (B,), ()), 0),
}


@pytest.mark.parametrize("name", PAIRS)
def test_barriers(name: str) -> None:
    first, second, barriers = PAIRS[name]
    made = schedule(Recording([first, second]))
    assert (made.barriers, made.before) == (barriers, [0, barriers])
    assert made.conflicts() == []


def test_two_that_only_write() -> None:
    first, second = Work("a", (), (), (A,)), Work("b", (), (), (A,))
    (conflict,) = schedule(Recording([first, second])).conflicts()
    assert str(conflict) == "a (0) and b (1) use the same memory in no order"


def encoded(count: int, limits: Limits) -> list[int]:
    """Barriers, fences and command buffers of a chain of launches that MLX sees."""
    x, y = numbers(2)
    with recording() as recorder:
        for _ in range(count):
            y = run(ADD, x, y)
    made = schedule(recorder.recording, limits)
    assert made.conflicts() == []
    return [made.barriers, made.fences, made.commits]


def test_commits_by_operations() -> None:
    assert encoded(7, Limits()) == [6, 0, 1]
    assert encoded(7, Limits(2)) == [4, 2, 3]  # a buffer passes the limit by one
    assert encoded(7, APART) == [0, 6, 7]


def test_commits_by_elements() -> None:
    """Each buffer counts once in a command buffer, with what is bound first of it."""
    large = mx.zeros((1 << 20, 2))
    mx.eval(large)
    x = numbers(1)[0]
    with recording() as recorder:
        for _ in range(3):
            run(ADD, large, x)
    assert schedule(recorder.recording, Limits(elements=2)).commits == 1
    assert schedule(recorder.recording, Limits(elements=1)).commits == 3


def test_initial_values_and_copies_are_dispatches() -> None:
    x = mx.random.normal((SIZE, 2))
    with recording() as recorder:
        run(ADD, x[:, 0], x[:, 1], init_value=0)
    assert [work.name for work in recorder.recording.works][-4:] == ["copy", "copy", "fill", "add"]
    made = schedule(recorder.recording, APART)
    assert made.conflicts() == [] and made.commits == len(made.works) - 3
