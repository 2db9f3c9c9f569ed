"""The page at `/`, in headless Chromium."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest
import random_models
from browser import DRIVER, ENTER, ESCAPE, Browser, driven
from servers import TEMPLATE, Served, served, write
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from mlx_ferrum.server import app
from mlx_ferrum.server.gate import Rules
from mlx_ferrum.server.page import index

chromium = pytest.mark.skipif(DRIVER is None, reason="needs chromedriver")
IDLE = "!document.body.classList.contains('busy')"
LAST = "#log article:last-child"
CONTEXT = 100_000  # tokens: a text that nobody stops runs for minutes


class Script:
    """What replaces the model.

    deltas: of the next replies; go: whether the last delta is sent; end: what comes after it
    error: a status and a message instead of all this
    asked: the bodies of all requests
    """

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.says()

    def says(self, *texts: str) -> None:
        """Reply with these pieces of text."""
        self.deltas: list[dict[str, Any]] = [{"content": text} for text in texts]
        self.error: tuple[int, str] | None = None
        self.end = "data: [DONE]\n\n"
        self.go = threading.Event()
        self.go.set()

    async def chat(self, request: Request) -> Response:
        """`/v1/chat/completions`."""
        self.asked.append(await request.json())
        if self.error:
            return JSONResponse({"error": {"message": self.error[1]}}, self.error[0])
        return StreamingResponse(self._events(), media_type="text/event-stream")

    async def _events(self) -> AsyncIterator[str]:
        for i, delta in enumerate([{"role": "assistant", "content": ""}, *self.deltas, {}]):
            while i == len(self.deltas) and not self.go.is_set():
                await anyio.sleep(0.005)
            choice = {"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}
            yield f"data: {json.dumps({'choices': [choice]})}\n\n"
        yield self.end


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("page") / "m.gguf")


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Served]:
    path = tmp_path_factory.mktemp("page") / "long.gguf"
    sizes = random_models.Sizes(layers=2, context=CONTEXT)
    random_models.write(path, "llama", 7, sizes=sizes, template=TEMPLATE)
    with served(path, blocks=CONTEXT // 16) as found:
        yield found


@pytest.fixture(scope="module")
def scripted(file) -> Iterator[tuple[str, Script]]:
    """The URL of a server whose replies are scripted."""
    script = Script()
    routes: list[Any] = [
        (method, path, script.chat if path == "/v1/chat/completions" else function)
        for method, path, function in app.ROUTES
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "ROUTES", routes)
        with served(file) as found:
            yield found.url, script


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    with driven(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture
def page(browser: Browser) -> Iterator[Browser]:
    """A browser that asks no foreign host, and finds nothing that a policy forbids."""
    browser.log(), browser.requested()
    yield browser
    hosts = {urlsplit(url).hostname for url in browser.requested() if not url.startswith("data:")}
    assert hosts <= {"127.0.0.1", "test.localhost"}
    assert not [line for line in browser.log() if "Failed to load resource" not in line]


def fresh(page: Browser, url: str) -> None:
    """Open the page as someone who was never there."""
    page.open(url)
    page.run("messages = []; localStorage.clear(); sessionStorage.clear()")
    page.open(url)
    page.until("$('model').options.length")


def say(page: Browser, text: str) -> None:
    page.type("#prompt", text + ENTER)
    page.until(f"{IDLE} || messages.length > 1")


def set_fields(page: Browser, **values: str) -> None:
    """Fill in the settings."""
    page.click("#open")
    for id, value in values.items():
        page.type(f"#{id}", value)
    page.click("#settings .primary")


def test_the_page_is_small_and_comes_with_its_policy(server: Served) -> None:
    answer = server.http.get("/")
    assert answer.content == Path(index.__file__).with_name("index.html").read_bytes()
    assert len(answer.content) < 30_000 and b"https://" not in answer.content
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy
    tag = answer.headers["etag"]
    for given, status in ((tag, 304), (f'"x", W/{tag}', 304), ("*", 304), ('"x"', 200)):
        assert server.http.get("/", headers={"if-none-match": given}).status_code == status


@chromium
def test_a_reply_of_the_model(page: Browser, server: Served) -> None:
    fresh(page, server.url)
    set_fields(page, temperature="0", max_tokens="12")
    say(page, "hi")
    page.until(IDLE)
    asked: Any = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 12}
    whole = server.openai.chat.completions.create(model="tiny", temperature=0, **asked)
    assert page.run("return messages[1].text") == whole.choices[0].message.content
    assert page.text(".note").startswith("12 tokens · ") and "tokens/s" in page.text(".note")


@chromium
def test_a_reply_appears_while_it_is_made(page: Browser, scripted) -> None:
    url, script = scripted
    fresh(page, url)
    script.says("Some *wor", "ds*")
    script.go.clear()
    say(page, "hi")
    page.until(
        "document.querySelector(arguments[0])?.textContent === 'Some *wor'", f"{LAST} > .body"
    )
    assert page.run("return $('send').hidden && !$('stop').hidden && $('log').ariaBusy === 'true'")
    script.go.set()
    page.until(IDLE)
    assert page.run("return document.querySelector('article em').textContent") == "words"


CASES = [
    ("# A *b*", "<h2>A <em>b</em></h2>"),
    (
        "a **b** _c_ ~~d~~ `e*f*`",
        "<p>a <strong>b</strong> <em>c</em> <del>d</del> <code>e*f*</code></p>",
    ),
    ("***a*** 2 * 3 * 4 a_b_c \\*d*", "<p><strong><em>a</em></strong> 2 * 3 * 4 a_b_c *d*</p>"),
    ("a\nb\n\nc", "<p>a\nb</p><p>c</p>"),
    ("- a\n  - b\n- c", "<ul><li>a<ul><li>b</li></ul></li><li>c</li></ul>"),
    ("3. a\n\n   b\n4. c", '<ol start="3"><li>a<p>b</p></li><li>c</li></ol>'),
    ("a\n1990. b", "<p>a\n1990. b</p>"),
    ("> a\n> > b", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>"),
    ("---\n***", "<hr><hr>"),
    ("<b>&lt;</b>", "<p>&lt;b&gt;&amp;lt;&lt;/b&gt;</p>"),
    ("[a](ftp://b) ![c](data:d)", "<p>[a](ftp://b) ![c](data:d)</p>"),
]


def rendered(page: Browser, text: str) -> str:
    script = "const root = document.createElement('div'); render(root, arguments[0]); return root.innerHTML"
    return str(page.run(script, text))


@chromium
def test_markdown(page: Browser, scripted) -> None:
    page.open(scripted[0])
    assert [rendered(page, text) for text, _ in CASES] == [html for _, html in CASES]
    link = '<a href="https://b/(c)" target="_blank" rel="noopener noreferrer">a</a>'
    assert rendered(page, "[a](https://b/(c))") == f"<p>{link}</p>"
    bare = link.replace("/(c)", "/c_d_").replace(">a<", ">https://b/c_d_<")
    assert rendered(page, "(https://b/c_d_.)") == f"<p>({bare}.)</p>"
    code = rendered(page, "1. a\n   ```c<d\n   x\n     y\n   ```\nb")
    assert (
        "<span>c&lt;d</span>" in code
        and "<code>x\n  y</code>" in code
        and code.endswith("</ol><p>b</p>")
    )
    table = rendered(page, "a | b\n--|:-:\n`c` | d\\|e")
    assert "<tr><th>a</th><th>b</th></tr>" in table
    assert "<tr><td><code>c</code></td><td>d|e</td></tr>" in table


HOSTILE = """<script>window.hit = 1</script><img src=x onerror="window.hit = 1"><iframe src="https://evil.test"></iframe>
[a](javascript:window.hit=1) [b](JaVaScRiPt:window.hit=1) [c](&#106;avascript:window.hit=1)
<a href="javascript:hit=1">d</a>
![e](https://evil.test/x.png) [f](https://evil.test/" onclick="window.hit=1) [g](data:text/html,<script>hit=1</script>)
<style>* { display: none }</style>
<base href="https://evil.test"><meta http-equiv="refresh" content="0;url=https://evil.test">

```html"><script>window.hit = 1</script>
</code></pre><script>window.hit = 1</script>"""


@chromium
def test_hostile_text_does_nothing(page: Browser, scripted) -> None:
    url, script = scripted
    fresh(page, url)
    cuts = sorted(random.Random(3).sample(range(len(HOSTILE)), 40))
    pieces = [HOSTILE[i:j] for i, j in zip([0, *cuts], [*cuts, len(HOSTILE)], strict=True)]
    script.says(*pieces)
    script.deltas[:0] = [{"reasoning_content": HOSTILE}]
    calls = [{"index": 0, "function": {"name": HOSTILE, "arguments": HOSTILE}}]
    script.deltas.append({"tool_calls": calls})
    page.run("$('prompt').value = arguments[0]", HOSTILE)
    say(page, "")
    page.until(IDLE)
    page.open(url)  # and again, from what the browser kept
    page.until(f"document.querySelector('{LAST} .calls').textContent")
    found = page.run(
        "return [...document.querySelectorAll('#log *')].flatMap(e => [e.tagName,"
        " ...[...e.attributes].map(a => `${a.name}=${a.value}`)])"
    )
    forbidden = (
        "SCRIPT",
        "IMG",
        "IFRAME",
        "STYLE",
        "BASE",
        "META",
        "on",
        "src",
        "style",
        "href=j",
        "href=d",
    )
    assert not [each for each in found if each.startswith(forbidden)]
    assert "href=https://evil.test/x.png" in found  # the one that may be a link
    assert page.run("return [typeof hit, document.title, location.href]") == [
        "undefined",
        "mlx_ferrum",
        f"{url}/",
    ]
    assert "</pre><script>window.hit = 1</script>" in page.text(f"{LAST} > .body pre")
    assert page.run("return messages[1].text") == HOSTILE


LONG = [
    "*a ",
    "**",
    "_",
    "`",
    "`` ",
    "[",
    "[a](",
    "~",
    "> ",
    "- ",
    "  ",
    "|",
    "|-",
    "#",
    "\\",
    "http://",
    "a",
    "1. ",
    "\n",
    "((",
]


@chromium
def test_long_text_is_rendered_in_linear_time(page: Browser, scripted) -> None:
    page.open(scripted[0])
    for piece in LONG:
        # cut off by the driver after 30 seconds: a quadratic scan of 200,000 characters takes longer
        rendered(page, piece * (200_000 // len(piece)) + "x")
    rendered(page, "".join("`" * n + " " for n in range(1, 600)))
    rendered(page, "- a\n" * 3000 + "\n".join(" " * n + "- a" for n in range(600)))


@chromium
@pytest.mark.parametrize("seed", range(3))
def test_a_stream_is_rendered_as_the_whole(page: Browser, scripted, seed: int) -> None:
    page.open(scripted[0])
    draw = random.Random(seed)
    marks = "a b1 * ** _ ` ``` ~~ [ ]( ) https://c | --- - 1. > # \\ !"
    parts = [*marks.split(), *[" ", "\n"] * 3, "  ", "\n\n"]
    texts = ["".join(draw.choices(parts, k=40)) for _ in range(150)]
    script = """const wrong = [];
    for (const text of arguments[0]) {
      const one = document.createElement("div"), two = document.createElement("div");
      for (let i = 0; i <= text.length; i += 3) render(one, text.slice(0, i));
      render(one, text);
      render(two, text);
      const letters = s => s.replace(/[^ab]/g, "").length;
      const shown = one.textContent.replaceAll("Copy", "");
      if (one.innerHTML !== two.innerHTML || letters(shown) > letters(text)) wrong.push(text);
    }
    return wrong"""
    assert page.run(script, texts) == []


@chromium
@pytest.mark.parametrize("way", ["button", "key", "new chat", "reload"])
def test_stop_frees_the_text_on_the_server(page: Browser, server: Served, way: str) -> None:
    fresh(page, server.url)
    set_fields(page, temperature="0")
    say(page, "hi")
    page.until("messages[1]?.figures.tokens > 3")
    assert server.held() > 0 and server.service.answers
    if way == "button":
        page.click("#stop")
    elif way == "key":
        page.press(ESCAPE)
    elif way == "new chat":
        page.click("#new")
    else:
        page.open(server.url)
    server.wait_until_free()
    if way in ("button", "key"):
        page.until(IDLE)
        assert page.text(".note").endswith(" · stopped")
    page.open(server.url)
    assert page.run("return messages.length") == (0 if way == "new chat" else 2)


@chromium
def test_settings_are_sent_and_kept(page: Browser, scripted) -> None:
    url, script = scripted
    fresh(page, url)
    script.says("ok")
    script.asked.clear()
    say(page, "one")
    page.until(IDLE)
    fields = {
        "temperature": "0.5",
        "top_p": "0.9",
        "top_k": "7",
        "min_p": "0.05",
        "max_tokens": "9",
        "seed": "3",
    }
    set_fields(page, system="Be brief.", **fields)
    page.run("$('model').value = 'other'; $('model').dispatchEvent(new Event('change'))")
    page.open(url)
    page.until("$('model').value === 'other'")
    say(page, "two")
    page.until(f"{IDLE} && messages.length === 4")
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    one = {"role": "user", "content": "one"}
    assert script.asked[0] == {"model": "tiny", "messages": [one], **stream}
    said = [("system", "Be brief."), ("user", "one"), ("assistant", "ok"), ("user", "two")]
    messages = [{"role": role, "content": text} for role, text in said]
    values = {name: float(value) for name, value in fields.items()}
    assert script.asked[1] == {"model": "other", "messages": messages, **stream, **values}
    page.run("$('top_p').value = 2")
    say(page, "three")
    page.until("!$('error').hidden")
    assert page.text("#error span").startswith("Settings, top_p: ")
    assert len(script.asked) == 2
    page.run("$('top_p').value = ''")
    page.click(f"{LAST} .acts button:nth-child(2)")  # send again
    page.until(f"{IDLE} && messages.length === 6 && $('error').hidden")


@chromium
def test_the_key_is_asked_for_and_kept_in_the_tab(page: Browser, file: Path) -> None:
    with served(file, rules=Rules(keys=["right"])) as found:
        page.open(found.url)
        page.until("$('keys').open")
        page.click("#no-key")
        page.until("!$('error').hidden")
        assert "key" in page.text("#error span")
        page.type("#prompt", "hi" + ENTER)
        for key, text in (
            ("wrong", "This server asks for a key"),
            ("right", "The server does not know"),
        ):
            page.until(
                "$('keys').open && $('keys-text').textContent.startsWith(arguments[0])", text
            )
            page.type("#key", key + ENTER)
        page.until(f"{IDLE} && messages.length === 2 && messages[1].figures.end")
        kept = page.run("return [JSON.stringify(localStorage), JSON.stringify(sessionStorage)]")
        assert "right" not in kept[0] and "right" in kept[1]
        page.open(found.url)
        page.until("$('model').value === 'tiny' && !$('keys').open")


@chromium
def test_errors_are_one_line(page: Browser, scripted) -> None:
    url, script = scripted
    fresh(page, url)
    script.says("Part")
    script.error = (429, "too many <b>requests</b> " * 20)
    say(page, "hi")
    page.until("!$('error').hidden")
    assert page.text("#error span") == script.error[1]
    assert page.run("return $('error').offsetHeight < 50 && messages.length === 1")
    script.error, script.end = None, 'data: {"error": {"message": "out of memory"}}\n\n'
    page.click(".user .acts button:nth-child(2)")
    page.until("$('error').textContent.startsWith('out of memory')")
    script.end = ""
    page.click(".assistant .acts button:nth-child(3)")
    page.until("$('error').textContent.startsWith('The reply broke off')")
    assert page.run("return messages.map(m => m.text)") == ["hi", "Part"]
    page.click("#error button")
    assert page.run("return $('error').hidden")
    fresh(page, url.replace("127.0.0.1", "test.localhost"))
    say(page, "hi")
    page.until("$('error').textContent.startsWith('pages of this origin may not ask')")


@chromium
def test_messages_are_edited_regenerated_and_kept(page: Browser, scripted) -> None:
    url, script = scripted
    fresh(page, url)
    script.says("first")
    script.deltas[:0] = [{"reasoning_content": "Let me *think*."}]
    say(page, "one")
    page.until(IDLE)
    assert page.run(
        "return [document.querySelector('details').open, document.querySelector('details em').textContent]"
    ) == [False, "think"]
    script.says("second")
    page.click(f"{LAST} .acts button:nth-child(3)")
    page.until(f"{IDLE} && messages[1]?.text === 'second'")
    assert page.run("return document.querySelector('details').hidden && messages.length === 2")
    page.click(".user .acts button")
    page.type(".editor textarea", " and a half")
    page.click(".editor .primary")
    page.until(f"{IDLE} && messages.length === 2")
    assert script.asked[-1]["messages"] == [{"role": "user", "content": "one and a half"}]
    page.click(f"{LAST} .acts button:nth-child(2)")
    page.type(".editor textarea", "ly")
    page.click(".editor .primary")
    page.open(url)
    assert page.run("return messages.map(m => m.text)") == ["one and a half", "secondly"]
    script.says("")
    script.deltas = [
        {"tool_calls": [{"index": 0, "function": part}]}
        for part in ({"name": "add", "arguments": ""}, {"arguments": '{"a": 1}'})
    ]
    say(page, "two")
    page.until(f"{IDLE} && messages.length === 4")
    assert page.text(f"{LAST} .calls") == 'add({"a": 1})'
    page.click("#new")
    assert page.run(
        "return messages.length === 0 && localStorage['mlx_ferrum.chat'] === '[]' && !!$('empty')"
    )


@chromium
def test_code_is_copied(page: Browser, scripted) -> None:
    url, script = scripted
    fresh(page, url)
    page.emulate(
        "Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"]
    )
    script.says("```\na\n  b\n```")
    say(page, "hi")
    page.until(IDLE)
    page.click(".code button")
    page.until("document.querySelector('.code button').textContent === 'Copied'")
    assert page.run("return navigator.clipboard.readText()") == "a\n  b"


@chromium
def test_small_dark_and_without_a_mouse(page: Browser, scripted) -> None:
    url, script = scripted
    fresh(page, url)
    script.says(
        "| "
        + "wide | " * 40
        + "\n"
        + "|---" * 40
        + "|\n\n```\n"
        + "long " * 200
        + "\n```\n\n"
        + "x" * 2000
    )
    say(page, "y" * 500)
    page.until(IDLE)
    page.emulate(
        "Emulation.setDeviceMetricsOverride",
        width=360,
        height=640,
        deviceScaleFactor=1,
        mobile=False,
    )
    assert page.run(
        "return [document.documentElement.scrollWidth, $('log').scrollWidth <= $('log').clientWidth]"
    ) == [360, True]
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.run(f"return {ground}")
    page.emulate(
        "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}]
    )
    assert page.run(f"return {ground}") != light
    seen = []
    page.run("$('model').focus()")
    for _ in range(14):
        seen.append(
            page.run(
                "const e = document.activeElement; return e.id || e.textContent.slice(0, 10) || e.tagName"
            )
        )
        page.press("\ue004")  # tab
    for name in ("model", "new", "open", "log", "Edit", "Copy", "Regenerate", "prompt", "send"):
        assert name in seen, (name, seen)
    nodes = page.emulate("Accessibility.getFullAXTree")["nodes"]
    kinds = ("button", "textbox", "combobox", "dialog", "log", "article")
    nameless = [
        node
        for node in nodes
        if node.get("role", {}).get("value") in kinds and not node["name"]["value"]
    ]
    assert nameless == []
    page.emulate("Emulation.clearDeviceMetricsOverride")
    page.emulate("Emulation.setEmulatedMedia", features=[])
