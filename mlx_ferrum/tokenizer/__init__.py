"""Tokenizers from GGUF metadata alone.

vocabulary.py     tokens, types and special ids, checked; what ends generation
kinds.py          `tokenizer.ggml.model`: which encoder and decoder belong together
special.py        special tokens in text
pretokenizers.py  `tokenizer.ggml.pre`: how text is cut into words; splitting.py cuts
bpe.py spm.py wordpiece.py   words to ids; merging.py the loop that the first two share
detokenizer.py    ids to text
model.py          Tokenizer
"""

from .detokenizer import StreamingDetokenizer
from .model import Tokenizer
from .vocabulary import FillTokens

__all__ = ["FillTokens", "StreamingDetokenizer", "Tokenizer"]
