"""The server's description of itself: valid, the same as what the endpoints read, and kept to whatever is asked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import hf_bert
import httpx
import pytest
import random_models
import schemathesis
from hypothesis import HealthCheck, given, settings
from jsonschema import Draft202012Validator
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks
from servers import TEMPLATE, Served, served
from starlette.routing import Route

from mlx_ferrum.server.app import ROUTES
from mlx_ferrum.server.errors import RequestError
from mlx_ferrum.server.fields import Fields
from mlx_ferrum.server.gate import Rules
from mlx_ferrum.server.ollama.fields import RENAMED
from mlx_ferrum.server.openapi.document import document
from mlx_ferrum.server.service import Limits

DOCUMENT = document([Route(path, ask, methods=[method]) for method, path, ask in ROUTES])
BODIES = {
    path: found["post"]["requestBody"]["content"]["application/json"]["schema"]
    for path, found in DOCUMENT["paths"].items()
    if "post" in found
}
SIZES = random_models.Sizes(layers=2, context=64)
load_all_checks()
CHECKS = schemathesis.checks.CHECKS.get_by_names(
    """not_a_server_error status_code_conformance content_type_conformance response_schema_conformance
    negative_data_rejection""".split()
)
EXAMPLES = 15


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("server")
    path = random_models.write(folder / "m.gguf", "llama", 7, sizes=SIZES, template=TEMPLATE)
    hf_bert.write(folder / "bert")
    encoder = hf_bert.converted(folder / "bert")
    limits = Limits(running=4, queue=4, body=100_000)
    with served(path, rules=Rules(body=100_000), limits=limits, encoder=encoder) as found:
        yield found


def test_description_is_published_and_valid(server: Served) -> None:
    found = server.http.get("/openapi.json").json()
    assert found == json.loads(json.dumps(DOCUMENT))
    schemathesis.openapi.from_dict(found).validate()
    described = {(m.upper(), path) for path, known in found["paths"].items() for m in known}
    assert described == {(m, re.sub(r":\w+}", "}", path)) for m, path, _ in ROUTES}


def examples(schema: dict[str, Any]) -> list[Any]:
    """Values of a schema: each property and each alternative at least once."""
    if "anyOf" in schema:
        return [value for each in schema["anyOf"] for value in examples(each)]
    if "enum" in schema:
        return list(schema["enum"])
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        known, names = schema.get("properties", {}), schema.get("required", [])
        base = {name: examples(known[name])[0] for name in names}
        more = [{**base, name: value} for name in known for value in examples(known[name])]
        if "patternProperties" in schema:
            more.append({"3": 1})
        return [base, *more]
    if kind == "array":
        return [[value] for value in examples(schema["items"])]
    found: dict[Any, list[Any]] = {
        "string": ["tiny"],
        "boolean": [True, False],
        "integer": [max(schema.get("minimum", 1), min(1, schema.get("maximum", 1)))],
        "number": [schema.get("maximum")],
        "null": [None],
        None: ["ignored"],
    }
    return found[kind]


class Reads:
    """What the endpoints ask `Fields` for."""

    def __init__(self) -> None:
        self.read: set[tuple[str, str, tuple[Any, ...]]] = set()  # place, method, its bounds
        self.ignored: set[str] = set()

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for method in (
            "get",
            "text",
            "flag",
            "number",
            "whole",
            "object",
            "items",
            "texts",
            "refuse",
        ):
            self._watch(monkeypatch, method)
        finish = Fields.finish

        def finished(fields: Fields, ignored: Any = ()) -> None:
            start = f"{fields.place}." if fields.place else ""
            self.ignored |= {start + name for name in ignored}
            finish(fields, ignored)

        monkeypatch.setattr(Fields, "finish", finished)

    def _watch(self, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
        original = getattr(Fields, method)

        def noted(fields: Fields, name: str, *args: Any, **named: Any) -> Any:
            place = f"{fields.place}.{name}" if fields.place else name
            bounds = args[1:] if method in ("number", "whole") else args
            shown = tuple(map(repr, bounds[0])) if method == "refuse" and bounds else bounds
            bounds = shown if method in ("number", "whole", "refuse") else ()
            self.read.add((re.sub(r"\[\d+]", "[]", place), method, tuple(bounds)))
            return original(fields, name, *args, **named)

        monkeypatch.setattr(Fields, method, noted)


def at(schema: dict[str, Any], place: str) -> list[dict[str, Any]]:
    """The schemas of a place such as messages[].role."""
    found = [schema]
    for step in place.replace("[]", ".[]").split("."):
        found = [each for known in found for each in alternatives(known)]
        found = [next_ for known in found for next_ in below(known, step)]
    return found


def alternatives(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return schema.get("anyOf", [schema])


def below(schema: dict[str, Any], step: str) -> list[dict[str, Any]]:
    if step == "[]":
        return [schema["items"]] if "items" in schema else []
    patterns = [s for p, s in schema.get("patternProperties", {}).items() if re.match(p, step)]
    known = schema.get("properties", {})
    return [known[step]] if step in known else patterns


def test_what_endpoints_read_is_what_is_described(server: Served, monkeypatch) -> None:
    for path, body in BODIES.items():
        reads = Reads()
        with monkeypatch.context() as patch:
            reads.watch(patch)
            patch.setattr(server.service, "submit", nothing_more)
            for value in examples(body):
                found = server.http.post(path, json=value)
                assert found.status_code < 500, (path, value, found.text)
        renamed = {"options." + ours: "options." + theirs for theirs, ours in RENAMED.items()}
        seen = {(renamed.get(place, place), method, bounds) for place, method, bounds in reads.read}
        ignored = {renamed.get(place, place) for place in reads.ignored}
        for place, method, bounds in seen:
            schemas = at(body, place)
            assert schemas, f"{path} reads {place}, which is not described"
            is_renamed = place in renamed.values()
            assert_same(f"{path} {place} {method}{bounds}", schemas, method, bounds, is_renamed)
        places = {place for place, *_ in seen} | ignored
        for place in described(body):
            assert place in places, f"{path} does not read {place}, which is described"
        for place in ignored:
            assert at(body, place), f"{path} ignores {place}, which is not described"


def nothing_more(*_: Any, **__: Any) -> None:
    raise RequestError("all is read")


def described(body: dict[str, Any]) -> set[str]:
    """Fields of a body, and Ollama's options."""
    options = body["properties"].get("options", {}).get("properties", {})
    return {*body["properties"], *(f"options.{name}" for name in options)}


def assert_same(
    what: str, schemas: list[dict[str, Any]], method: str, bounds: Any, is_renamed: bool
) -> None:
    """The bounds and types of a field are those with which it is read."""

    def accepts(value: Any) -> bool:
        return any(Draft202012Validator(schema).is_valid(value) for schema in schemas)

    wrong: dict[str, list[Any]] = {
        "text": [3, [], {}],
        "flag": ["neither", 3],
        "object": [3, "neither"],
        "texts": [3, {}],
        "items": [3, {}],
        "refuse": ["neither", 3.5],
    }
    right: list[Any] = (
        [json.loads(json.dumps(eval(b))) for b in bounds] if method == "refuse" else []
    )
    if method in ("number", "whole"):
        low, high = bounds
        wrong[method] = ["neither", {}, high + 1, *([] if is_renamed else [low - 1])]
        wrong[method] += [(low + high) / 2 + 0.3] if method == "whole" and high < 1000 else []
        right = [low, high]
    for value in wrong.get(method, []):
        assert not accepts(value), f"{what}: the description allows {value!r}"
    for value in right:
        assert accepts(value), f"{what}: the description forbids {value!r}"


SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
FOUND: list[Any] = list(SCHEMA.get_all_operations())
OPERATIONS = [found.ok() for found in FOUND]
MODES: list[Any] = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]
CASES: list[tuple[Any, Any]] = [
    (operation, mode)
    for operation in OPERATIONS
    for mode in MODES
    if mode.is_positive or operation.body
]


@pytest.mark.parametrize(
    ("operation", "mode"), CASES, ids=[f"{o.label}-{m.value}" for o, m in CASES]
)
def test_any_request_gets_a_documented_answer(server: Served, operation: Any, mode: Any) -> None:
    @settings(
        max_examples=EXAMPLES if operation.body else 3,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        response = case.call(base_url=server.url)
        assert_stream(case, response)
        case.validate_response(response, checks=CHECKS)

    ask()


def assert_stream(case: Any, response: Any) -> None:
    """What comes of a stream is what is described."""
    kind = response.headers.get("content-type", [""])[0].partition(";")[0]
    if response.status_code != 200 or kind not in ("text/event-stream", "application/x-ndjson"):
        return
    operation = DOCUMENT["paths"][case.operation.path][case.method.lower()]
    schema = operation["responses"]["200"]["content"][kind]["schema"]
    text = response.content.decode()
    if kind == "application/x-ndjson":
        for line in text.splitlines():
            Draft202012Validator(schema).validate(json.loads(line))
        return
    for part in text.split("\n\n"):
        if part and not part.startswith(":"):
            assert_event(schema["properties"]["data"], part)


def assert_event(schema: dict[str, Any], text: str) -> None:
    *_, data = text.split("\n")
    assert data.startswith("data: "), text
    [encoded] = [each for each in alternatives(schema) if "contentSchema" in each]
    if not any(data[6:] in each.get("enum", ()) for each in alternatives(schema)):
        Draft202012Validator(encoded["contentSchema"]).validate(json.loads(data[6:]))


def test_streams_are_as_described(server: Served) -> None:
    message = [{"role": "user", "content": "a"}]
    bodies: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": message, "logprobs": True, "top_logprobs": 2},
        "/v1/completions": {"prompt": "a", "logprobs": 2, "echo": True},
        "/v1/responses": {"input": "a", "include": ["message.output_text.logprobs"]},
        "/v1/messages": {"model": "tiny", "messages": message, "max_tokens": 4},
        "/api/chat": {"messages": message},
        "/api/generate": {"prompt": "a"},
    }
    for path, body in bodies.items():
        with httpx.stream("POST", server.url + path, json={**body, "stream": True}) as found:
            found.read()
            assert found.status_code == 200, found.text
        case = SCHEMA[path]["POST"].Case()
        assert_stream(case, schemathesis.Response.from_any(found))
