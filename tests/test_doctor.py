"""The doctor: what it finds on this machine and on a Mac that is made up, and what its self-test notices."""

from __future__ import annotations

import dataclasses
import functools
import getpass
import json
import mmap
import os
import platform
import subprocess
import sys
from importlib import metadata

import mlx.core as mx
import numpy as np
import pytest
from backends import REFERENCE
from metal_call import HAS_METAL
from msl import Host

from mlx_ferrum import blocks, launch, ops
from mlx_ferrum.backends import cpu
from mlx_ferrum.doctor import advice, choice, command, machine, main, metal, report, selftest
from mlx_ferrum.doctor.cases import ARRAYS, groups
from mlx_ferrum.doctor.privacy import one_line, without_folders
from mlx_ferrum.doctor.weights import random_tensor
from mlx_ferrum.kernels.cpu import build

GIB = 1 << 30
MAC = machine.Gpu(
    name="Apple M1 Max",
    architecture="applegpu_g13s",
    metal=True,
    cores=32,
    memory=64 * GIB,
    working_set=48 * GIB,
    largest_buffer=36 * GIB,
    wired_limit=None,
    commit_operations=50,
    commit_megabytes=50,
    commits_are_set=False,
)
ANSWERS = {  # of the programs that are asked on a Mac
    "sysctl": """case "$2" in
        hw.optional.arm.FEAT_DotProd) echo 1;; hw.optional.arm.FEAT_SME) echo 0;;
        hw.perflevel0.physicalcpu) echo 8;; hw.perflevel1.physicalcpu) echo 2;;
        iogpu.wired_limit_mb) echo 0;; *) exit 1;;
    esac""",
    "ioreg": """echo '  "gpu-core-count" = 32'""",
    "xcode-select": "exit 2",
    "c++": "echo Apple clang version 16.0.0",
}


@pytest.fixture
def cpu_backend():
    before = ops.backend_name()
    ops.use_backend("cpu")
    yield
    ops.use_backend(before)


@pytest.fixture
def mac(monkeypatch, tmp_path):
    """An M1 Max without developer tools, by what its programs and MLX say."""
    for name, script in ANSWERS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "mac_ver", lambda: ("15.1", ("", "", ""), "arm64"))
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    info = {
        "device_name": MAC.name,
        "architecture": MAC.architecture,
        "memory_size": MAC.memory,
        "max_recommended_working_set_size": MAC.working_set,
        "max_buffer_length": MAC.largest_buffer,
    }
    monkeypatch.setattr(mx, "device_info", lambda _: info)
    monkeypatch.setattr(mx, "is_available", lambda _: True)
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)


def few_groups():
    """A type and the operations without weights."""
    return [(name, cases) for name, cases in groups() if name in (blocks.Q4_K.name, ARRAYS)]


@pytest.mark.parametrize("block", blocks.SUPPORTED, ids=lambda b: b.name)
def test_random_weights_are_tame(block):
    k = max(block.weights, 32) * 2
    w = random_tensor(np.random.default_rng(), block, 50, k)
    values = np.array(block.dequantize(mx.array(w.data))) * np.sqrt(k)
    assert np.isfinite(values).all()
    assert 0.7 < values.std() < 1.4
    assert abs(values.mean()) < 1.0
    pages, first = w.pages()
    assert pages.ctypes.data % mmap.PAGESIZE == 0
    assert np.array_equal(pages[first : first + w.nbytes], w.data.reshape(-1))


def test_every_backend_passes(backend, monkeypatch):
    if backend.is_gpu:  # all types take the host a minute; test_metal_kernels.py has them
        monkeypatch.setattr(selftest, "groups", few_groups)
    results, _ = selftest.run(progress=False)
    assert [f for result in results for f in result.failures] == []
    assert all((result.worst or 0.0) <= result.bound for result in results)


def test_every_operation_meets_every_type():
    seen: dict[str, set[str]] = {}
    for name, cases in groups():
        for case in cases:
            seen.setdefault(case.op.split(",")[0], set()).add(name)
    types = {block.name for block in blocks.SUPPORTED}
    for op in ("matmul", "matmuls", "gate_up", "norm_matmul", "rows", "dequantize"):
        assert seen.pop(op) == types
    for op in ("gather_matmul", "gather_gate_up", "gather_down"):
        assert seen.pop(op) == types
    recurrent = {"short_conv", "gated_delta", "gated_norm", "gate"}
    assert set(seen) == recurrent | {"append", "attend", "rms_norm", "route", "sigmoid_gate"}
    assert all(types == {ARRAYS} for types in seen.values())


@pytest.mark.parametrize("name", ops.BACKENDS)
def test_bounds_are_known_for_every_backend(name):
    assert 0 <= selftest.bound(name, "matmul") <= 2e-3


def _refuse(*args, **kwargs):
    raise RuntimeError("no such kernel")


def _spoiled(op, factor):
    right = getattr(cpu, op)
    return lambda *args, **kwargs: right(*args, **kwargs) * np.float32(factor)


@pytest.mark.parametrize(
    ("op", "wrong", "said"),
    [
        ("rms_norm", lambda: _spoiled("rms_norm", 1.001), "1.0e-03, allowed 1e-05"),
        ("dequantize", lambda: _spoiled("dequantize", 1 + 1e-6), "allowed none"),
        ("attend", lambda: _spoiled("attend", np.nan), "not all values are finite"),
        ("gate_up", lambda: _refuse, "no such kernel"),
        ("append", lambda: lambda *_, **__: np.ones((1, 2)), "shape (1, 2), expected (10, 6, 64)"),
    ],
)  # fmt: skip
def test_a_wrong_operation_is_named(cpu_backend, monkeypatch, capsys, op, wrong, said):
    monkeypatch.setattr(cpu, op, wrong())
    monkeypatch.setattr(selftest, "groups", few_groups)
    assert main(["--backend", "cpu", "--json"]) == 1
    results = json.loads(capsys.readouterr().out)["selftest"]
    failures = [failure for result in results for failure in result["failures"]]
    named = {failure["op"].split(",")[0] for failure in failures}
    assert op in named and named <= ({op, "attend"} if op == "append" else {op})
    failures = [failure for failure in failures if failure["op"].startswith(op)]
    assert said in failures[0]["error"]
    assert main(["--backend", "cpu"]) == 1
    first = failures[0]
    line = f"FAILED {first['op']} of {first['type']}, {first['shape']}: {first['error']}"
    assert line in capsys.readouterr().out.splitlines()


def test_one_type_that_is_wrong_is_named(cpu_backend, monkeypatch):
    right = cpu.matmul

    def wrong(x, w, **rest):
        return right(x, w, **rest) * np.float32(1.01 if w.block is blocks.Q5_K else 1)

    monkeypatch.setattr(cpu, "matmul", wrong)
    results, _ = selftest.run(progress=False)
    failures = [failure for result in results for failure in result.failures]
    assert {failure.type for failure in failures} == {"Q5_K"}
    assert len(failures) == 4


@pytest.fixture
def on_metal(monkeypatch):
    """The metal backend, on the GPU or on the host, for one type of blocks."""
    monkeypatch.setattr(selftest, "groups", few_groups)
    monkeypatch.setattr(metal, "run", functools.partial(metal.run, size=256, launches=9))
    with REFERENCE.in_use(), launch.use_runner(launch.metal if HAS_METAL else Host()):
        yield


def test_metal_passes(on_metal, capsys):
    assert main(["--backend", "metal"]) == 0
    assert "metal against the reference: " in capsys.readouterr().out


def test_a_wrong_metal_kernel_is_named(on_metal, capsys, monkeypatch):
    right = launch.Call.__call__

    def wrong(call, arrays):
        out = right(call, arrays)
        return [y * 1.01 for y in out] if call.kernel.name == "append_16" else out

    monkeypatch.setattr(launch.Call, "__call__", wrong)
    assert main(["--backend", "metal"]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAILED")]
    assert failed
    assert all(line.startswith(("FAILED append of arrays, ", "FAILED attend")) for line in failed)


def test_this_machine():
    here = machine.inspect()
    assert 0 < here.memory < 1 << 50
    assert here.available is None or 0 < here.available <= here.memory
    assert 0 < here.cores <= (os.cpu_count() or 1)
    assert (here.gpu is not None) == (mx.default_device() == mx.gpu)
    assert here.mlx == metadata.version("mlx")


def test_a_mac(mac):
    here = machine.inspect()
    assert here.gpu == MAC
    assert (here.system, here.processor) == ("macOS 15.1, arm64", MAC.name)
    assert (here.features, here.core_kinds) == (("FEAT_DotProd",), (8, 2))
    assert here.compiler is None
    chosen = choice.Choice("metal", "why", wired_limit=48 * GIB)
    lines = list(report.as_text(report.Report(here, chosen, None, 0.0, [])))
    assert "GPU         Apple M1 Max, 32 cores, applegpu_g13s" in lines
    assert "GPU memory  working set 48.0 GiB of 64.0 GiB, a buffer up to 36.0 GiB" in lines
    assert "wired       up to 48.0 GiB while a model generates, the working set" in lines


def test_a_compiler_on_a_mac(mac, tmp_path):
    """Without the developer tools there is a c++ as well, but all it does is to offer them."""
    (tmp_path / "xcode-select").write_text("#!/bin/sh\necho /Library/Developer/CommandLineTools\n")
    assert machine.inspect().compiler == "Apple clang version 16.0.0"


def test_commits_that_the_user_set(mac, monkeypatch):
    monkeypatch.setenv("MLX_MAX_OPS_PER_BUFFER", "300")
    gpu = machine.inspect().gpu
    assert gpu == dataclasses.replace(MAC, commit_operations=300, commits_are_set=True)
    assert not any("MLX_MAX" in line for line in _advice(gpu))


def _advice(gpu=None, failed=False, name="metal", **changes):
    here = dataclasses.replace(machine.inspect(), gpu=gpu, compiler="c++ 1", available=8 * GIB)
    here = dataclasses.replace(here, **changes)
    return advice.advise(here, choice.Choice(name, "why"), failed)


@pytest.mark.parametrize(
    ("memory", "working_set", "limit"),
    [(8, 5.3, None), (16, 10.7, 12), (64, 48, 56), (64, 56, None), (192, 144, 168)],
)
def test_the_wired_limit_is_advised_where_memory_allows(memory, working_set, limit):
    sizes = {"memory": memory * GIB, "working_set": int(working_set * GIB)}
    said = [line for line in _advice(dataclasses.replace(MAC, **sizes)) if "iogpu" in line]
    assert len(said) == (limit is not None)
    assert limit is None or f"iogpu.wired_limit_mb={limit * 1024} " in said[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"gpu": MAC}, ["wired_limit", "MLX_MAX_OPS_PER_BUFFER=200"]),
        ({"name": "cpu"}, []),
        ({"name": "reference", "compiler": None}, ["C++ compiler"]),
        ({"compiler": None}, []),
        ({"name": "cpu", "compiler": None}, []),
        ({"name": "cpu", "available": 500 << 20}, ["gemma3-270m needs about 0.6 GB"]),
        ({"failed": True, "name": "cpu"}, ["please report", "--backend reference"]),
        ({"failed": True, "name": "reference"}, ["please report"]),
    ],
)
def test_advice_where_it_applies(arguments, said):
    found = _advice(**arguments)
    assert len(found) == len(said)
    assert all(part in line for part, line in zip(said, found, strict=True))


def test_the_longest_report_fits_a_screen(mac, monkeypatch):
    here = dataclasses.replace(machine.inspect(), available=GIB >> 3)
    failures = [selftest.Failure(f"op{i}", "Q4_K", "x (9, 512)", "wrong" * 30) for i in range(9)]
    results = [selftest.Result(f"op{i}", 0.0, 9, None, failures) for i in range(11)]
    chosen = choice.Choice("cpu", "asked for by --backend", "AVX2, 2 threads")
    found = report.Report(here, chosen, results, 1.0, advice.advise(here, chosen, True))
    assert len(list(report.as_text(found))) <= 42


def test_the_origin_of_the_kernels_is_told(cpu_backend, monkeypatch, capsys):
    for origin, is_prebuilt in (("compiled here", False), ("prebuilt", True)):
        monkeypatch.setattr(build, "is_prebuilt", lambda _, found=is_prebuilt: found)
        assert main(["--no-test", "--backend", "cpu", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)["backend"]["kernels"]
        assert found.endswith(f" threads, {origin}")


def test_json_without_a_test(capsys):
    assert main(["--no-test", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["selftest"] is None
    assert found["backend"]["name"] == ops.backend_name()
    assert found["machine"]["memory"] > 0


def test_a_backend_that_cannot_run(monkeypatch, capsys):
    def refuse(name):
        raise OSError("no Metal in /Users/jane doe/x, only in /opt/secret/lib.so")

    monkeypatch.setattr(ops, "use_backend", refuse)
    assert main(["--backend", "cpu"]) == 1
    out = capsys.readouterr().out
    assert "lib.so" in out
    assert "secret" not in out
    assert "self-test" not in out


def test_without_a_compiler_nor_names(tmp_path):
    """The reference is chosen, the reason given; the user, the host and the folders are not."""
    home = tmp_path / "jane doe"
    home.mkdir()
    environment = {**os.environ, "HOME": str(home), "XDG_CACHE_HOME": "", "PATH": "/nowhere"}
    done = subprocess.run(
        [sys.executable, "-m", "mlx_ferrum.doctor", "--no-test"],
        env=environment, capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    if not mx.is_available(mx.gpu):
        assert "backend     reference: no C++ compiler" in done.stdout
    assert "jane" not in done.stdout
    assert str(tmp_path) not in done.stdout
    assert platform.node() not in done.stdout
    assert getpass.getuser() not in done.stdout.split()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("/usr/bin/c++ failed: no a/b or 1 / 2", "c++ failed: no a/b or 1 / 2"),
        ("cannot write /home/jane/.cache/x: full", "cannot write x: full"),
        ("in /tmp/a-501/ and '/var/x y'", "in a-501 and 'x y'"),
    ],
)
def test_paths_become_names(text, wanted):
    assert without_folders(text) == wanted


def test_a_home_with_spaces_goes(monkeypatch):
    monkeypatch.setenv("HOME", "/Users/Jane Doe")
    assert without_folders("at /Users/Jane Doe/Library/x.so") == "at x.so"


def test_errors_are_one_short_line():
    source = "built from source: " + "long " * 100 + "program_source:12:5: error: no type 'x'\n" * 9
    assert "error: no type 'x'" in one_line(RuntimeError(source))
    assert len(one_line(RuntimeError(source))) <= 160


def test_the_backend_is_tested_that_models_get(monkeypatch):
    monkeypatch.setattr(selftest, "groups", few_groups)
    found = command.examine()
    assert found.choice.name == ops.backend_name()
    assert found.results
