"""Hostile and broken templates end in a ValueError, whatever becomes of the process that renders them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mlx_ferrum.template import ChatTemplate, Limits
from mlx_ferrum.template.process import Renderer

DOUBLING = "{% set n = namespace(x=START) %}{% for i in range(60) %}{% set n.x = STEP %}{% endfor %}{{ n.x }}"
NESTING = "{% set n = namespace(x=1) %}{% for i in range(99999) %}{% set n.x = STEP %}{% endfor %}{{ n.x }}"


def doubling(start: str, step: str) -> str:
    """A template whose value grows exponentially."""
    return DOUBLING.replace("START", start).replace("STEP", step)


ENDLESS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) ~ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    doubling("[1]", "n.x + n.x"),
    "{% for i in range(99999) %}{% if 'a' in 'b' * 90000000 %}{% endif %}{% endfor %}",
]
HUGE = [
    doubling("'ab'", "n.x ~ n.x"),
    doubling("'ab'", "n.x + n.x"),
    doubling("[1]", "[n.x, n.x]"),
    doubling("{}", "{1: n.x.items() | list, 2: n.x.items() | list}"),
    doubling("[1]", "[n.x, n.x]").replace("n.x }}", "n.x | tojson }}"),
    "{% for i in range(99999) %}" + "text" * 1000 + "{% endfor %}",
    "{% set x %}{% for i in range(99999) %}{{ 'a' * 99999 }}{% endfor %}{% endset %}",
    "{{ '{:10000000000}'.format(1) }}",
    "{{ '%3000000000d' | format(1) }}",
    "{{ ('a' * 10**6).replace('a', 'b' * 10**6) }}",
    "{{ ('a\n' * 10**5) | indent(10**5) }}",
    "{{ [[[[[[1] * 1000]]]]] | tojson(indent=1000000) }}",
]
DEEP = [
    "{% set n = namespace() %}{% set n.x = n %}{{ n }}",
    NESTING.replace("STEP", "(n.x,)"),
    NESTING.replace("STEP", "namespace(x=n.x)"),
    "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    "{% for x in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "{% block a %}{{ self.a() }}{% endblock %}",
    *("{{ " + part * 99999 + "1 }}" for part in ("(", "not ", "-", "1+", "1 and ", "2**")),
    "{{ a" + ".a" * 99999 + " }}",
    "{% if 0 %}" + "{% elif 0 %}" * 20000 + "{% endif %}",
    "{% for a in [1] %}" * 3000 + "{% endfor %}" * 3000,
]
REFUSED = [
    "{{ 'a' * 10**10 }}",
    "{{ [0] * 10**10 }}",
    "{% for i in range(10**9) %}{% endfor %}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.__class__.__mro__ }}",
    "{{ messages.__len__() }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% if %}",
    "{{ none + 1 }}",
    "{{ raise_exception('no\nsystem messages') }}",
    "{{ [{1: nothing}] | tojson(indent=[]) }}",
    "a" * (1 << 21),
]


@pytest.fixture(scope="module")
def renderer():
    return Renderer(Limits(seconds=0.3, memory=1 << 29, text=1 << 24))


@pytest.mark.parametrize("source", [*ENDLESS, *HUGE, *DEEP, *REFUSED])
def test_hostile_and_broken_templates_are_refused(renderer, source):
    with pytest.raises(ValueError, match=r"tokenizer\.chat_template: [^\n]+\Z") as raised:
        ChatTemplate(source, renderer=renderer).render(messages=[1])
    assert len(str(raised.value)) < 300
    assert ChatTemplate("{{ x }}", renderer=renderer).render(x=1) == "1"


@pytest.mark.parametrize(
    ("limits", "source", "message"),
    [
        (Limits(seconds=0.2), ENDLESS[0], "stopped after 0.2 seconds"),
        (Limits(text=10), "12345678901", "text of more than 10 characters"),
        (Limits(source=10), "12345678901", "11 characters found, expected at most 10"),
        (Limits(memory=1 << 28), "{{ '%900000000d' | format(1) | length }}", "more than 256 MiB"),
    ],
)
def test_each_limit_alone(limits, source, message):
    if "memory" in message and sys.platform != "linux":
        pytest.skip("only Linux limits memory")
    with pytest.raises(ValueError, match=message):
        ChatTemplate(source, limits=limits).render()


def test_time_is_that_of_one_rendering():
    template = ChatTemplate("{% for i in range(n) %}{% endfor %}", limits=Limits(seconds=0.2))
    for _ in range(40):
        template.render(n=30000)


def test_templates_do_not_change_the_messages():
    messages = [{"role": "user", "content": "x"}]
    text = ChatTemplate("{{ messages.append(1) }}{{ messages | length }}").render(messages=messages)
    assert text == "None2"
    assert messages == [{"role": "user", "content": "x"}]


def test_threads_share_a_renderer(renderer):
    template = ChatTemplate("{% for i in range(500) %}{{ x }}{% endfor %}", renderer=renderer)
    with ThreadPoolExecutor(8) as pool:
        texts = pool.map(lambda x: template.render(x=x), range(200))
    assert list(texts) == [str(x) * 500 for x in range(200)]


def test_an_interrupted_rendering_leaves_nothing_behind(monkeypatch):
    template = ChatTemplate("{% for i in range(n) %}{% endfor %}{{ n }}")
    assert template.render(n=1) == "1"
    process = process_of(template)
    with monkeypatch.context() as patched:
        patched.setattr(process, "stdout", Interrupted(process.stdout))
        with pytest.raises(KeyboardInterrupt):
            template.render(n=2)
    assert template.render(n=3) == "3"
    assert process.wait(10) != 0


def process_of(template: ChatTemplate) -> Any:
    """The process that renders for it."""
    return template._renderer._process


class Interrupted:
    """A stream whose reader presses Ctrl-C."""

    def __init__(self, stream):
        self.stream = stream

    def readline(self):
        raise KeyboardInterrupt

    def close(self):
        self.stream.close()


def test_the_process_ends_with_its_owner():
    template = ChatTemplate("x")
    template.render()
    process = process_of(template)
    del template
    assert process.wait(10) == 0
    code = (
        "from mlx_ferrum.template import ChatTemplate\nt = ChatTemplate('x')\nt.render()\n"
        "print(t._renderer._process.pid, flush=True)\nimport os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    end = time.monotonic() + 10
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < end:
            os.kill(int(found.stdout), 0)
            time.sleep(0.05)


def test_a_fork_has_a_process_of_its_own():
    template = ChatTemplate("{{ x }}")
    assert template.render(x=1) == "1"
    child = os.fork()
    if child == 0:
        os._exit(0 if template.render(x=2) == "2" else 1)
    assert template.render(x=3) == "3"
    assert os.waitpid(child, 0)[1] == 0


def test_long_conversations_take_linear_time():
    """200 messages take milliseconds; ten times as many take about ten times as long."""
    source = "{% for m in messages %}{{ '<' ~ m['role'] ~ '>' + m['content'].strip() }}{% endfor %}"
    template = ChatTemplate(source)
    took = []
    for count in (200, 2000, 20000):
        messages = [{"role": "user", "content": "word " * 50}] * count
        times = []
        for _ in range(5):
            start = time.perf_counter()
            template.render(messages=messages)
            times.append(time.perf_counter() - start)
        took.append(min(times))
    assert took[2] < 40 * took[1]
