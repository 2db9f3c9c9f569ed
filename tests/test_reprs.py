"""What a notebook shows of an object: a line that says something, made without computing or decoding."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import hf_bert
import mlx.core as mx
import numpy as np
import pytest
import random_models
from random_models import Sizes

import mlx_ferrum
from mlx_ferrum import amounts, blocks, gguf, ops, stream_generate
from mlx_ferrum.chat import Conversation
from mlx_ferrum.convert import importance, quantizing, source
from mlx_ferrum.convert.command import main as convert
from mlx_ferrum.generate import PromptCache
from mlx_ferrum.tensor import QTensor

LONGEST = 120  # characters


def line(value: object) -> str:
    """Its repr, which must be one short line."""
    text = repr(value)
    assert len(text) <= LONGEST and len(text.splitlines()) == 1, text
    return text


def test_models(cpu: Any, smollm2: Any, gemma3: Any) -> None:
    assert (
        line(smollm2[0]) == "llama(30 layers, 576 wide, Q4_1 + Q8_0, 135 M parameters, 97 MB, cpu)"
    )
    wanted = "gemma3(18 layers, 640 wide, Q8_0 + Q5_0 + Q4_K + Q6_K, 268 M parameters, 247 MB, cpu)"
    assert line(gemma3[0]) == wanted
    wanted = (
        "qwen3moe(4 layers, 256 wide, 2 of 8 experts, Q4_K + Q6_K, 7.6 M parameters, 5.0 MB, cpu)"
    )
    assert line(mlx_ferrum.load("tiny-moe")[0]) == wanted
    assert line(smollm2[0].body) == "LlamaModel(30 layers)"


def test_a_model_is_shown_without_its_backend_before_that_is_chosen(
    smollm2: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "_active", None)
    assert line(smollm2[0]).endswith("97 MB)")
    assert ops._active is None, "a repr starts no backend"


def test_layers_name_the_types_of_their_weights(smollm2: Any) -> None:
    assert line(smollm2[0].output) == "QLinear(Q8_0, (49152, 576))"
    experts = mlx_ferrum.load("tiny-moe")[0].body.layers[0].mlp
    assert line(experts) == "Experts(2 of 8, Q4_K + Q6_K, (256, 256))"
    assert len(repr(smollm2[0].body.layers[0])) < 1000


def test_tokenizers(smollm2: Any, gemma3: Any) -> None:
    wanted = (
        "Tokenizer(BytePair, 49,152 tokens, begin '<|im_start|>', end '<|im_end|>', chat template)"
    )
    assert line(smollm2[1]) == wanted
    assert line(gemma3[1]) == "Tokenizer(SentencePiece, 262,144 tokens, begin '<bos>', end '<eos>')"


def test_the_text_of_a_special_token_is_shortened(tmp_path: Path) -> None:
    path = random_models.write(tmp_path / "m.gguf", "llama", 1, sizes=Sizes(layers=1))
    tokenizer = mlx_ferrum.load(path)[1]
    tokenizer.tokens = ["\n" * 500] * tokenizer.vocab_size
    tokenizer.eos_token_id = 7
    assert r"end '\n\n" in line(tokenizer) and line(tokenizer).endswith("…)")


def test_caches(cpu: Any, smollm2: Any, gemma3: Any) -> None:
    for (model, _), name in ((smollm2, ""), (gemma3, ", windows of 512")):
        cache, layers = model.make_cache(), model.args.num_layers
        assert line(cache) == f"Cache({layers} layers{name}, 0 positions, 0 B)"
        model(mx.array([[1, 2, 3]]), cache=cache)
        size = amounts.size(sum(x.nbytes for x in cache.arrays))
        assert line(cache) == f"Cache({layers} layers{name}, 3 positions, {size})"
    several = smollm2[0].make_cache()
    smollm2[0](mx.array([[1], [2]]), cache=several)
    assert line(several).startswith("Cache(30 layers, 2 sequences, 1 positions, ")


def test_responses_have_no_log_probabilities(smollm2: Any) -> None:
    model, tokenizer = smollm2
    steps = stream_generate(model, tokenizer, "1 2 3 4", 2, top_logprobs=5)
    found = [line(response) for response in steps]
    assert found[0].startswith("GenerationResponse(text=' ', token=216, 1 tokens at 0.0 tok/s)")
    assert "2 tokens at " in found[1] and found[1].endswith("tok/s, finish_reason='length')")
    assert "finish_reason" not in found[0]


def test_tensors_and_files(smollm2_path: Path) -> None:
    tensor = QTensor(blocks.Q4_0, (4, 64), np.zeros(144, np.uint8))
    assert line(tensor) == "QTensor(Q4_0, (4, 64))"
    named = QTensor(blocks.Q4_0, (4, 64), np.zeros(144, np.uint8), name="blk.0.attn_q.weight")
    assert line(named) == "QTensor(blk.0.attn_q.weight, Q4_0, (4, 64))"
    file = gguf.read(smollm2_path)
    assert line(file) == f"GGUF('{smollm2_path.name}', 33 values, 272 tensors, 98 MB)"
    assert line(file.files[0]) == f"MappedFile('{smollm2_path.name}', 98 MB)"


def test_conversations_and_prompt_caches(smollm2: Any) -> None:
    chat = Conversation(*smollm2, max_tokens=3)
    assert line(chat) == "Conversation(0 turns, a context of 8192 tokens)"
    for _ in chat.reply("Hi").pieces:
        pass
    assert line(chat).startswith("Conversation(1 turn, a context of ")
    assert line(PromptCache(smollm2[0])).startswith("PromptCache(0 tokens, Cache(30 layers, ")


def test_conversions(tmp_path: Path) -> None:
    plan = quantizing.plan(source.read("tiny-moe"), quantizing.Options("q8_0"))
    assert line(plan).startswith("Plan(29 of Q8_0, 21 of F32, ") and line(plan).endswith(" MB)")
    columns = {f"blk.{i}.attn_q.weight": np.ones(256, np.float32) for i in range(40)}
    found = importance.Importance(tmp_path / "i.gguf", columns, chunks=7)
    assert line(found) == "Importance('i.gguf', 40 tensors, 7 chunks)"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        *((0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (9_949_999, "9.9 MB")),
        *((9_950_000, "10 MB"), (999_400_000, "999 MB"), (999_500_000, "1.0 GB")),
        *((4_900_000_000, "4.9 GB"), (3_000_000_000_000_000, "3000 TB")),
    ],
)
def test_sizes(number: int, text: str) -> None:
    assert amounts.size(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(12_345, "12,345"), (7_600_000, "7.6 M"), (134_515_008, "135 M"), (999_600_000, "1.0 B")],
)
def test_counts(number: int, text: str) -> None:
    assert amounts.count(number) == text


def test_encoders(tmp_path: Path) -> None:
    hf_bert.write(tmp_path / "bert")
    out = tmp_path / "bert.gguf"
    assert convert(["hf", str(tmp_path / "bert"), str(out), "--type", "f32"]) == 0
    model, _ = mlx_ferrum.load(out)
    assert re.fullmatch(
        r"bert\(\d layers, \d+ wide, mean of up to \d+ tokens, F32, .*\)", line(model)
    )
