"""The page at `/`, in headless Chromium: what it makes of the text of a model."""

from __future__ import annotations

import random

import pytest
from browser import Browser
from scripts import IDLE, LAST, chromium, fresh, say

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
def test_markdown(page: Browser, scripted_page) -> None:
    page.open(scripted_page[0])
    assert [rendered(page, text) for text, _ in CASES] == [html for _, html in CASES]
    link = '<a href="https://b/(c)" target="_blank" rel="noopener noreferrer">a</a>'
    assert rendered(page, "[a](https://b/(c))") == f"<p>{link}</p>"
    bare = link.replace("/(c)", "/c_d_").replace(">a<", ">https://b/c_d_<")
    assert rendered(page, "(https://b/c_d_.)") == f"<p>({bare}.)</p>"
    code = rendered(page, "1. a\n   ```c<d\n   x\n     y\n   ```\nb")
    assert "<span>c&lt;d</span>" in code and "<code>x\n  y</code>" in code
    assert code.endswith("</ol><p>b</p>")
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
def test_hostile_text_does_nothing(page: Browser, scripted_page) -> None:
    url, script = scripted_page
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
    forbidden = "SCRIPT IMG IFRAME STYLE BASE META on src style href=j href=d".split()
    assert not [each for each in found if each.startswith(tuple(forbidden))]
    assert "href=https://evil.test/x.png" in found  # the one that may be a link
    state = page.run("return [typeof hit, document.title, location.href]")
    assert state == ["undefined", "mlx_ferrum", f"{url}/"]
    assert "</pre><script>window.hit = 1</script>" in page.text(f"{LAST} > .body pre")
    assert page.run("return messages[1].text") == HOSTILE


LONG = [*"*a |**|_|`|`` |[|[a](|~|> |- |  |#|\\|http://|a|1. |\n|((".split("|"), "|", "|-"]


@chromium
def test_long_text_is_rendered_in_linear_time(page: Browser, scripted_page) -> None:
    page.open(scripted_page[0])
    for piece in LONG:
        # cut off by the driver after 30 seconds: a quadratic scan of 200,000 characters takes longer
        rendered(page, piece * (200_000 // len(piece)) + "x")
    rendered(page, "".join("`" * n + " " for n in range(1, 600)))
    rendered(page, "- a\n" * 3000 + "\n".join(" " * n + "- a" for n in range(600)))


@chromium
@pytest.mark.parametrize("seed", range(3))
def test_a_stream_is_rendered_as_the_whole(page: Browser, scripted_page, seed: int) -> None:
    page.open(scripted_page[0])
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
      const links = [...one.querySelectorAll("a")].filter(a => a.textContent !== a.getAttribute("href"));
      const shown = one.textContent.replaceAll("Copy", "") + links.map(a => a.getAttribute("href")).join("");
      if (one.innerHTML !== two.innerHTML || letters(shown) !== letters(text)) wrong.push(text);
    }
    return wrong"""
    assert page.run(script, texts) == []
