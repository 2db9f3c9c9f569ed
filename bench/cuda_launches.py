"""Launch every kernel of the cuda backend at a few odd shapes: what compute-sanitizer watches. No result is looked at.

The cases are those of the doctor's self-test. The last line says how many kernels there were, and how many launches.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence

import mlx.core as mx

from mlx_ferrum import cli, launch, ops
from mlx_ferrum.doctor import cases
from mlx_ferrum.kernels.cuda import runner

# One type with each alignment of blocks, with codes in tables, and without blocks.
TYPES = ["Q4_K", "Q6_K", "Q8_0", "IQ4_XS", "MXFP4", "F16", cases.ARRAYS]


class Counting:
    """A runner that passes launches on and counts them by the names of their kernels."""

    def __init__(self, inner: launch.Runner) -> None:
        self.inner, self.names = inner, Counter[str]()

    def __call__(self, kernel: launch.Kernel, call: launch.Launch) -> list[mx.array]:
        self.names[kernel.name] += 1
        return self.inner(kernel, call)


def launch_all(types: Sequence[str], inner: launch.Runner) -> Counter[str]:
    """Run the cases of these types with the backend in use; returns how often each kernel was launched."""
    counting, groups = Counting(inner), dict(cases.groups())
    with launch.use_runner(counting):
        for name in types:
            for case in groups[name]:
                mx.eval(case.compute(ops, mx.array))
    return counting.names


def main() -> int:
    """Launch, and count."""
    names = [name for name, _ in cases.groups()]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--types", nargs="+", default=TYPES, choices=names, metavar="TYPE")
    asked = parser.parse_args()
    ops.use_backend("cuda")
    found = launch_all(asked.types, runner.run)
    print(f"{len(found)} kernels, {found.total()} launches")
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.guarded(main))
