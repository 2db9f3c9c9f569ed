"""How the tokens of a request are chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_ferrum.sample import Processor, make_processors
from mlx_ferrum.structured import Grammar

from .fields import Fields

SEEDS = 2**63
DEFAULTS = {"temp": 1.0}  # OpenAI's
STOPS = 64


@dataclass
class Sampling:
    """Arguments of `engine.Request`.

    sampler: arguments of `make_sampler`
    limit: tokens at most; None: as many as fit
    stop: strings that end the text
    calls: of tools, at most; the text ends before another one
    """

    sampler: dict[str, Any]
    processors: list[Processor]
    limit: int | None = None
    stop: list[str] = field(default_factory=list)
    bias: dict[int, float] = field(default_factory=dict)
    ignore_eos: bool = False
    constraint: Grammar | None = None
    calls: int | None = None


def read(fields: Fields, recommended: Mapping[str, Any], *limits: str, least: int = 1) -> Sampling:
    """Sampling from OpenAI's fields and those that other servers have besides.

    recommended: what holds where the request does not say otherwise
    limits: names of the field that limits the length, the first one found counts
    least: tokens that it may be
    """
    values = {**DEFAULTS, **recommended}
    named = {
        "temp": fields.number("temperature", values["temp"], 0, 100),
        "top_p": fields.number("top_p", values.get("top_p", 1.0), 0, 1),
        "top_k": max(0, fields.whole("top_k", values.get("top_k", 0), -1, 2**31)),
        "min_p": fields.number("min_p", values.get("min_p", 0.0), 0, 1),
        "typical_p": fields.number("typical_p", 1.0, 0, 1),
        "seed": fields.whole("seed", None, -SEEDS, 2 * SEEDS - 1),
    }
    if named["seed"] is not None:
        named["seed"] %= SEEDS
    others = ("xtc_probability", "xtc_threshold")
    return Sampling(
        sampler={**{name: values[name] for name in others if name in values}, **named},
        processors=penalties(fields, values),
        limit=_limit(fields, limits, least),
        stop=stops(fields, "stop"),
        bias=_bias(fields),
        ignore_eos=fields.flag("ignore_eos"),
    )


def penalties(
    fields: Fields, values: Mapping[str, Any], repetition: str = "repetition_penalty"
) -> list[Processor]:
    """The processors that weaken repetition. repetition: the name of that field."""
    return make_processors(
        repetition_penalty=fields.number(
            repetition, values.get("repetition_penalty", 1.0), 0.01, 100
        ),
        presence_penalty=fields.number("presence_penalty", 0.0, -2, 2),
        frequency_penalty=fields.number("frequency_penalty", 0.0, -2, 2),
        penalty_window=fields.whole("penalty_window", values.get("penalty_window", 64), 0, 2**31),
    )


def stops(fields: Fields, name: str) -> list[str]:
    """Stop strings, none of them empty."""
    found = fields.texts(name)
    if len(found) > STOPS or not all(found):
        raise fields.error(name, found, f"at most {STOPS} strings, none of them empty")
    return found


def _limit(fields: Fields, names: Sequence[str], least: int) -> int | None:
    found = [fields.whole(name, None, least, 2**31) for name in names]
    return next((limit for limit in found if limit is not None), None)


def _bias(fields: Fields) -> dict[int, float]:
    found: dict[int, float] = {}
    object = fields.object("logit_bias")
    for name in fields.get("logit_bias", {}):
        if not name.isdecimal() or len(name) > 10:
            raise object.error(name, name, "the id of a token")
        found[int(name)] = object.number(name, 0.0, -100, 100)
    # OpenAI: -100 bans a token, 100 makes it the only one
    return {id: -float("inf") if value == -100 else value for id, value in found.items()}
