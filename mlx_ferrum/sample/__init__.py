"""Choosing tokens: processors change logits, filters drop tokens, samplers draw one."""

from .arrays import log_softmax
from .filters import Filter, by_min_p, by_top_k, by_top_p, by_typical, by_xtc
from .keys import Keys
from .processors import Processor, bias, make_processors, penalties
from .samplers import Sampler, categorical, compose, greedy, make_sampler

__all__ = [
    "Filter",
    "Keys",
    "Processor",
    "Sampler",
    "bias",
    "by_min_p",
    "by_top_k",
    "by_top_p",
    "by_typical",
    "by_xtc",
    "categorical",
    "compose",
    "greedy",
    "log_softmax",
    "make_processors",
    "make_sampler",
    "penalties",
]
