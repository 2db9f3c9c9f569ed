"""Write what tiny_moe.py trained as a GGUF file, and say what that cost in held-out loss.

    python training/export.py kjv.txt tiny_moe.pt tiny-moe.gguf

Q4_K, but Q6_K where an error costs most (embeddings, which are also the head, values, and what experts add
to the sum) and F32 for norms and router; `--type F32` writes everything so. The loss is that of the file, read back by
gguf-py and run by transformers.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import corpus
import gguf
import names
import numpy as np
import torch
import transformers
import vocabulary
from tiny_moe import CONTEXT, VOCABULARY, config, figures, held_out_loss
from tokenizers import Tokenizer

from mlx_ferrum import blocks

ARCHITECTURE = "qwen3moe"
Q6_K = ("token_embd", "attn_v", "ffn_down_exps")
F32 = ("norm", "ffn_gate_inp")


def block_type(name: str, wanted: str) -> type[blocks.Block]:
    """Of a tensor, by name, in a file of type `wanted`."""
    if wanted == "F32" or any(part in name for part in F32):
        return blocks.F32
    return blocks.Q6_K if any(part in name for part in Q6_K) else blocks.Q4_K


def write(path: Path, tensors: dict[str, np.ndarray], tokenizer: Tokenizer, wanted: str) -> None:
    """Write the file; it appears under its name when it is complete."""
    part = path.with_name(path.name + ".part")
    writer = gguf.GGUFWriter(part, ARCHITECTURE)
    add_metadata(writer)
    add_vocabulary(writer, tokenizer)
    for name, array in tensors.items():
        block = block_type(name, wanted)
        kind = gguf.GGMLQuantizationType[block.name]
        data = array if block is blocks.F32 else block.quantize(array)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.replace(path)


def add_metadata(writer: gguf.GGUFWriter) -> None:
    """What the file is, and the sizes of the model."""
    sizes = config()
    writer.add_name("tiny-moe")
    writer.add_description(
        "A mixture of experts trained on the King James Bible, to show and test routing"
    )
    writer.add_license("MIT")
    writer.add_languages(["en"])
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(sizes.hidden_size)
    writer.add_block_count(sizes.num_hidden_layers)
    writer.add_feed_forward_length(sizes.moe_intermediate_size)
    writer.add_head_count(sizes.num_attention_heads)
    writer.add_head_count_kv(sizes.num_key_value_heads)
    writer.add_key_length(sizes.head_dim)
    writer.add_value_length(sizes.head_dim)
    writer.add_layer_norm_rms_eps(sizes.rms_norm_eps)
    writer.add_rope_freq_base(sizes.rope_parameters["rope_theta"])
    writer.add_expert_count(sizes.num_experts)
    writer.add_expert_used_count(sizes.num_experts_per_tok)
    writer.add_expert_feed_forward_length(sizes.moe_intermediate_size)
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


def read(path: Path) -> transformers.Qwen3MoeForCausalLM:
    """The model in a file, its weights dequantized by gguf-py."""
    tensors = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in gguf.GGUFReader(path).tensors
    }
    return model_of(
        {key: torch.from_numpy(a.copy()) for key, a in names.from_gguf(tensors).items()}
    )


def model_of(state: dict[str, torch.Tensor]) -> transformers.Qwen3MoeForCausalLM:
    """The model with these weights, none missing and none left over."""
    model = transformers.Qwen3MoeForCausalLM(config())
    model.load_state_dict(state)
    return model


def main() -> int:
    """Export, and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path, help="the text, as corpus.py describes")
    parser.add_argument("checkpoint", type=Path, help="of tiny_moe.py")
    parser.add_argument("file", type=Path, help="GGUF file to write")
    parser.add_argument("--type", choices=("Q4_K", "F32"), default="Q4_K")
    args = parser.parse_args()
    text = corpus.read(args.corpus)
    tokenizer = vocabulary.train(text.train, VOCABULARY)
    state = torch.load(args.checkpoint)["model"]
    tensors = names.to_gguf({name: tensor.numpy() for name, tensor in state.items()})
    write(args.file, tensors, tokenizer, args.type)
    tokens = np.array(vocabulary.encode(tokenizer, text.held_out))
    nbytes = sum(map(len, text.held_out))
    for name, model in (("checkpoint", model_of(state)), (args.file.name, read(args.file))):
        print(f"{name}: held out {figures(held_out_loss(model, tokens), len(tokens) - 1, nbytes)}")
    print(f"{args.file}: {args.file.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
