"""How commands start and end, as processes: closed and full streams, Ctrl-C, MLX without a backend."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

COMMANDS = ("generate", "chat", "gguf", "experts", "catalog", "doctor", "server", "backends.cpu")
# what each one does in a second or less
WORK = {
    "generate": "--model tiny-moe -n 2 -q",
    "gguf": "tiny-moe",
    "experts": "tiny-moe -p Amen",
    "catalog": "",
    "doctor": "--no-test",
    "backends.cpu": "",
}
full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which "@" stands for `python -m mlx_ferrum.`"""
    return subprocess.run(
        ["bash", "-c", line.replace("@", f"{sys.executable} -m mlx_ferrum.")],
        env={**os.environ, "PYTHONUNBUFFERED": "", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def check(done: subprocess.CompletedProcess[str], code: int, out: str, err: str) -> None:
    assert (done.stdout, done.stderr) == (out, err)
    assert done.returncode == code


# -- closed and full streams ---------------------------------------------------------------------


@pytest.mark.parametrize("command", WORK)
def test_closed_output_is_like_dev_null(command: str) -> None:
    check(shell(f"@{command} {WORK[command]} >&-"), 0, "", "")


def test_help_and_usage_errors_with_closed_streams() -> None:
    check(shell("@catalog --help >&-"), 0, "", "")
    done = shell("@catalog --help <&- 2>&-")
    assert (done.returncode, done.stdout[:6]) == (0, "usage:")
    check(shell("@catalog --wrong <&- >&- 2>&-"), 2, "", "")


@pytest.mark.parametrize(
    "line", ["@generate -p - -q <&-", "@experts tiny-moe -p - <&-", "@chat <&-"]
)
def test_closed_input_is_one_line(line: str) -> None:
    check(shell(line), 1, "", "error: stdin is closed\n")


def test_messages_do_not_go_to_stdout() -> None:
    told = shell("@generate --model tiny-moe -n 1 -q").stdout
    check(shell("@generate --model tiny-moe -n 1 2>&-"), 0, told, "")
    check(shell("@gguf no-such-model 2>&-"), 1, "", "")


def test_a_file_does_not_take_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    """Whoever writes to stdout, a compiler say, would write into it."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\nfrom mlx_ferrum import entry\nentry.open_streams()\n"
        "os._exit(100 + os.open(sys.argv[1], os.O_RDONLY))\n"
    )
    line = f"{sys.executable} {program} {program} <&- >&- 2>&-"
    assert shell(line, PYTHONPATH=os.pathsep.join(sys.path)).returncode > 102


@full
@pytest.mark.parametrize("command", WORK)
def test_a_full_disk_is_one_line(command: str) -> None:
    message = "error: stdout: No space left on device\n"
    check(shell(f"@{command} {WORK[command]} >/dev/full"), 1, "", message)


@full
def test_help_and_usage_errors_on_a_full_disk() -> None:
    check(shell("@catalog --help >/dev/full"), 1, "", "error: stdout: No space left on device\n")
    check(shell("@catalog --wrong 2>/dev/full"), 1, "", "")
    for line in ("@catalog --help >/dev/full", "@catalog >/dev/full"):
        done = shell(line, PYTHONUNBUFFERED="1")
        check(done, 1, "", "error: No space left on device\n")


@pytest.mark.parametrize("arguments", ["--full tiny-moe", "--help"])
def test_a_reader_that_leaves_is_quiet(arguments: str) -> None:
    line = f"mkfifo {{0}}; @gguf {arguments} >{{0}} & exec 3<{{0}}; exec 3<&-; wait $!"
    with tempfile.TemporaryDirectory() as folder:
        check(shell(line.format(f"{folder}/pipe")), 141, "", "")


# -- Ctrl-C --------------------------------------------------------------------------------------


def interrupted_after(module: str, *flags: str, ignored: bool = False) -> tuple[int, str]:
    """Exit code and messages of a command that gets Ctrl-C when `module` has been imported.

    ignored: as a shell starts what it puts in the background
    """
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN) if ignored else None
    with subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", *flags],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        if ignored:
            signal.signal(signal.SIGINT, previous)
        assert process.stderr is not None
        for line in process.stderr:
            if line.split("|")[-1].strip() == module:
                process.send_signal(signal.SIGINT)
                break
        else:
            pytest.fail(f"{module} is not imported")
        told = [line for line in process.stderr if not line.startswith("import time:")]
        return process.wait(), "".join(told)


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("generate", "argparse"),
        ("generate", "numpy._core.multiarray"),
        ("generate", "mlx.core"),
        ("generate", "mlx_ferrum.models.base"),
        ("chat", "mlx.core"),
        ("gguf", "numpy"),
        ("doctor", "mlx_ferrum.kernels.cpu.build"),
        ("backends.cpu", "mlx_ferrum.kernels.cpu.build"),
    ],
)
def test_ctrl_c_while_importing(command: str, module: str) -> None:
    flags = WORK.get(command, "").split()
    assert interrupted_after(module, f"mlx_ferrum.{command}", *flags) == (130, "")


def test_ctrl_c_that_an_import_would_hide(tmp_path: Path) -> None:
    """Extension modules make an ImportError of any exception in their initialization."""
    (tmp_path / "numpy.py").write_text(
        "import os, signal\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    for _ in range(1000): pass\n"
        "except KeyboardInterrupt:\n"
        "    raise ImportError('lost') from None\n"
    )
    check(shell("@gguf tiny-moe", PYTHONPATH=str(tmp_path)), 130, "", "")


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    assert interrupted_after("argparse", "mlx_ferrum.catalog", ignored=True) == (0, "")


def test_ctrl_c_while_waiting_for_the_prompt() -> None:
    command = [sys.executable, "-m", "mlx_ferrum.generate", "--model", "tiny-moe", "-p", "-"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        time.sleep(3)
        process.send_signal(signal.SIGINT)
        assert process.communicate() == (b"", b"")
        assert process.returncode == 130


# -- MLX without its backend ---------------------------------------------------------------------


@pytest.fixture
def without_backend(tmp_path: Path) -> dict[str, str]:
    """An environment in which `import mlx.core` fails as it does where only `mlx` is installed on Linux."""
    package = tmp_path / "mlx"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "core.py").write_text("raise ImportError('libmlx.so: cannot open it')\n")
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}


MISSING = "MLX cannot be imported (libmlx.so: cannot open it): pip install "


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_version_need_no_mlx(command: str, without_backend: dict[str, str]) -> None:
    done = shell(f"@{command} --help && @{command} --version", **without_backend)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: python -m mlx_ferrum.{command} ")
    assert done.stdout.endswith("\nmlx_ferrum 0.1.0\n")


@pytest.mark.parametrize("line", ["@generate -p hi", "@experts tiny-moe -p hi", "@chat"])
def test_what_to_install(line: str, without_backend: dict[str, str]) -> None:
    done = shell(line, **without_backend)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"error: {MISSING}")


@pytest.mark.parametrize("line", ["@gguf tiny-moe", "@catalog", "@gguf tiny-moe --json"])
def test_commands_that_read_files_only(line: str, without_backend: dict[str, str]) -> None:
    assert shell(line, **without_backend).stdout == shell(line).stdout != ""


def test_the_doctor_reports_what_is_missing(without_backend: dict[str, str]) -> None:
    done = shell("@doctor", **without_backend)
    assert (done.returncode, done.stderr) == (1, "")
    assert "backend     none: MLX cannot be imported\n" in done.stdout
    assert "error       libmlx.so: cannot open it\n" in done.stdout
    assert "\nadvice\n- Install MLX with a backend: pip install " in done.stdout


@pytest.mark.parametrize("package", ["", ".chat", ".convert", ".experts", ".generate", ".gguf"])
def test_completion_knows_names_before_they_are_imported(package: str) -> None:
    name = f"mlx_ferrum{package}"
    code = f"import sys, {name}; p = sys.modules['{name}']; print(set(p.__all__) - set(dir(p)))"
    assert shell(f'{sys.executable} -c "{code}"').stdout == "set()\n"


@pytest.mark.parametrize(
    "code", ["mlx_ferrum.load('tiny-moe')", "mlx_ferrum.generate", "from mlx_ferrum import load"]
)
def test_the_package_says_what_to_install(code: str, without_backend: dict[str, str]) -> None:
    line = f'{sys.executable} -c "import mlx_ferrum; {code}"'
    done = shell(line, **without_backend)
    assert done.stderr.splitlines()[-1].startswith(f"ImportError: {MISSING}")
    assert done.stderr.count("Traceback") == 1
