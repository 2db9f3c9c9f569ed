"""The backends, and the two real models of the catalog, fetched once into the user's cache folder."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from backends import BACKENDS, CPU, CUDA, FAST, LEVELS, LOWER, REFERENCE, Backend
from msl import compiler

import mlx_ferrum
from mlx_ferrum import catalog, ops
from mlx_ferrum.kernels import quantize
from mlx_ferrum.kernels.cpu import build


def pytest_sessionstart(session: pytest.Session) -> None:
    """Several processes: what all of them need is built before they start, or each would build it."""
    config = session.config
    if hasattr(config, "workerinput") or config.getoption("dist", "no") == "no":
        return
    for level in LEVELS:
        build.library(level)
        build.library(level, folder=Path(quantize.__file__).parent)
    if not mx.metal.is_available():
        compiler.runtime()
        for mode in (compiler.PLAIN, compiler.CHECKED):
            compiler.header(mode)


@pytest.fixture(scope="session", autouse=True)
def ctrl_c() -> None:
    """Ctrl-C as at a terminal; a shell starts what it puts in the background without it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def restored_backend() -> Iterator[None]:
    """A test that runs a command with --backend does not slow down the tests after it."""
    before = ops._active
    yield
    ops._active = before


def pytest_addoption(parser: pytest.Parser) -> None:
    """For a machine with an NVIDIA GPU; without one, the CPU executes the kernels, which takes longer."""
    parser.addoption(
        "--cuda",
        action="store_true",
        help="run the tests of backends on the cuda backend alone; -k cuda selects them",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The backends of the fixtures `backend` and `fast_backend`, where a test names none itself."""
    only = [CUDA] if metafunc.config.getoption("cuda") else []
    named = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    for name, usual in (("backend", BACKENDS), ("fast_backend", FAST)):
        if name in metafunc.fixturenames and not any(name in words for words in named):
            metafunc.parametrize(name, only or usual, ids=str, indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each backend in turn, in use."""
    with request.param.in_use() as backend:
        yield backend


@pytest.fixture
def fast_backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each backend that runs a real model in seconds, in use."""
    with request.param.in_use() as backend:
        yield backend


@pytest.fixture(params=[CPU, *LOWER], ids=str)
def native(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """The cpu backend in use, with each instruction set that this processor has, and with none."""
    with request.param.in_use() as backend:
        yield backend


@pytest.fixture
def reference() -> Iterator[Backend]:
    """The reference backend, in use."""
    with REFERENCE.in_use() as backend:
        yield backend


@pytest.fixture(params=[REFERENCE, CPU], ids=["lazy", "eager"])
def lazy(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether the backend in use is lazy, so that the token loop computes a step ahead."""
    with request.param.in_use():
        yield ops.is_lazy()


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct: `llama`, Q4_1, byte-level BPE, chat template."""
    return catalog.resolve("smollm2-135m")


@pytest.fixture(scope="session")
def gemma3_path() -> Path:
    """Gemma 3 270M: `gemma3`, Q4_K_M, SentencePiece, no chat template."""
    return catalog.resolve("gemma3-270m")


@pytest.fixture(scope="session")
def smollm2(smollm2_path: Path) -> tuple[Any, Any]:
    """(model, tokenizer) of SmolLM2."""
    return mlx_ferrum.load(smollm2_path)


@pytest.fixture(scope="session")
def gemma3(gemma3_path: Path) -> tuple[Any, Any]:
    """(model, tokenizer) of Gemma 3."""
    return mlx_ferrum.load(gemma3_path)


@pytest.fixture
def cpu() -> Iterator[Backend]:
    """The cpu backend, in use."""
    with CPU.in_use() as backend:
        yield backend


@pytest.fixture(scope="session")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with a chat template, for tests of the server's page."""
    import servers

    return servers.write(tmp_path_factory.mktemp("page") / "m.gguf")


@pytest.fixture(scope="module")
def scripted_page(page_file: Path) -> Iterator[tuple[str, Any]]:
    """The URL of a server whose replies come from a Script, and that."""
    import scripts

    with scripts.served(page_file) as found:
        yield found


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Chromium."""
    from browser import driven

    with driven(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """The browser, whose log is clean at the end."""
    from scripts import watched

    with watched(browser):
        yield browser
