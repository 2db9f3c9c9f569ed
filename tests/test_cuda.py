"""The kernels' text for NVIDIA GPUs: compiled by NVRTC, which needs none, and executed on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest
from cuda import CudaHost, cuda_on_cpu, machine_code
from msl import metal_on_cpu
from test_ops import random_tensor

from mlx_ferrum import blocks, launch, load, ops
from mlx_ferrum.backends import reference
from mlx_ferrum.doctor import cases, selftest
from mlx_ferrum.experts import routes
from mlx_ferrum.kernels.cuda import nvrtc, runner, upload
from mlx_ferrum.kernels.cuda.source import Key, key, source
from mlx_ferrum.launch import Kernel, Launch

ARCHITECTURES = ("sm_80", "sm_90")
ORDER = 3e-6  # of the largest: sums in another order
CLEAR = 1e-3  # a router's choice, between the logits of the last expert and of the next one

pytestmark = pytest.mark.skipif(
    mx.metal.is_available(), reason="NVRTC is installed with the tests on Linux"
)


class Compiling:
    """A runner: the host's, and each text is compiled for all architectures."""

    def __init__(self) -> None:
        self.host = CudaHost()
        self.seen: set[tuple[Kernel, Key]] = set()

    def __call__(self, kernel: Kernel, call: Launch) -> list[mx.array]:
        made = key(call)
        if (kernel, made) not in self.seen:
            self.seen.add((kernel, made))
            for architecture in ARCHITECTURES:
                assert machine_code(kernel, made, architecture).startswith(b"\x7fELF")
        return self.host(kernel, call)


@pytest.fixture(autouse=True)
def cuda_choices():
    """The cuda backend, which chooses the kernels, on the CPU."""
    before = ops._active
    with cuda_on_cpu():
        ops.use_backend("cuda")
        yield
    ops._active = before


@pytest.mark.parametrize("name", [*(b.name for b in blocks.SUPPORTED), cases.ARRAYS])
def test_every_kernel_compiles_and_computes_what_the_reference_does(name):
    results: dict[str, selftest.Result] = {}
    compiling = Compiling()
    with launch.use_runner(compiling):
        for case in dict(cases.groups())[name]:
            limit = selftest.bound("cuda", case.op)
            result = results.setdefault(case.op, selftest.Result(case.op, limit))
            selftest._judge(result, case, mx.array)
    assert [f for result in results.values() for f in result.failures] == []
    assert len(compiling.seen) >= 15


def outputs(compute: Callable[[], mx.array]) -> tuple[np.ndarray, np.ndarray]:
    """The same from the CUDA text and from Metal's."""
    with launch.use_runner(CudaHost()):
        ours = np.array(compute().astype(mx.float32))
    with metal_on_cpu():
        metals = np.array(compute().astype(mx.float32))
    return ours, metals


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "Q8_0", "MXFP4", "F16"])
@pytest.mark.parametrize("n", [1, 8, 17, 130])
def test_products_are_those_of_the_metal_text(name, n):
    rng = np.random.default_rng(n)
    w = random_tensor(blocks.by_name(name), 201, 512, seed=n)
    x = mx.array(rng.normal(size=(n, 512)).astype(np.float32))
    ours, metals = outputs(lambda: ops.matmul(x, w))
    assert np.abs(ours - metals).max() <= ORDER * np.abs(metals).max()


@pytest.mark.parametrize("tokens", [20, 60, 150], ids=["tiles of 16", "of 32", "of 64"])
def test_tiles_of_experts_are_those_of_the_metal_text(tokens):
    rng = np.random.default_rng(tokens)
    stack = random_tensor(blocks.by_name("Q5_K"), 6, 70, 256, seed=tokens)
    x = mx.array(rng.normal(size=(tokens, 256)).astype(np.float32))
    ids = mx.array(rng.integers(0, 6, (tokens, 3)).astype(np.int32))
    ours, metals = outputs(lambda: ops.gather_matmul(x, stack, ids))
    assert np.abs(ours - metals).max() <= ORDER * np.abs(metals).max()
    with mx.stream(mx.cpu):
        wanted = np.array(reference.gather_matmul(x, stack, ids))
    assert np.abs(ours - wanted).max() <= 2e-3 * np.abs(wanted).max()


def test_numbers_beyond_halves_and_not_a_number_fare_as_in_the_metal_text():
    rng = np.random.default_rng(5)
    w = random_tensor(blocks.by_name("F32"), 70, 64, seed=5)
    x = rng.normal(size=(20, 64)).astype(np.float32)
    x[1, 3], x[2, 4], x[3, 5], x[4, 6] = 1e6, -1e6, np.inf, np.nan
    ours, metals = outputs(lambda: ops.matmul(mx.array(x), w))
    assert np.array_equal(np.isnan(ours), np.isnan(metals))
    assert np.isnan(ours[4]).all()
    finite = ~np.isnan(metals)
    assert np.abs(ours - metals)[finite].max() <= ORDER * np.abs(metals[finite]).max()


def call(threads: int = 40, group: tuple[int, int, int] = (32, 1, 1), **template: object) -> Launch:
    return Launch(
        [mx.zeros((3, 5))], template, (threads, 1, 1), group, [(threads,)], [mx.float32], None
    )


WRITES = Kernel(
    "writes",
    "y[thread_position_in_grid.x] = a_shape[1] + N;",
    ("a",),
    ("y",),
    launch.Header(("prelude.metal",)),
)


def test_threads_past_the_grid_do_nothing():
    (y,) = CudaHost()(WRITES, call(N=2))
    assert y.tolist() == [7] * 40
    assert "threads_in_grid" in source(WRITES, key(call(N=2)))
    assert "threads_in_grid" not in source(WRITES, key(call(64, N=2)))


def test_text_for_all_kinds_of_template_arguments():
    text = source(WRITES, key(call(N=2, FLAG=True, T=mx.bfloat16)))
    for line in ("constexpr int N = 2;", "constexpr bool FLAG = true;", "using T = bfloat;"):
        assert line in text


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (call(N="two"), "N is an int, a bool or a dtype, found 'two'"),
        (call(group=(8, 4, 1)), r"a threadgroup of \(8, 4, 1\), expected a line"),
        (call(N=mx.complex64), "no arrays of mlx.core.complex64"),
    ],
)
def test_what_cannot_be_text_is_refused(made, message):
    with pytest.raises(ValueError, match=message):
        source(WRITES, key(made))


def test_an_error_names_the_file_and_the_line_of_the_kernel():
    header = '#line 40 "kernels/some.metal"\nMETAL_FUNC int broken() { return undeclared; }\n'
    broken = Kernel("broken", "y[0] = N;", ("a",), ("y",), header)
    text = source(broken, key(call(N=1))).replace("METAL_FUNC", "inline")
    with pytest.raises(
        nvrtc.CompileError, match=r"broken for sm_90:\nkernels/some.metal\(40\): error"
    ):
        nvrtc.compile_text(text, "sm_90", "broken")


@pytest.mark.parametrize("inputs", [0, 1])
def test_kernels_that_tell_addresses_compile_and_run(inputs):
    kernel = upload.ADDRESS if inputs else upload.ALLOCATE
    shapes, dtypes = ([(1,)], [mx.uint64]) if inputs else ([(5,), (1,)], [mx.uint32, mx.uint64])
    one = (1, 1, 1)
    made = Launch([mx.zeros(5)] * inputs, {}, one, one, shapes, dtypes, None)
    assert nvrtc.compile_text(source(kernel, key(made)), "sm_90", kernel.name)
    address = np.asarray(CudaHost()(kernel, made)[-1])
    assert address[0] % 4 == 0


def test_machine_code_is_compiled_once_and_kept(monkeypatch, tmp_path):
    compiled = []
    right = nvrtc.compile_text

    def counted(text, architecture, name):
        compiled.append(architecture)
        return right(text, architecture, name)

    monkeypatch.setattr(runner, "architecture", lambda: "sm_90")
    monkeypatch.setattr(runner, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(nvrtc, "compile_text", counted)
    plain = Kernel("plain", "y[0] = a[0] + N;", ("a",), ("y",))
    runner.machine_code.cache_clear()
    first = runner.machine_code(plain, key(call(N=1)))
    runner.machine_code.cache_clear()  # as in another process
    assert runner.machine_code(plain, key(call(N=1))) == first
    assert compiled == ["sm_90"]
    assert [path.suffix for path in tmp_path.iterdir()] == [".cubin"]
    assert runner.machine_code(plain, key(call(N=3))) != first
    runner.machine_code.cache_clear()


def test_without_nvrtc_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(nvrtc, "_paths", lambda: iter(["/nowhere/libnvrtc.so"]))
    nvrtc.library.cache_clear()
    with pytest.raises(nvrtc.CompileError, match="pip install nvidia-cuda-nvrtc"):
        nvrtc.library()
    nvrtc.library.cache_clear()


@pytest.mark.parametrize("length", [1, 40])
def test_a_mixture_of_experts_says_what_it_says_by_the_metal_text(length):
    """Up to the first token for which a router had no clear choice, and chose otherwise."""
    model, _ = load("tiny-moe")
    ids = np.random.default_rng(length).integers(0, model.args.vocab_size, length).tolist()
    ours, metals = outputs(lambda: model(mx.array([ids])))
    chosen = routes(model, ids)  # by the CUDA text
    with metal_on_cpu():
        others = routes(model, ids)
    alike = length
    for layer, other in zip(chosen, others, strict=True):
        differ = (np.sort(layer.ids) != np.sort(other.ids)).any(axis=-1)
        for token in np.flatnonzero(differ)[:1]:
            best = np.sort(layer.logits[token])[::-1]
            used = layer.ids.shape[-1]
            assert token >= alike or best[used - 1] - best[used] < CLEAR
            alike = min(alike, token)
    assert alike > length // 2
    errors = np.abs(ours - metals)[:, :alike]
    assert errors.max() <= 5e-4 * np.abs(metals).max()  # sums in another order, then halves
