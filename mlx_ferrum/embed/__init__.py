"""Embeddings of texts by an encoder such as BERT."""

from .texts import embed

__all__ = ["embed"]
