"""The doctor's checks of Metal, on hosts that have what they look for and on hosts that do not."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import pytest
from backends import REFERENCE
from metal_call import needs_host
from msl import Host
from msl.flushing import FlushingHost

from mlx_ferrum import launch
from mlx_ferrum.doctor import main, metal, selftest
from mlx_ferrum.launch import Kernel, Launch

pytestmark = needs_host


@dataclass
class LateHost(Host):
    """A host on which writes in place come too late, by `delay` launches."""

    delay: int = 0

    def __post_init__(self) -> None:
        """Nothing is late yet."""
        self._late: list[tuple[np.ndarray, np.ndarray]] = []

    def __call__(self, kernel: Kernel, call: Launch) -> list[mx.array]:
        given = zip(kernel.inputs, call.arrays, strict=True)
        pools = [np.asarray(x) for name, x in given if name in kernel.writes]
        before = [pool.copy() for pool in pools]
        out = super().__call__(kernel, call)
        for pool, was in zip(pools, before, strict=True):
            self._late.append((pool, pool.copy()))
            pool[...] = was
        while len(self._late) > self.delay:
            pool, written = self._late.pop(0)
            pool[...] = written
        return out


LOST = 1000  # launches, more than any check makes


def test_all_is_well() -> None:
    with launch.use_runner(Host(seed=1)):
        checks = metal.run(launches=30, size=256, copies=2, prompt=9)
    assert [check.name for check in checks] == [
        "in place", "order", "subnormals", "tensor tiles", "matvec Q4_K", "matvec Q6_K", "matmul Q4_K",
    ]  # fmt: skip
    assert not any(check.failed for check in checks)
    assert checks[1].outcome.startswith("the next launch saw every write; writes 30, ")
    assert checks[2].outcome == "halves keep them"
    assert checks[3].outcome == "not tried: no hardware for them, or macOS before 26.2"
    assert all(check.outcome.endswith(" GB/s") for check in checks[4:6])
    assert checks[6].outcome.startswith("9 rows, (256, 256): simdgroup matrices ")
    assert "tensor" not in checks[6].outcome


@pytest.mark.parametrize("host", [LateHost(delay=LOST), LateHost(delay=1)], ids=["lost", "late"])
def test_writes_that_are_not_seen(host: Host) -> None:
    with launch.use_runner(host):
        check = metal.in_place("order", 30)
    assert check.failed
    assert check.outcome == "0 of 4096 cells were right in every launch; writes 30"


def test_subnormals_that_are_lost_are_no_failure() -> None:
    with launch.use_runner(FlushingHost()):
        check = metal.halves()
    assert (check.outcome, check.failed) == ("halves lose them: slower kernels", False)


def test_the_report_has_the_checks(monkeypatch, capsys) -> None:
    """A failed one is the exit code; where the backend is another one, they are not run."""
    monkeypatch.setattr(selftest, "groups", list)
    few = functools.partial(metal.run, launches=3, size=256, copies=1, prompt=9)
    monkeypatch.setattr(metal, "run", few)
    with REFERENCE.in_use(), launch.use_runner(Host()):
        assert main(["--backend", "metal"]) == 0
    assert "metal, order: the next launch saw every write; writes 3, " in capsys.readouterr().out
    with REFERENCE.in_use(), launch.use_runner(LateHost(delay=LOST)):
        assert main(["--backend", "metal"]) == 1
        assert "FAILED metal, order: 0 of 4096 cells" in capsys.readouterr().out
        assert main(["--backend", "metal", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["metal"]
    assert [check["failed"] for check in found] == [True, True] + 5 * [False]
    with REFERENCE.in_use():
        assert main(["--backend", "reference"]) == 0
        assert "checks of Metal were not run" in capsys.readouterr().out


def test_a_kernel_that_does_not_compile_is_a_failure() -> None:
    def refuse(*_: object) -> list[mx.array]:
        raise RuntimeError("no such kernel")

    with launch.use_runner(refuse):
        checks = metal.run(launches=2, size=256, copies=1, prompt=9)
    outcomes = {(check.outcome, check.failed) for check in checks if check.name != "tensor tiles"}
    assert outcomes == {("no such kernel", True)}
