"""Each promise and each error of the pool of blocks, and what layers may declare."""

from __future__ import annotations

import sys

import pytest

from mlx_ferrum.state.kinds import KV
from mlx_ferrum.state.pool import OutOfBlocksError, Pool


def test_ids_grow_from_0_and_a_released_block_is_taken_before_a_new_one() -> None:
    pool = Pool()
    assert [pool.take() for _ in range(3)] == [0, 1, 2]
    pool.release(1)
    assert pool.take() == 1
    assert pool.take() == 3
    assert (pool.capacity, pool.free) == (4, sys.maxsize)


def test_new_blocks_are_taken_before_cached_ones_are_evicted_in_order_of_release() -> None:
    pool = Pool(3)
    first, second = pool.take(), pool.take()
    for block in (second, first):
        pool.publish(block, bytes([block]))
        pool.release(block)
    assert pool.take() == 2
    assert pool.take() == second
    assert (pool.find(bytes([second])), pool.find(bytes([first]))) == (None, first)
    assert pool.take() == first
    with pytest.raises(OutOfBlocksError, match="1 wanted, 0 of 3 free"):
        pool.take()


def test_sharing_a_cached_block_makes_it_the_most_recently_used() -> None:
    pool = Pool(2)
    for key in (b"a", b"b"):
        pool.publish(pool.take(), key)
    pool.release(0)
    pool.release(1)
    assert pool.free == 2
    pool.share(0)
    assert pool.free == 1
    pool.release(0)
    assert [pool.take(), pool.take()] == [1, 0]


@pytest.mark.parametrize(("keep", "ids"), [(0, [0, 0, 0, 0]), (2, [0, 1, 0, 1])])
def test_a_pool_without_a_size_evicts_before_it_grows_past_keep(keep: int, ids: list[int]) -> None:
    pool = Pool(keep=keep)
    taken = []
    for i in range(4):
        taken.append(pool.take())
        pool.publish(taken[-1], bytes([i]))
        pool.release(taken[-1])
    assert taken == ids


def test_a_block_counts_its_references() -> None:
    pool = Pool(1)
    block = pool.take()
    assert pool.is_mine(block)
    pool.share(block)
    assert not pool.is_mine(block)
    pool.release(block)
    assert pool.is_mine(block)
    assert pool.free == 0
    pool.release(block)
    assert pool.free == 1


def test_equal_blocks_become_one() -> None:
    pool = Pool(4)
    one, two = pool.take(), pool.take()
    assert pool.publish(one, b"k") == one
    assert pool.publish(one, b"k") == one
    assert not pool.is_mine(one)
    assert pool.publish(two, b"k") == one
    assert pool.references == [2, 0]
    assert pool.take() == two
    assert pool.is_mine(two)


@pytest.mark.parametrize("block", [-1, 0, 1, 7])
@pytest.mark.parametrize("method", ["share", "release", "is_mine"])
def test_only_held_blocks_have_references(block: int, method: str) -> None:
    pool = Pool(8)
    pool.take()
    pool.take()
    pool.release(0)
    pool.release(1)
    with pytest.raises(ValueError, match=f"block {block} has no references, expected a held block"):
        getattr(pool, method)(block)
    with pytest.raises(ValueError, match=f"block {block} has no references"):
        pool.publish(block, b"k")


def test_a_cached_block_is_not_released_again() -> None:
    pool = Pool()
    pool.publish(pool.take(), b"k")
    pool.release(0)
    with pytest.raises(ValueError, match="block 0 has no references"):
        pool.release(0)


def test_a_block_has_one_hash() -> None:
    pool = Pool()
    pool.publish(pool.take(), b"\x01")
    with pytest.raises(ValueError, match="block 0 has hash 01, expected 02 or none"):
        pool.publish(0, b"\x02")
    assert pool.find(b"\x02") is None


@pytest.mark.parametrize(
    ("size", "keep", "message"),
    [
        (0, 0, "a pool of 0 blocks, expected at least 1"),
        (None, -1, "keep is -1 with size None, expected 0, or more without a size"),
        (4, 2, "keep is 2 with size 4"),
    ],
)
def test_sizes_are_checked(size: int | None, keep: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pool(size, keep=keep)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"heads": 0}, "KV: heads is 0, expected at least 1"),
        ({"value_dim": -1}, "KV: value_dim is -1, expected at least 1"),
        ({"window": 0}, "KV: window is 0, expected at least 1"),
        ({"bits": 4}, "KV: bits is 4, expected 8 or 16"),
        ({"shares": -1}, "KV: shares is -1, expected the index of a layer"),
    ],
)
def test_declarations_are_checked(values: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KV(**{"heads": 2, "key_dim": 64, "value_dim": 64, **values})
