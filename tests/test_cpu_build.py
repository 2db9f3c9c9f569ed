"""Compiling the native code: once, in a private folder, whole or not at all; and what happens where it cannot be."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from backends import LEVELS
from tiny_kernels import TINY, answer, files, script, source, use_cache

from mlx_ferrum.kernels.cpu import build, cache

__all__ = ["source"]  # a fixture
COMMAND = (sys.executable, "-m", "mlx_ferrum.backends.cpu")
FALLBACK = """
import mlx.core as mx
mx.set_default_device(mx.cpu)
from mlx_ferrum import ops
print(ops.backend_name(), ops.backend_name())
"""


def test_a_library_is_built_once(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = build.library()
    assert (
        capsys.readouterr().err
        == f"compiling CPU kernels with {' '.join(build.find_compiler())}, once …\n"
    )
    written = path.stat()
    assert build.library() == path
    assert (path.stat().st_mtime_ns, capsys.readouterr().err) == (written.st_mtime_ns, "")
    assert answer(path) == 42


@pytest.mark.parametrize("change", ["source", "header", "block", "level", "extra"])
def test_what_the_library_depends_on_makes_another(source: Path, change: str) -> None:
    before = build.library()
    options = {"level": {"level": "portable"}, "extra": {"extra": ("-g",)}}.get(change, {})
    if change == "source":
        source.write_text(TINY % 43)
    elif change == "header":
        (source.parent / "tiny.h").write_text("//")
    elif change == "block":
        (source.parent.parent / "blocks").mkdir()
        (source.parent.parent / "blocks" / "q9.h").write_text("//")
    after = build.library(**options)  # type: ignore[arg-type]
    assert after != before and before.exists()
    assert answer(after) == (43 if change == "source" else 42)


def test_the_folder_is_private_and_holds_nothing_else(source: Path) -> None:
    path = build.library()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert files(path.parent) == [path.name]


def test_a_folder_that_others_can_write_is_not_used(source: Path, tmp_path: Path) -> None:
    shared = build.library().parent
    shared.chmod(0o777)
    assert build.library().parent == tmp_path / "temporary" / f"mlx_ferrum-{os.getuid()}"


def test_a_link_is_not_used(source: Path, tmp_path: Path) -> None:
    elsewhere = build.library().parent.rename(tmp_path / "elsewhere")
    (tmp_path / "cache" / "mlx_ferrum" / "kernels").symlink_to(elsewhere)
    assert build.library().parent.parent == tmp_path / "temporary"


@pytest.mark.parametrize("home", ["file", "missing"])
def test_without_a_usable_home_the_temporary_folder_serves(
    source: Path, home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if home == "file":  # as a read-only one: no folder can be made in it
        (tmp_path / "file").touch()
        use_cache(monkeypatch, tmp_path / "file")
    else:

        def no_home() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", no_home)
    path = build.library()
    assert path.parent == tmp_path / "temporary" / f"mlx_ferrum-{os.getuid()}"
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert answer(path) == 42


def test_without_any_folder_it_is_said_where_it_looked(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    use_cache(monkeypatch, tmp_path / "file")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    with pytest.raises(build.BuildError, match=r"no folder that this user alone can write: .*file"):
        build.library()


@pytest.mark.parametrize(
    "text, message",
    [
        ("int f() { return nonsense; }", "failed: .*tiny.cpp:1.*error.*nonsense"),
        ('#include "missing.h"', "failed: .*missing.h"),
    ],
)
def test_a_failing_compiler_is_told_in_one_line_and_leaves_nothing(
    source: Path, text: str, message: str, tmp_path: Path
) -> None:
    source.write_text(text)
    with pytest.raises(build.BuildError, match=message) as error:
        build.library()
    assert "\n" not in str(error.value)
    assert files(tmp_path / "cache") == []


def test_a_compiler_that_cannot_be_run_is_told(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "bin" / "c++"
    script(broken, "").write_text("not a program")
    monkeypatch.setenv("PATH", str(broken.parent))
    with pytest.raises(build.BuildError, match=r"c\+\+ cannot be run"):
        build.library()


def test_without_a_compiler_it_is_said_what_to_install(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        build.BuildError, match=r"no C\+\+ compiler .*(apt-get install|xcode-select)"
    ):
        build.library()


def test_an_interrupted_build_leaves_nothing_half_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The linker dies after it wrote a part of the library."""
    compiler = build.find_compiler()
    bad = 'case "$*" in *-shared*) for last; do :; done; echo half > "$last"; exit 1;; esac'
    script(tmp_path / "bin" / "c++", f'{bad}\nexec {compiler[0]} "$@"')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with pytest.raises(build.BuildError, match="failed: no message"):
        build.library()
    assert files(tmp_path / "cache") == []


def test_processes_build_at_once(source: Path) -> None:
    """Each compiles, as none finds a library; all end with the same whole one."""
    code = (
        "import sys; from pathlib import Path; from mlx_ferrum.kernels.cpu import build;"
        "build.HERE = Path(sys.argv[1]); sys.stdin.readline(); print(build.library())"
    )
    command = [sys.executable, "-c", code, str(source.parent)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    found = {process.communicate()[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    (path,) = found
    assert path == str(build.library()) and files(Path(path).parent) == [Path(path).name]
    assert answer(Path(path)) == 42


# -- the package without a compiler, and the command -------------------------------------------


def without_compiler(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}


def test_without_a_compiler_there_is_the_reference_and_one_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FALLBACK],
        env=without_compiler(tmp_path), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "reference reference\n"
    (warning,) = done.stderr.splitlines()
    assert warning.startswith("warning: no C++ compiler") and "g++" in warning
    assert warning.endswith("using the reference backend, which is slow")


def test_the_command_fails_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        COMMAND, env=without_compiler(tmp_path), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: no C++ compiler") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("level", LEVELS)
def test_the_command_tells_what_was_chosen(level: str) -> None:
    options = [] if level == "native" else ["--level", level]
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True, check=True)
    rows = dict(line.split(None, 1) for line in done.stdout.splitlines())
    assert list(rows) == ["library", "origin", "compiler", "flags", "SIMD", "threads"]
    assert rows["origin"] == "compiled on this machine"
    assert re.fullmatch(r"(GCC|.*[Cc]lang) ?\d+\..*", rows["compiler"])
    assert rows["library"] == str(build.library(level))
    assert rows["flags"].split() == list(build.flags(level))
    expected = {"avx2": "AVX2", "avxvnni": "AVX2 with VNNI", "portable": "portable"}
    assert rows["SIMD"] == expected.get(level, rows["SIMD"])
    assert int(rows["threads"]) >= 1


def test_the_command_refuses_what_it_does_not_know() -> None:
    done = subprocess.run([*COMMAND, "--fast"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "usage: python -m mlx_ferrum.backends.cpu" in done.stderr


def test_old_libraries_and_gpu_code_go(tmp_path: Path) -> None:
    old, kept = ("a.so", "cuda-a.cubin"), ("b.so", "cuda-b.cubin", "notes.txt")
    for name in (*old, *kept):
        (tmp_path / name).touch()
    long_ago = time.time() - (cache.KEPT_DAYS + 1) * 24 * 3600
    for name in (*old, "notes.txt"):
        os.utime(tmp_path / name, (long_ago, long_ago))
    cache.clean(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
