"""A byte-level BPE vocabulary from text, cut into words as Qwen's (`tokenizer.ggml.pre` of "qwen2")."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|endoftext|>"  # before each chapter and after the last
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train(texts: Sequence[str], size: int) -> Tokenizer:
    """A vocabulary of `size` tokens: 256 bytes, merges, and `END`, the last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([END])
    if tokenizer.token_to_id(END) != size - 1:
        raise ValueError(f"too little text for {size} tokens: {tokenizer.get_vocab_size()} found")
    return tokenizer


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    """All texts in one row of tokens, each after an `END`, and one at the end."""
    end = tokenizer.token_to_id(END)
    ids = [end]
    for encoding in tokenizer.encode_batch(list(texts)):
        ids += [*encoding.ids, end]
    return ids
