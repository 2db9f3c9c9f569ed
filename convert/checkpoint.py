"""Checkpoints: the tensors of a folder of safetensors files, checked before anything is read.

Format: https://github.com/huggingface/safetensors, 8 bytes with the length of a JSON header, the header, the data.
Weights in fp8 are multiplied by the scales that are stored beside them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlx_ferrum.blocks import Block

INDEX = "model.safetensors.index.json"
MAX_HEADER = 100 << 20
DTYPES: dict[str, Any] = {  # as NumPy reads them; bf16 and fp8 are decoded here
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "F8_E4M3": np.uint8,
}
SIZES = {"F8_E5M2": 1, "U8": 1, "I8": 1, "BOOL": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4}
SIZES |= {"U64": 8, "I64": 8} | {name: np.dtype(dtype).itemsize for name, dtype in DTYPES.items()}
SCALES = ("_scale_inv", "_scale")  # after the name of the weight
_UNUSED = re.compile(r"(\.input_scale|activation_scale|\.[kv]_scale|\.rotary_emb\.inv_freq)$")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.safetensors$")


@dataclass(frozen=True)
class Stored:
    """A tensor in a file. scale: the factors of fp8 weights; block: how many weights share one, along each axis."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    scale: Stored | None = None
    block: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """The length of the first axis; 1 for a scalar."""
        return self.shape[0] if self.shape else 1

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Entries start to stop of the first axis: (stop - start, ...) float32.

        Raises ValueError if the file ends before them, NotImplementedError for a type that is not a float.
        """
        stop = self.rows if stop is None else stop
        if self.dtype not in DTYPES:
            raise NotImplementedError(
                f"tensor {self.name!r}: stored as {self.dtype}, expected {', '.join(DTYPES)}"
            )
        raw = self.raw(start, stop).reshape(-1).view(DTYPES[self.dtype])
        x = _decoded(raw, self.dtype).reshape(stop - start, *self.shape[1:])
        if self.scale is not None:
            x = x * self._factors(self.scale.read(), start, stop)
        return x.reshape(x.shape if self.shape else ())

    def raw(self, start: int, stop: int) -> np.ndarray:
        """Entries start to stop of the first axis as bytes: (stop - start, bytes) uint8. ValueError as in `read`."""
        each = math.prod(self.shape[1:]) * SIZES[self.dtype]
        count, offset = (stop - start) * each, self.offset + start * each
        found = np.fromfile(self.file, np.uint8, count, offset=offset)
        if found.size != count:
            raise ValueError(f"{self.file}: the file ends within tensor {self.name!r}")
        return found.reshape(stop - start, each)

    @property
    def repacks(self) -> type[Block] | None:
        """The block type of GGUF files that holds the weights as they are, which `packed` gives; None for floats."""
        return None

    def packed(self, start: int, stop: int) -> np.ndarray:
        """As `read`, in the bytes of `repacks`: (stop - start, ..., row bytes) uint8."""
        raise NotImplementedError

    def _factors(self, scale: np.ndarray, start: int, stop: int) -> np.ndarray:
        """The factor of each weight from start to stop."""
        if scale.size == 1:
            return scale.reshape((1,) * len(self.shape))
        scale = scale.reshape(*scale.shape, *(1,) * (len(self.shape) - scale.ndim))
        places = [np.arange(start, stop), *map(np.arange, self.shape[1:])]
        return scale[
            np.ix_(*(place // size for place, size in zip(places, self.block, strict=True)))
        ]


def read(folder: Path, quantization: Mapping[str, Any]) -> dict[str, Stored]:
    """The tensors of all safetensors files of a folder, by name.

    quantization: `quantization_config` of config.json, empty without
    Raises ValueError for missing, truncated or damaged files, NotImplementedError for weights that are quantized
    otherwise than to fp8.
    """
    check_quantization(quantization)
    tensors: dict[str, Stored] = {}
    for file in _files(folder):
        for name, stored in header(file).items():
            if name in tensors:
                raise ValueError(
                    f"tensor {name!r} is in two files: {tensors[name].file.name} and {file.name}"
                )
            tensors[name] = stored
    _check_index(folder, tensors)
    return _with_scales(tensors, quantization.get("weight_block_size"))


def check_quantization(config: Mapping[str, Any]) -> None:
    """Raises NotImplementedError for quantized weights other than fp8, ValueError for what says nothing of weights."""
    if not isinstance(config, Mapping):
        raise ValueError(f"config.json: quantization_config: expected an object, found {config!r}")
    block = config.get("weight_block_size")
    sizes = block if isinstance(block, list) else [0]
    if block is not None and any(type(n) is not int or n < 1 for n in sizes):
        raise ValueError(
            f"config.json: weight_block_size: expected whole numbers from 1, found {block!r}"
        )
    method = config.get("quant_method")
    if method in (None, "fp8"):
        return
    if method == "compressed-tensors" and config.get("format") == "float-quantized":
        return
    found = " ".join(str(config[key]) for key in ("quant_method", "format") if key in config)
    raise NotImplementedError(
        f"config.json: quantization_config: weights quantized by {found} are not supported, only fp8"
    )


def header(file: Path) -> dict[str, Stored]:
    """The tensors of one file. Raises ValueError if it is truncated or damaged."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or not 2 <= length <= min(MAX_HEADER, size - 8):
            raise ValueError(
                f"{file}: not a safetensors file, or truncated: {size} bytes, a header of {length}"
            )
        try:
            entries = json.loads(opened.read(length))
            if not isinstance(entries, dict):
                raise TypeError(f"expected an object, found {type(entries).__name__}")
            entries.pop("__metadata__", None)
            found = {
                name: _stored(name, file, entry, 8 + length) for name, entry in entries.items()
            }
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{file}: damaged header: {error}") from None
    _check_offsets(file, found, 8 + length, size)
    return found


def _check_offsets(file: Path, tensors: Mapping[str, Stored], start: int, size: int) -> None:
    """Raises ValueError unless tensors follow one another without overlap, and end within the file."""
    end, before = start, ""
    for t in sorted(tensors.values(), key=lambda t: (t.offset, _nbytes(t))):
        if t.offset < end:
            raise ValueError(f"{file}: damaged header: tensors {before!r} and {t.name!r} overlap")
        end, before = t.offset + _nbytes(t), t.name
    if size < end:
        raise ValueError(f"{file}: truncated: expected {end} bytes, found {size}")


def _stored(name: str, file: Path, entry: Mapping[str, Any], start: int) -> Stored:
    shape = tuple(entry["shape"])
    first, last = entry["data_offsets"]
    if any(type(n) is not int or n < 0 for n in (*shape, first, last)):
        raise ValueError(f"tensor {name!r}: expected sizes, found {shape}, {first}, {last}")
    if entry["dtype"] not in SIZES:
        raise ValueError(f"tensor {name!r}: unknown type {entry['dtype']!r}")
    stored = Stored(name, file, entry["dtype"], shape, start + first)
    if last - first != _nbytes(stored):
        raise ValueError(
            f"tensor {name!r}: {stored.dtype} {shape} takes {_nbytes(stored)} bytes, found {last - first}"
        )
    return stored


def _nbytes(stored: Stored) -> int:
    return math.prod(stored.shape) * SIZES[stored.dtype]


def _decoded(raw: np.ndarray, dtype: str) -> np.ndarray:
    """float32"""
    if dtype == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    if dtype == "F8_E4M3":
        return _E4M3[raw]
    return raw.astype(np.float32, copy=False)


def _e4m3() -> np.ndarray:
    """The value of each byte: a sign, 4 bits of exponent with bias 7, 3 bits of fraction; all ones is NaN."""
    byte = np.arange(256)
    exponent, fraction = byte >> 3 & 15, byte & 7
    value = np.where(
        exponent == 0, fraction / 8 * 2.0**-6, (1 + fraction / 8) * 2.0 ** (exponent - 7)
    )
    value[byte & 127 == 127] = np.nan
    return np.where(byte < 128, value, -value).astype(np.float32)


_E4M3 = _e4m3()


def _files(folder: Path) -> list[Path]:
    """The safetensors files of the model. Raises ValueError if there are none, or one of them is missing."""
    index = folder / INDEX
    if index.exists():
        files = [folder / name for name in sorted(set(_weight_map(index).values()))]
    else:
        files = sorted(folder.glob("model*.safetensors"))
        files = [part for file in files[:1] for part in _siblings(file)] or files
    if not files:
        raise ValueError(f"{folder}: no model.safetensors found{_instead(folder)}")
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ValueError(
            f"{folder}: {len(missing)} of {len(files)} safetensors files are missing: "
            f"{', '.join(missing[:4])}"
        )
    return files


def _siblings(file: Path) -> list[Path]:
    """All the files that the name of one of them promises."""
    match = _SHARD.search(file.name)
    if match is None:
        return [file]
    stem = file.name[: match.start()]
    count = int(match[2])
    return [
        file.with_name(f"{stem}-{n:05d}-of-{match[2]}.safetensors") for n in range(1, count + 1)
    ]


def _instead(folder: Path) -> str:
    if any(folder.glob("*.bin")):
        return "; weights in .bin files are pickles, save them as safetensors first"
    return ""


def _weight_map(index: Path) -> dict[str, str]:
    """The name of the file of each tensor. Raises ValueError for anything else."""
    try:
        found = json.loads(index.read_bytes())["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{index}: expected JSON with a weight_map: {error}") from None
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{index}: weight_map: expected files by tensor, found {str(found)[:60]}")
    for name in found.values():
        if type(name) is not str or not name or Path(name).name != name:
            raise ValueError(f"{index}: expected names of files, found {name!r}")
    return found


def _check_index(folder: Path, tensors: Mapping[str, Stored]) -> None:
    """Raises ValueError if the index names tensors that the files do not have."""
    index = folder / INDEX
    missing = sorted(set(_weight_map(index)) - set(tensors)) if index.exists() else []
    if missing:
        raise ValueError(
            f"{folder}: {len(missing)} tensors of {INDEX} are in none of the files: {', '.join(missing[:4])}"
        )


def _with_scales(tensors: dict[str, Stored], block: list[int] | None) -> dict[str, Stored]:
    """The weights with their scales; other factors, which generation does not use, are left out."""
    scales = {}
    for name in tensors:
        suffix = next((s for s in SCALES if name.endswith(s)), None)
        if suffix is not None and name.removesuffix(suffix) in tensors:
            scales[name.removesuffix(suffix)] = name
    found = {}
    for name, stored in tensors.items():
        if name in scales:
            found[name] = _scaled(stored, tensors[scales[name]], block)
        elif name not in scales.values() and _UNUSED.search(name) is None:
            if stored.dtype == "F8_E4M3":
                raise ValueError(f"tensor {name!r}: fp8 without {name}_scale_inv or {name}_scale")
            found[name] = stored
    return found


def _scaled(weight: Stored, scale: Stored, block: list[int] | None) -> Stored:
    """Raises ValueError if the scales do not cover the weights."""
    if math.prod(scale.shape) == 1:
        sizes: tuple[int, ...] = weight.shape
    else:
        scales = (*scale.shape, *(1,) * (len(weight.shape) - len(scale.shape)))
        asked = (*(1,) * (len(weight.shape) - len(block or ())), *(block or ()))
        asked = asked if len(asked) == len(weight.shape) else (1,) * len(weight.shape)
        sizes = tuple(
            n if count == 1 else 1 if count == n else size
            for n, count, size in zip(weight.shape, scales, asked, strict=False)
        )
        covered = tuple(-(-n // size) for n, size in zip(weight.shape, sizes, strict=False))
        if covered != scales:
            raise ValueError(
                f"tensor {scale.name!r}: expected {covered} factors for {weight.shape} weights in "
                f"blocks of {block}, found {scale.shape}"
            )
    return Stored(weight.name, weight.file, weight.dtype, weight.shape, weight.offset, scale, sizes)
