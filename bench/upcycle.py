"""Turn a dense GGUF file into a mixture of experts that computes the same.

    python bench/upcycle.py dense.gguf moe.gguf --copy --experts 8 --used 2 --seed 0
    python bench/upcycle.py dense.gguf moe.gguf --split --experts 4

`llama` stays `llama`, with experts as in Mixtral's files, and `qwen3` becomes `qwen3moe`: there the weights of the
chosen experts add up to 1. A `llama` file cannot become `qwen3moe`, which norms the heads of queries and keys; nor
`qwen2` `qwen2moe`, where those weights do not add up to 1 and a shared expert is added.

--copy: each expert is the whole feed-forward network, and a random router chooses: the output is the dense one's
whichever experts it chooses, up to the rounding of the weighted sum.
--split: the network's columns are dealt out among the experts, in whole blocks of `ffn_down`'s rows. All experts are
used and the router is 0, so that each has the weight 1 / N; `ffn_down`'s scales are multiplied by N, which is exact
for a power of two. The output is the dense one's up to the order of its sums.

Quantized weights are moved, never requantized; other tensors, metadata and vocabulary are those of the dense file.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, ReaderTensor
from tqdm import tqdm

from mlx_ferrum import blocks, cli

ARCHITECTURES = {"llama": "llama", "qwen3": "qwen3moe"}
FFN = re.compile(r"(blk\.\d+\.)ffn_(gate|up|down)\.(\w+)")
SIZES = {"u8": 1, "i8": 1, "u16": 2, "i16": 2, "f16": 2, "bf16": 2, "u32": 4, "f32": 4}


class Plan(NamedTuple):
    """What to make of the feed-forward networks.

    order: in which runs of columns are dealt to the experts; None: each expert gets all columns
    """

    experts: int
    used: int
    seed: int
    order: np.ndarray | None = None


class Tensor(NamedTuple):
    """raw: (..., row bytes) uint8"""

    name: str
    kind: GGMLQuantizationType
    raw: np.ndarray


def architecture(reader: GGUFReader) -> str:
    """Of the file, if there is a way from it to one with experts, else `ValueError`."""
    arch = str(reader.fields["general.architecture"].contents())
    if arch not in ARCHITECTURES or f"{arch}.expert_count" in reader.fields:
        found = arch if arch not in ARCHITECTURES else f"{arch} with experts"
        raise ValueError(f"expected a dense file of {' or '.join(ARCHITECTURES)}, found {found}")
    return arch


def copies(experts: int, used: int, seed: int) -> Plan:
    """Each expert is the whole network."""
    if not 1 <= used <= experts:
        raise ValueError(f"--used: expected 1 to {experts}, found {used}")
    return Plan(experts, used, seed)


def split(reader: GGUFReader, experts: int, seed: int) -> Plan:
    """Each expert gets its part of the columns."""
    if experts < 1 or experts & (experts - 1):
        raise ValueError(f"--experts: 1 / N is exact for powers of two only, found {experts}")
    downs = [tensor for tensor in reader.tensors if tensor.name.endswith("ffn_down.weight")]
    columns = int(downs[0].shape[0])
    run = max(blocks.by_name(tensor.tensor_type.name).weights for tensor in downs)
    if columns % (run * experts):
        raise ValueError(
            f"--experts: {columns} columns in blocks of {run} cannot be dealt to {experts}"
        )
    order = np.random.default_rng(seed).permutation(columns // run)
    return Plan(experts, experts, seed, order)


def write(reader: GGUFReader, path: Path, plan: Plan) -> None:
    """Write the file with experts; it appears under its name when it is complete."""
    part = path.with_name(path.name + ".part")
    writer = GGUFWriter(part, ARCHITECTURES[architecture(reader)], use_temp_file=True)
    add_metadata(writer, reader, plan)
    for tensor in tqdm(tensors(reader, plan), desc=path.name, unit=" tensors"):
        writer.add_tensor(tensor.name, tensor.raw, raw_dtype=tensor.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.replace(path)


def add_metadata(writer: GGUFWriter, reader: GGUFReader, plan: Plan) -> None:
    """All of the dense file's, sizes under the new architecture's name, and the experts'."""
    arch = architecture(reader)
    columns = reader.fields[f"{arch}.feed_forward_length"].contents()
    width = columns if plan.order is None else columns // plan.experts
    ours = {"general.architecture", f"{arch}.feed_forward_length"}
    for field in reader.fields.values():
        if field.name in ours or field.name.startswith("GGUF."):
            continue
        name = re.sub(rf"^{arch}\.", f"{writer.arch}.", field.name)
        writer.add_key_value(name, field.contents(), field.types[0], field.types[-1])
    writer.add_feed_forward_length(width)
    writer.add_expert_feed_forward_length(width)
    writer.add_expert_count(plan.experts)
    writer.add_expert_used_count(plan.used)


def tensors(reader: GGUFReader, plan: Plan) -> Iterator[Tensor]:
    """All tensors, a router before each stack of gates."""
    rng = np.random.default_rng(plan.seed)
    for tensor in reader.tensors:
        part = FFN.fullmatch(tensor.name)
        raw = tensor.data.view(np.uint8)
        if part is None:
            yield Tensor(tensor.name, tensor.tensor_type, raw)
            continue
        if part[3] != "weight":
            raise ValueError(f"{tensor.name}: experts have no such tensor")
        if part[2] == "gate":
            weights = router(rng, plan, int(tensor.shape[0]))
            name = f"{part[1]}ffn_gate_inp.weight"
            yield Tensor(name, GGMLQuantizationType.F32, weights.view(np.uint8))
        name = f"{part[1]}ffn_{part[2]}_exps.weight"
        yield Tensor(name, tensor.tensor_type, stack(tensor, plan))


def router(rng: np.random.Generator, plan: Plan, hidden: int) -> np.ndarray:
    """(experts, hidden) float32: random for copies, 0 for parts."""
    if plan.order is not None:
        return np.zeros((plan.experts, hidden), np.float32)
    return rng.standard_normal((plan.experts, hidden), np.float32) / np.float32(hidden**0.5)


def stack(tensor: ReaderTensor, plan: Plan) -> np.ndarray:
    """The experts' matrices of a dense one: (rows, row bytes) -> (experts, rows, row bytes) uint8."""
    raw, n = tensor.data.view(np.uint8), plan.experts
    rows, nbytes = raw.shape
    if plan.order is None:
        return np.repeat(raw[None], n, axis=0)
    if not tensor.name.endswith("ffn_down.weight"):
        return raw.reshape(len(plan.order), -1, nbytes)[plan.order].reshape(n, -1, nbytes)
    dealt = raw.reshape(rows, len(plan.order), -1)[:, plan.order].reshape(rows, n, -1)
    block = blocks.by_name(tensor.tensor_type.name)
    return times(np.ascontiguousarray(dealt.swapaxes(0, 1)), block, n)


def times(raw: np.ndarray, block: type[blocks.Block], factor: int) -> np.ndarray:
    """Weights by a power of two, exactly: (..., row bytes) uint8 -> the same.

    `ValueError` for a type without float fields, and where the product is too large for one.
    """
    scaled = raw.copy().reshape(-1, block.bytes)
    start, found = 0, False
    for kind, count in block.fields.values():
        stop = start + SIZES[kind] * count
        if kind in ("f16", "bf16", "f32"):
            scaled[:, start:stop] = _times(scaled[:, start:stop], kind, factor)
            found = True
        start = stop
    if not found:
        raise ValueError(f"ffn_down of type {block.name} has no scales to multiply")
    return scaled.reshape(raw.shape)


def _times(raw: np.ndarray, kind: str, factor: int) -> np.ndarray:
    """Floats by a power of two, as bytes: (n, bytes) uint8 -> the same."""
    raw = np.ascontiguousarray(raw)
    if kind == "bf16":  # the upper half of a float32
        floats = np.left_shift(raw.view(np.uint16), 16, dtype=np.uint32).view(np.float32)
    else:
        floats = raw.view(np.float16 if kind == "f16" else np.float32)
    with np.errstate(over="ignore"):
        found = floats * floats.dtype.type(factor)
    if not np.isfinite(found).all():
        raise ValueError(f"a scale of ffn_down is too large to be multiplied by {factor}")
    return (
        found.view(np.uint16)[:, 1::2].copy().view(np.uint8)
        if kind == "bf16"
        else found.view(np.uint8)
    )


def main() -> int:
    """Write the file and say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("dense", type=Path)
    parser.add_argument("path", type=Path, help="the file to write")
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--copy", action="store_true", help="each expert is the whole network")
    way.add_argument("--split", action="store_true", help="each expert is a part of it")
    parser.add_argument("--experts", type=cli.positive, default=4, metavar="N")
    parser.add_argument("--used", type=cli.positive, metavar="K", help="of copies (default: 2)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.split and args.used not in (None, args.experts):
        parser.error("argument --used: all experts are used with --split")
    reader = GGUFReader(args.dense)
    if args.split:
        plan = split(reader, args.experts, args.seed)
    else:
        plan = copies(args.experts, args.used or min(2, args.experts), args.seed)
    write(reader, args.path, plan)
    nbytes = args.path.stat().st_size
    print(f"{args.path}: {plan.used} of {plan.experts} experts, {nbytes / 1e6:.0f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.guarded(main))
