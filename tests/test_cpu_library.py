"""Which library is used: a built one, a prebuilt one, CXX's; what an interrupted build leaves; whether structs fit."""

from __future__ import annotations

import ctypes
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from tiny_kernels import TINY, answer, files, script, source

from mlx_ferrum.kernels.cpu import build, calls, levels, native
from mlx_ferrum.kernels.quantize import native as quantize

__all__ = ["source"]  # a fixture
BUILD = """
import signal, sys
from pathlib import Path
from mlx_ferrum.kernels.cpu import build
signal.signal(signal.SIGINT, signal.default_int_handler)
build.HERE = Path(sys.argv[1])
print(build.library())
"""


def wrapper(path: Path, log: Path) -> Path:
    """A compiler that writes down its arguments and hands over to the real one."""
    return script(path, f'echo "$@" >> {log}\nexec {build.find_compiler()[0]} "$@"')


# -- without a compiler, and with CXX -------------------------------------------------------------


@pytest.mark.parametrize("set_too", ["", "c++ -g"])
def test_a_built_library_needs_no_compiler(
    source: Path, set_too: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", set_too)
    path = build.library()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build.library() == path
    source.write_text(TINY % 43)
    with pytest.raises(build.BuildError, match=r"no C\+\+ compiler"):
        build.library()


def test_cxx_is_the_compiler(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = build.library()
    log = tmp_path / "log"
    compiler = wrapper(tmp_path / "my tools" / "cxx", log)
    monkeypatch.setenv("CXX", f"'{compiler}' -DFIRST -DSECOND")
    path = build.library()
    assert path != before
    lines = log.read_text().splitlines()
    assert len(lines) == 2 and all(line.startswith("-DFIRST -DSECOND ") for line in lines)
    assert build.library() == path and log.read_text().splitlines() == lines
    monkeypatch.delenv("CXX")
    assert build.library() in (before, path)


@pytest.mark.parametrize(
    ("cxx", "said"),
    [
        ("nonesuch++ -O2", r"CXX is 'nonesuch\+\+', which is not found"),
        ("'c++ -O2", r"CXX is .*: No closing quotation"),
    ],
)
def test_a_bad_cxx_is_told(
    source: Path, cxx: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", cxx)
    with pytest.raises(build.BuildError, match=said):
        build.library()


# -- interrupted builds ---------------------------------------------------------------------------


def start_endless_build(source: Path, tmp_path: Path) -> tuple[subprocess.Popen[str], int]:
    """A build whose compiler starts a program that never ends, as compilers do; and that program's id."""
    started = tmp_path / "started"
    compiler = script(
        tmp_path / "bin" / "endless", f"sleep 1000 &\necho $! > {started}.part; mv {started}.part {started}; wait"
    )  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(source.parent)],
        env={**os.environ, "CXX": str(compiler)},
        stderr=subprocess.PIPE,
        text=True,
    )
    while not started.exists():
        assert process.poll() is None
        time.sleep(0.02)
    return process, int(started.read_text())


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
def test_ctrl_c_ends_the_compilers_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    process, child = start_endless_build(source, tmp_path)
    assert is_alive(child)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in error
    assert not is_alive(child)
    folder = tmp_path / "cache" / "mlx_ferrum" / "kernels"
    assert folder.is_dir() and list(folder.iterdir()) == []


def test_what_a_killed_build_left_is_removed_by_the_next(source: Path, tmp_path: Path) -> None:
    process, child = start_endless_build(source, tmp_path)
    other, _ = start_endless_build(source, tmp_path / "temporary")
    process.kill()
    process.communicate()
    folder = tmp_path / "cache" / "mlx_ferrum" / "kernels"
    assert len(list(folder.glob("build-*"))) == 2
    path = build.library()
    assert len(list(folder.glob("build-*"))) == 1, "the other build goes on"
    other.send_signal(signal.SIGINT)
    other.communicate(timeout=30)
    os.kill(child, signal.SIGKILL)
    assert files(folder) == [path.name] and list(folder.glob("build-*")) == []


# -- progress -------------------------------------------------------------------------------------


def test_a_terminal_gets_a_bar(source: Path) -> None:
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 120, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(source.parent)], stdout=subprocess.DEVNULL, stderr=terminal
    )  # fmt: skip
    os.close(terminal)
    shown = b""
    try:
        while part := os.read(main, 4096):
            shown += part
    except OSError:  # Linux says so when the other side is closed
        pass
    os.close(main)
    assert process.wait() == 0
    assert b"compiling CPU kernels" in shown and b"2/2" in shown


# -- prebuilt libraries ---------------------------------------------------------------------------


@pytest.fixture
def prebuilt(source: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Libraries as a wheel carries them, for a processor that has AVX2 and AVX-512; no compiler."""
    folder = source.parent / "prebuilt"
    folder.mkdir()
    paths = {}
    for level in build.PREBUILT:
        paths[level] = folder / build.prebuilt_name(level)
        build.compile_to(paths[level], build.find_compiler(), build.flags("portable"))
    assert files(folder) == sorted(path.name for path in paths.values())
    set_processor(monkeypatch, *levels.LEVELS["avx512-vnni"][1])
    monkeypatch.setenv("PATH", str(folder))
    return paths


def set_processor(monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    monkeypatch.setattr(levels, "processor", lambda: f"flags : {' '.join(flags)}")


def test_the_best_prebuilt_library_is_used(
    prebuilt: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = build.library()
    assert path == prebuilt["avx512-vnni"] == build.library("avx512-vnni")
    assert build.is_prebuilt(path) and build.level_of(path) == "avx512-vnni"
    assert answer(path) == 42
    assert not (tmp_path / "cache").exists()
    set_processor(monkeypatch, *levels.LEVELS["avx2"][1], "avx512f")
    assert build.library() == prebuilt["avx2"]


@pytest.mark.parametrize("missing", levels.LEVELS["avx2"][1])
def test_a_processor_without_a_flag_gets_no_prebuilt_library(
    prebuilt: dict[str, Path], missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_processor(monkeypatch, *(set(levels.LEVELS["avx512-vnni"][1]) - {missing}))
    with pytest.raises(build.BuildError, match=r"no C\+\+ compiler"):
        build.library()


@pytest.mark.parametrize("change", ["source", "header", "extra", "level"])
def test_a_prebuilt_library_of_something_else_is_not_used(
    prebuilt: dict[str, Path], source: Path, change: str
) -> None:
    if change == "source":
        source.write_text(TINY % 43)
    elif change == "header":
        (source.parent / "tiny.h").write_text("//")
    with pytest.raises(build.BuildError, match=r"no C\+\+ compiler"):
        build.library(
            "portable" if change == "level" else "native",
            extra=("-g",) if change == "extra" else (),
        )


def test_a_checkout_has_no_prebuilt_libraries() -> None:
    assert not (build.HERE / "prebuilt").exists()
    assert not build.is_prebuilt(build.library())


# -- another folder of sources ---------------------------------------------------------------------


@pytest.fixture
def other(source: Path) -> Path:
    """A folder beside the kernels' with a source that includes one of their headers."""
    folder = source.parent.parent / "quantize"
    folder.mkdir()
    (folder / "more.cpp").write_text('#include "../cpu/tiny.h"\n' + TINY % 7)
    return folder


def test_another_folder_has_a_library_of_its_own(
    source: Path, other: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = build.library(folder=other)
    assert "compiling quantizers with" in capsys.readouterr().err
    assert path.name.startswith("quantize-native-") and path.parent == build.library().parent
    assert (answer(path), answer(build.library())) == (7, 42)
    assert build.library(folder=other) == path
    (source.parent / "tiny.h").write_text("// a header that it includes")
    assert build.library(folder=other) != path


def test_another_folder_has_prebuilt_libraries_of_its_own(
    prebuilt: dict[str, Path], other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(build.BuildError, match=r"no C\+\+ compiler"):
        build.library(folder=other)
    path = other / "prebuilt" / build.prebuilt_name("avx2", other)
    path.parent.mkdir()
    monkeypatch.undo()
    build.compile_to(path, build.find_compiler(), build.flags("portable"), folder=other)
    assert answer(path) == 7


# -- structs --------------------------------------------------------------------------------------


def test_structs_are_made_from_what_the_library_says() -> None:
    found = calls.structs(native.library().ferrum_layout().decode())
    assert list(found)[:2] == ["Weight", "Source"]
    assert {"Append", "Attention", "Choose", "Matmuls", "GatherDown"} <= found.keys()
    fields = dict(found["Weight"]._fields_)
    assert fields["data"] is ctypes.c_void_p and ctypes.sizeof(found["Weight"]) == 56
    named = quantize._library("native")[1]
    assert (named.__name__, named.limit.size) == ("Quantize", 4)


LAYOUT = """Few s 0 24
Few.first p 0 8
Few.count i 8 4
Few.scale f 12 4
Few.rows i 16 8
"""


def test_a_description_becomes_a_struct() -> None:
    (few,) = calls.structs(LAYOUT).values()
    assert [(name, getattr(few, name).offset) for name, _ in few._fields_] == [
        *(("first", 0), ("count", 8), ("scale", 12), ("rows", 16))
    ]
    made = few(first=None, count=-1, scale=0.5, rows=1 << 40)
    assert bytes(made) == struct.pack("=qifq", 0, -1, 0.5, 1 << 40)


@pytest.mark.parametrize(
    ("line", "wrong", "said"),
    [
        ("Few.count i 8 4", "Few.count i 12 4", r"struct Few: laid out as .*\(8, 4\).*, expected .*\(12, 4\)"),
        ("Few s 0 24", "Few s 0 32", "struct Few"),
        ("Few.scale f 12 4", "Few.scale f 12 8", "field scale: no type of kind 'f' and 8 bytes"),
        ("Few.count i 8 4", "Few.count i 8 2", "field count: no type of kind 'i' and 2 bytes"),
        ("Few.count i 8 4", "Few.count u 8 4", "field count: no type of kind 'u' and 4 bytes"),
        ("Few.rows i 16 8\n", "", "struct Few: laid out as .*, expected"),
    ],
)  # fmt: skip
def test_a_wrong_description_is_refused_by_name(
    line: str, wrong: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when a library is loaded that says so."""
    text = LAYOUT.replace(line, wrong)
    with pytest.raises(ValueError, match=said):
        calls.structs(text)
    right = calls.structs
    monkeypatch.setattr(calls, "structs", lambda _: right(text))
    with pytest.raises(build.BuildError, match=f"CPU kernels cannot be loaded: {said}"):
        native._load.__wrapped__("native")


def test_calls_take_all_fields_of_their_struct() -> None:
    native.choose("native")
    with pytest.raises(AssertionError, match="Gelu: found"):
        native.run("Gelu", x=None, out=None)
    with pytest.raises(KeyError, match="Nonesuch"):
        native.run("Nonesuch")
    assert native.library().ferrum_run(None, 0) == native.DONE
