"""The loop of tiles as LLVM has it: what the next step needs is on its way while matrices are multiplied."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import mlx.core as mx
import pytest
from metal_call import needs_host
from msl import compiler
from msl.host import Host
from test_ops import random_tensor

from mlx_ferrum import blocks, launch
from mlx_ferrum.kernels.matmul import matmul

pytestmark = needs_host
LOAD, PRODUCT = re.compile(r"(%[\w.]+) = load .*addrspace\(1\)"), "msl_product"
NAME, RESULT = re.compile(r"%[\w.]+"), re.compile(r"\s*(%[\w.]+) = (?:tail )?(\w+)")
# Changes of type and choices of elements, which need no instruction
FREE = {"shufflevector", "extractelement", "insertelement", "bitcast", "phi"}


@dataclass
class Texts(Host):
    """A host that keeps LLVM's text of the kernels it runs."""

    texts: list[str] = field(default_factory=list)

    def _execute(self, made, call, memory) -> None:
        self.texts.append(compiler.llvm_ir(made))
        super()._execute(made, call, memory)


def basic_blocks(text: str) -> list[list[str]]:
    """The lines of each basic block."""
    return [part.splitlines() for part in re.split(r"^[\w.]+:.*$", text, flags=re.M)]


@pytest.mark.parametrize(
    "block", [blocks.F32, blocks.Q4_K, blocks.Q5_K, blocks.Q6_K], ids=lambda b: b.name
)
def test_loads_of_a_step_come_before_the_products_of_the_last(block):
    host = Texts()
    with launch.use_runner(host):
        matmul(mx.zeros((32, 512)), random_tensor(block, 64, 512, seed=1), columns=32)
    loops = [
        lines
        for lines in basic_blocks(host.texts[0])
        if any(PRODUCT in line for line in lines) and any(LOAD.search(line) for line in lines)
    ]
    assert len(loops) == 1  # no branch between the two
    lines = loops[0]
    first = next(n for n, line in enumerate(lines) if PRODUCT in line)
    loads = [n for n, line in enumerate(lines) if LOAD.search(line)]
    assert max(loads) < first
    assert_nothing_waits(lines)


def assert_nothing_waits(lines: list[str]) -> None:
    """Nothing in the block computes with what it loads: that is for the next step."""
    loaded: set[str] = set()
    for line in lines:
        found = RESULT.match(line)
        if found and LOAD.search(line):
            loaded.add(found[1])
        elif found and loaded & set(NAME.findall(line)[1:]):
            assert found[2] in FREE, line
            loaded.add(found[1])
