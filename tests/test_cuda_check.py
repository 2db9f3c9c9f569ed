"""bench/cuda_check.py and what it starts, as far as a machine without an NVIDIA GPU goes."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import mlx.core as mx
import pytest
from cuda import CudaHost, cuda_on_cpu
from test_ops import random_tensor

from mlx_ferrum import blocks, launch, ops
from mlx_ferrum.doctor import cases

sys.path.append(str(Path(__file__).parent.parent / "bench"))
check, launches = import_module("cuda_check"), import_module("cuda_launches")
thresholds = import_module("cuda_thresholds")

pytestmark = pytest.mark.skipif(mx.metal.is_available(), reason="NVIDIA GPUs are Linux's")


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_stages_name_files_that_are_there(tmp_path):
    found = list(check.stages(tmp_path, None, "sanitizer"))
    assert [stage.name for stage in found][:5] == [
        "doctor",
        "tests",
        "memcheck",
        "racecheck",
        "synccheck",
    ]
    for stage in found:
        paths = [Path(word) for word in stage.command if word.endswith(".py")]
        assert all(path.is_file() for path in paths)
    for name in check.KINDS:
        (tmp_path / name).touch()
    again = [stage.name for stage in check.stages(tmp_path, None, None)]
    assert again == [stage.name for stage in found if not stage.name.startswith("make ")]


def test_llama_bench_is_passed_on(tmp_path):
    *_, models = check.stages(tmp_path, tmp_path / "llama-bench", None)
    assert list(models.command[-2:]) == ["--llama-bench", str(tmp_path / "llama-bench")]


def test_a_report_says_what_failed_and_what_did_not_run(capfd, monkeypatch):
    monkeypatch.setattr(check, "SECONDS", 20)
    stages = [
        check.Stage("good", python("print('figures')")),
        check.Stage("bad", python("raise SystemExit(9)")),
        check.Stage("absent", ["/nowhere/program"]),
        check.Stage("left", ["/nowhere/program"], "no tool: pip install it"),
    ]
    lines = check.report([check.run(stage) for stage in stages])
    assert "figures" in capfd.readouterr().out
    verdicts = [line.split(" s  ")[1] for line in lines[:-1]]
    assert verdicts[:2] == ["ok", "FAILED, exit code 9"]
    assert verdicts[2].startswith("FAILED: ")
    assert verdicts[3] == "not run: no tool: pip install it"
    assert lines[-1] == "3 of 4 stages are not ok"
    assert check.report([check.Outcome("good", "ok", 1.0)])[-1] == "all stages are ok"


def test_a_stage_that_does_not_end_is_ended(monkeypatch):
    monkeypatch.setattr(check, "SECONDS", 0.2)
    assert check.run(check.Stage("long", python("import time; time.sleep(60)"))).failed


def test_without_compute_sanitizer_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert check.sanitizer() is None
    left = [stage for stage in check.stages(tmp_path, None, None) if stage.reason]
    assert [stage.name for stage in left] == list(check.TOOLS)
    assert "pip install nvidia-cuda-sanitizer-api" in left[0].reason
    program = tmp_path / "nvidia/cu13/compute-sanitizer/compute-sanitizer"
    program.parent.mkdir(parents=True)
    program.touch()
    assert check.sanitizer() == str(program)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--only", "doctors"], "no stage 'doctors'; there is: doctor, tests, memcheck"),
        (["--llama-bench", "/nowhere/llama-bench"], "there is no file /nowhere/llama-bench"),
    ],
)
def test_wrong_arguments_are_named(argv, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        check.parse(argv)
    assert message in capsys.readouterr().err


def test_only_the_stages_asked_for_run(tmp_path, monkeypatch):
    ran: list[str] = []

    def run(stage):
        ran.append(stage.name)
        return check.Outcome(stage.name, "ok", 0.0)

    monkeypatch.setattr(check, "run", run)
    assert check.main(["--folder", str(tmp_path), "--only", "kernels", "doctor"]) == 0
    assert ran == ["doctor", "kernels"]


def test_launches_are_counted_by_kernel():
    with cuda_on_cpu():
        ops.use_backend("cuda")
        found = launches.launch_all(["Q8_0"], CudaHost())
    assert {"matvec_Q8_0", "rows_Q8_0", "sort_pairs", "gather_down_Q8_0"} <= found.keys()
    assert found.total() > len(found)


def test_types_that_are_launched_exist():
    assert set(launches.TYPES) <= {name for name, _ in cases.groups()}


@pytest.mark.parametrize(
    ("few", "expected"), [([1, 1, 1], 8), ([1, 5, 1], 2), ([5, 1, 1], 0), ([3, 3, 4], 4)]
)
def test_thresholds_are_where_the_first_kernel_falls_behind(few, expected):
    assert thresholds.last_below([2, 4, 8], few, [3, 3, 3]) == expected


def test_a_table_of_thresholds_is_measured_with_these_kernels(monkeypatch):
    """On a CPU, where all take the same time."""
    for name, less in {
        "K": 256,
        "WIDTHS": (4, 8),
        "EXPERTS": 4,
        "EXPERT_ROWS": 8,
        "USED": 2,
        "PAIRS": (1, 4),
    }.items():
        monkeypatch.setattr(thresholds, name, less)
    small = [random_tensor(blocks.Q8_0, 8, 256, seed=n) for n in range(2)]
    monkeypatch.setattr(thresholds.cuda_kernels, "matrices", lambda *_: small)

    def time(compute, ws):
        with launch.use_runner(launches.Counting(CudaHost())):
            for w in ws:
                mx.eval(compute(w))
        return 1.0

    with cuda_on_cpu():
        ops.use_backend("cuda")
        found = thresholds.table(blocks.Q8_0, time)
    assert (found.matvec_rows, found.few_rows, found.pairs_an_expert) == (8, 16, 4)
