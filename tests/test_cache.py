"""Caches: chunks, windows, trims and files give what one pass over everything gives."""

import itertools
import json

import mlx.core as mx
import numpy as np
import pytest
from backends import BACKENDS

from mlx_ferrum import cache, ops
from mlx_ferrum.cache import SLACK, STEP, KVCache, WindowCache, check_caches

HEADS, GROUPS, SIZE = 4, 2, 8


@pytest.fixture(autouse=True)
def each_backend(backend):
    """Every test here, on every backend: what caches hold is what the backend makes."""
    return backend


class Owner:
    """Stands for a model of one full and one sliding layer."""

    fingerprint = "a model"

    def make_cache(self):
        return [KVCache(), WindowCache(5)]


def random_qkv(length: int, seed: int) -> list[np.ndarray]:
    """Numbers that half precision holds too, in which keys and values are kept."""
    rng = np.random.default_rng(seed)
    sizes = (HEADS, GROUPS, GROUPS)
    drawn = [rng.normal(size=(1, n, length, SIZE)) for n in sizes]
    return [a.astype(np.float16).astype(np.float32) for a in drawn]


def activation(x: np.ndarray):
    """As the backend in use makes it."""
    return x if ops.backend_name() == "cpu" else mx.array(x)


def run(held, qkv, cuts) -> np.ndarray:
    """Feed positions to a cache in chunks that end at `cuts`."""
    out = []
    for start, stop in itertools.pairwise(cuts):
        q, *new = (a[:, :, start:stop] for a in qkv)
        new = activation(np.stack(new).astype(np.float16))
        out.append(np.asarray(held.attend(activation(q), new, scale=0.4)))
    return np.concatenate(out, axis=2)


def close(found, wanted) -> bool:
    """As exact as the backend in use is."""
    backend = next(b for b in BACKENDS if b.name == ops.backend_name())
    return np.allclose(found, wanted, rtol=0, atol=backend.attention)


def whole(qkv, window=None) -> np.ndarray:
    return np.asarray(ops.attend(*map(activation, qkv), scale=0.4, window=window))


CUTS = [[0, 40], [0, 1, 2, 3, 40], [0, *range(17, 41)], [0, 30, 31, 40]]


@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_chunks_equal_one_pass(cuts):
    qkv = random_qkv(40, seed=1)
    assert close(run(KVCache(), qkv, cuts), whole(qkv))


@pytest.mark.parametrize("window", [1, 2, 5, 64])
@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_window_chunks_equal_one_pass(cuts, window):
    qkv = random_qkv(40, seed=2)
    assert close(run(WindowCache(window), qkv, cuts), whole(qkv, window))


@pytest.mark.parametrize("size", [5, 11])
@pytest.mark.parametrize("make", [KVCache, lambda: WindowCache(6)], ids=["full", "window"])
def test_values_of_another_size_than_keys(make, size):
    q, k, _ = random_qkv(20, seed=9)
    v = np.resize(k[::-1], (*k.shape[:3], size))
    new = np.zeros((2, *k.shape[:3], max(size, SIZE)), np.float16)
    new[0, ..., :SIZE], new[1, ..., :size] = k, v
    held = make()
    out = [
        np.asarray(held.attend(activation(q[:, :, a:b]), activation(new[:, :, :, a:b]), scale=0.4))
        for a, b in ((0, 9), (9, 10), (10, 20))
    ]
    found = np.concatenate(out, axis=2)[..., :size]
    assert close(found, whole((q, k, v), getattr(held, "window", None)))


@pytest.fixture
def small_steps(monkeypatch):
    """Storage that is cut often."""
    monkeypatch.setattr(cache, "STEP", 8)
    monkeypatch.setattr(cache, "SLACK", 12)


@pytest.mark.parametrize("piece", [1, 3, 20])
def test_window_storage_stays_bounded(piece, small_steps):
    length, window = 150, 10
    held = WindowCache(window)
    qkv = random_qkv(length, seed=3)
    out = []
    for start in range(0, length, piece):
        out.append(run(held, qkv, [start, min(start + piece, length)]))
        positions = held.nbytes // (2 * GROUPS * SIZE * 2)  # of two bytes
        assert positions <= window + 12 + 2 * 8 + (piece if piece > 8 else 0)
    assert close(np.concatenate(out, axis=2), whole(qkv, window))
    assert held.offset == length


@pytest.mark.parametrize("piece", [1, 3, 20])
@pytest.mark.parametrize("saved", [False, True])
def test_a_window_goes_back_by_the_slack_at_any_time(piece, saved, small_steps):
    """And what follows is what one pass gives; a saved cache goes back as well."""
    length, window = 80, 10
    qkv, other = random_qkv(length, seed=3), random_qkv(length, seed=4)
    held = WindowCache(window)
    for end in range(piece, length, piece):
        run(held, qkv, [end - piece, end])
        back = min(12, end)
        again = WindowCache(window)
        if saved:
            again.restore([mx.array(a) for a in held.state], held.offset)
        else:
            again.first, again.offset, again.stored = (
                held.first,
                end,
                activation(np.array(held.stored)),
            )
        assert again.trim(back), end
        joined = [
            np.concatenate([a[:, :, : end - back], b[:, :, end - back :]], axis=2)
            for a, b in zip(qkv, other, strict=True)
        ]
        found = run(again, joined, [end - back, length])
        assert close(found, whole(joined, window)[:, :, end - back :]), end


def test_storage_grows_past_a_step():
    qkv = random_qkv(2 * STEP + 3, seed=4)
    held = KVCache()
    cuts = [0, STEP - 1, STEP, STEP + 1, 2 * STEP + 3]
    assert close(run(held, qkv, cuts), whole(qkv))
    assert held.state[0].shape == (2, 1, GROUPS, 2 * STEP + 3, SIZE)


@pytest.mark.parametrize("make", [KVCache, lambda: WindowCache(6)], ids=["full", "window"])
def test_trim_then_continue(make):
    qkv, other = random_qkv(30, seed=5), random_qkv(30, seed=6)
    held = make()
    run(held, qkv, [0, 10, *range(11, 21)])
    assert held.trim(4) and held.offset == 16
    joined = tuple(
        np.concatenate([a[:, :, :16], b[:, :, 16:]], axis=2)
        for a, b in zip(qkv, other, strict=True)
    )
    found = run(held, joined, [16, 30])
    assert close(found, whole(joined, getattr(held, "window", None))[:, :, 16:])


def test_what_cannot_be_trimmed_is_refused():
    full, sliding = KVCache(), WindowCache(4)
    length = SLACK + 2 * STEP
    qkv = random_qkv(length, seed=7)
    for held in (full, sliding):
        run(held, qkv, list(range(0, length + 1, 8)))
        assert not held.trim(length + 1) and not held.trim(-1)
        assert held.offset == length
    assert full.trim(length) and full.offset == 0
    assert not sliding.trim(length - 1), "the window before it is gone"
    assert sliding.offset == length


def test_caches_of_another_model_are_refused():
    owner = Owner()
    check_caches(owner.make_cache(), owner)
    out_of_step, _ = filled()
    out_of_step[1].trim(1)
    for wrong, message in (
        (KVCache(), "the cache is a KVCache, expected the list"),
        ([], "the cache has 0 layers, the model 2"),
        ([KVCache(), KVCache()], "cache 1 is a KVCache, expected a WindowCache of 5 positions"),
        ([KVCache(), WindowCache(6)], "cache 1 is a WindowCache of 6 positions, expected a Win"),
        (out_of_step, r"hold \[19, 20\] positions, expected one number"),
    ):
        with pytest.raises(ValueError, match=message):
            check_caches(wrong, owner)


@pytest.mark.parametrize("make", [KVCache, lambda: WindowCache(6)], ids=["full", "window"])
def test_keys_of_another_size_are_refused(make):
    held = make()
    run(held, random_qkv(4, seed=1), [0, 4])
    new = activation(np.zeros((2, 1, GROUPS + 1, 1, SIZE), np.float16))
    q = activation(np.zeros((1, HEADS, 1, SIZE), np.float32))
    message = r"holds \(sequences, heads, width\) \(1, 2, 8\), expected \(1, 3, 8\)"
    with pytest.raises(ValueError, match=message):
        held.attend(q, new, scale=0.4)
    assert held.offset == 4


def filled(length: int = 20):
    qkv = random_qkv(length + 5, seed=8)
    caches = Owner().make_cache()
    for held in caches:
        run(held, qkv, [0, 7, length])
    return caches, qkv


@pytest.mark.parametrize("length", [20, 3, 1])
def test_saved_caches_continue(length, tmp_path):
    caches, qkv = filled(max(length, 8))
    length = caches[0].offset
    path = tmp_path / "saved.cache"
    cache.save(path, caches, Owner(), list(range(length)))
    assert [p.name for p in tmp_path.iterdir()] == ["saved.cache"]
    loaded, tokens = cache.load(path, Owner())
    assert tokens == list(range(length))
    for held, fresh, window in zip(caches, loaded, (None, 5), strict=True):
        assert fresh.offset == held.offset
        found = run(fresh, qkv, [length, length + 5])
        assert close(found, whole(qkv, window)[:, :, length : length + 5])


def test_empty_caches_can_be_saved(tmp_path):
    cache.save(tmp_path / "c", Owner().make_cache(), Owner(), [])
    loaded, tokens = cache.load(tmp_path / "c", Owner())
    assert tokens == [] and [held.offset for held in loaded] == [0, 0]


def test_another_model_is_refused(tmp_path):
    caches, _ = filled()
    cache.save(tmp_path / "c", caches, Owner(), list(range(20)))
    other = Owner()
    other.fingerprint = "another"
    with pytest.raises(
        ValueError, match="not a cache of this model: model is 'a model', expected 'another'"
    ):
        cache.load(tmp_path / "c", other)


def test_tokens_must_match(tmp_path):
    caches, _ = filled()
    with pytest.raises(ValueError, match="cache 0 holds 20 positions, expected 3"):
        cache.save(tmp_path / "c", caches, Owner(), [1, 2, 3])
    assert not list(tmp_path.iterdir())


def test_bad_files_are_refused(tmp_path):
    caches, _ = filled()
    path = tmp_path / "c"
    cache.save(path, caches, Owner(), list(range(20)))
    good = path.read_bytes()
    with pytest.raises(FileNotFoundError):
        cache.load(tmp_path / "none", Owner())
    rng = np.random.default_rng(9)
    for cut in [0, 1, 8, 9, *rng.integers(10, len(good) - 1, 30).tolist()]:
        path.write_bytes(good[:cut])
        with pytest.raises(ValueError, match="c: "):
            cache.load(path, Owner())


@pytest.mark.parametrize("drop", ["tokens", "0", "1"])
def test_missing_arrays_are_refused(drop, tmp_path):
    caches, _ = filled()
    arrays = {"tokens": mx.arange(20, dtype=mx.int32)}
    arrays |= {str(i): mx.array(held.state[0]) for i, held in enumerate(caches)}
    del arrays[drop]
    kinds = json.dumps(["KVCache", "WindowCache"])
    metadata = {"format": cache.FORMAT, "model": "a model", "kinds": kinds}
    path = tmp_path / "c.safetensors"
    mx.save_safetensors(str(path), arrays, metadata)
    with pytest.raises(ValueError, match=r"tokens is missing|expected keys and values of"):
        cache.load(path, Owner())
