"""The page at `/`, in headless Chromium: conversations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import random_models
from browser import ENTER, ESCAPE, Browser
from scripts import IDLE, LAST, chromium, fresh, say, set_fields
from servers import TEMPLATE, Served, served

from mlx_ferrum.server.gate import Rules
from mlx_ferrum.server.page import index

CONTEXT = 100_000  # tokens: a text that nobody stops runs for minutes


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Served]:
    path = tmp_path_factory.mktemp("page") / "long.gguf"
    sizes = random_models.Sizes(layers=2, context=CONTEXT)
    random_models.write(path, "llama", 7, sizes=sizes, template=TEMPLATE)
    with served(path, blocks=CONTEXT // 16) as found:
        yield found


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
def test_a_reply_appears_while_it_is_made(page: Browser, scripted_page) -> None:
    url, script = scripted_page
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
def test_settings_are_sent_and_kept(page: Browser, scripted_page) -> None:
    url, script = scripted_page
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
def test_the_key_is_asked_for_and_kept_in_the_tab(page: Browser, page_file: Path) -> None:
    with served(page_file, rules=Rules(keys=["right"])) as found:
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
def test_errors_are_one_line(page: Browser, scripted_page) -> None:
    url, script = scripted_page
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
def test_messages_are_edited_regenerated_and_kept(page: Browser, scripted_page) -> None:
    url, script = scripted_page
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
def test_code_is_copied(page: Browser, scripted_page) -> None:
    url, script = scripted_page
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
def test_small_dark_and_without_a_mouse(page: Browser, scripted_page) -> None:
    url, script = scripted_page
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
    page.click(".user .acts button")
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
