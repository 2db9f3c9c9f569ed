"""Write a trained model as a GGUF file, and say what that cost in held-out loss.

    python training/export.py tiny-moe kjv.txt tiny_moe.pt tiny-moe.gguf

Q4_K, but Q6_K where an error costs most (embeddings, which are also the head, values, and what a feed-forward
part adds to the sum) and F32 for norms and other small tensors; `--type F32` writes everything so. The loss is
that of the file, read back by gguf-py and run by transformers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import corpus
import gguf
import numpy as np
import qwen3moe
import qwen35
import tiny_hybrid
import tiny_moe
import torch
import vocabulary
from loop import CONTEXT, VOCABULARY, figures, held_out_loss
from names import Tensors
from tokenizers import Tokenizer

from mlx_ferrum import blocks


class Architecture(Protocol):
    """A module that writes and reads one architecture. Tensors whose name holds a part of `Q6_K` get that type."""

    ARCHITECTURE: str
    Q6_K: tuple[str, ...]
    F32: tuple[str, ...]

    def add_sizes(self, writer: gguf.GGUFWriter, config: Any) -> None: ...
    def to_gguf(self, state: Tensors, config: Any) -> dict[str, np.ndarray]: ...
    def from_gguf(self, tensors: Tensors, config: Any) -> dict[str, np.ndarray]: ...


class Model(NamedTuple):
    """A model that was trained. make: the model before training."""

    description: str
    make: Callable[[], torch.nn.Module]
    architecture: Architecture

    def with_weights(self, state: dict[str, torch.Tensor]) -> torch.nn.Module:
        """The model with these weights, none missing and none left over."""
        model = self.make()
        model.load_state_dict(state)
        return model


MODELS = {
    "tiny-moe": Model(
        "A mixture of experts trained on the King James Bible, to show and test routing",
        tiny_moe.model,
        qwen3moe,
    ),
    "tiny-hybrid": Model(
        "Gated delta nets and attention trained on the King James Bible, to show and test both",
        tiny_hybrid.model,
        qwen35,
    ),
}


def block_type(name: str, architecture: Architecture, wanted: str) -> type[blocks.Block]:
    """The type of a tensor, by name, in a file of type `wanted`."""
    if wanted == "F32" or any(part in name for part in architecture.F32):
        return blocks.F32
    return blocks.Q6_K if any(part in name for part in architecture.Q6_K) else blocks.Q4_K


def write(path: Path, name: str, tensors: Tensors, tokenizer: Tokenizer, wanted: str) -> None:
    """Write the file; it appears under its name when it is complete."""
    model = MODELS[name]
    part = path.with_name(path.name + ".part")
    writer = gguf.GGUFWriter(part, model.architecture.ARCHITECTURE)
    add_metadata(writer, name)
    add_vocabulary(writer, tokenizer)
    for key, array in tensors.items():
        block = block_type(key, model.architecture, wanted)
        kind = gguf.GGMLQuantizationType[block.name]
        data = array if block is blocks.F32 else block.quantize(array)
        writer.add_tensor(key, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.replace(path)


def add_metadata(writer: gguf.GGUFWriter, name: str) -> None:
    """What the file is, and the sizes of the model."""
    model = MODELS[name]
    sizes = model.make().config
    writer.add_name(name)
    writer.add_description(model.description)
    writer.add_license("MIT")
    writer.add_languages(["en"])
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(sizes.hidden_size)
    writer.add_block_count(sizes.num_hidden_layers)
    writer.add_head_count(sizes.num_attention_heads)
    writer.add_head_count_kv(sizes.num_key_value_heads)
    writer.add_key_length(sizes.head_dim)
    writer.add_value_length(sizes.head_dim)
    writer.add_layer_norm_rms_eps(sizes.rms_norm_eps)
    writer.add_rope_freq_base(sizes.rope_parameters["rope_theta"])
    model.architecture.add_sizes(writer, sizes)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def add_vocabulary(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    """Tokens and merges; a text begins with the token that ended the chapter before."""
    model = json.loads(tokenizer.to_str())["model"]
    end = tokenizer.token_to_id(vocabulary.END)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([str(tokenizer.id_to_token(i)) for i in range(VOCABULARY)])
    kinds = [gguf.TokenType.NORMAL] * VOCABULARY
    kinds[end] = gguf.TokenType.CONTROL
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_add_bos_token(True)


def read(path: Path, model: Model) -> torch.nn.Module:
    """The model in a file, its weights dequantized by gguf-py."""
    tensors = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in gguf.GGUFReader(path).tensors
    }
    state = model.architecture.from_gguf(tensors, model.make().config)
    return model.with_weights({key: torch.from_numpy(a.copy()) for key, a in state.items()})


def main() -> int:
    """Export, and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("corpus", type=Path, help="the text, as corpus.py describes")
    parser.add_argument("checkpoint", type=Path, help="what training the model wrote")
    parser.add_argument("file", type=Path, help="GGUF file to write")
    parser.add_argument("--type", choices=("Q4_K", "F32"), default="Q4_K")
    args = parser.parse_args()
    model = MODELS[args.model]
    text = corpus.read(args.corpus)
    tokenizer = vocabulary.train(text.train, VOCABULARY)
    state = torch.load(args.checkpoint)["model"]
    trained = model.with_weights(state)
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    write(
        args.file,
        args.model,
        model.architecture.to_gguf(arrays, trained.config),
        tokenizer,
        args.type,
    )
    tokens = np.array(vocabulary.encode(tokenizer, text.held_out))
    nbytes = sum(map(len, text.held_out))
    for name, module in (("checkpoint", trained), (args.file.name, read(args.file, model))):
        print(f"{name}: held out {figures(held_out_loss(module, tokens), len(tokens) - 1, nbytes)}")
    print(f"{args.file}: {args.file.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
