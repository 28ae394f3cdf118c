"""Templates that would take for ever, or all of the memory."""

from __future__ import annotations

import threading
import time
import tracemalloc

import pytest

from exllama.errors import TemplateError
from exllama.tokenizer.chat_template import MAX_TEMPLATE, ChatTemplate

SECONDS = 2.0  # half a second of processor time to compile and to render each, and room for a busy machine
BYTES = 64 << 20

LONG = "'x' * 99999"


def loop(body: str, count: int = 99_999) -> str:
    return f"{{% for i in range({count}) %}}{body}{{% endfor %}}"


def grow(start: str, step: str, count: int = 99) -> str:
    """ns.x begins with `start` and becomes `step` count times."""
    return f"{{% set ns = namespace(x={start}) %}}" + loop(f"{{% set ns.x = {step} %}}", count)


BOMBS = {
    "a long range": loop("", 10**9),
    "nested loops": loop(loop(loop(""))),
    "loops that print": loop(loop("x" * 30)),
    "loops with a filter": loop("{% for j in range(99999) if false %}{% endfor %}"),
    "a captured loop": "{% set x %}" + loop(loop("xxxxxxxx")) + "{% endset %}",
    "a captured literal": "{% set x %}" + loop("x" * 1000) + "{% endset %}",
    "a huge text": "{{ 'x' * 10**9 }}",
    "a text of wide characters": "{% set s = '\U0001f642' * 8000000 %}{{ s.upper() }}",
    "a huge text by number": "{{ 10**9 * 'x' }}",
    "a huge list": "{% set x = [0] * 10**9 %}",
    "a huge number": "{{ 9**(9**9) }}",
    "a number of many factors": grow("3", "ns.x * ns.x"),
    "doubling text": grow("'xx'", "ns.x + ns.x"),
    "doubling with ~": grow("'xx'", "ns.x ~ ns.x"),
    "doubling lists": grow("[1]", "ns.x + ns.x"),
    "doubling trees": grow("[1]", "[ns.x, ns.x]") + "{{ ns.x }}",
    "trees as JSON": grow("[1]", "[ns.x, ns.x]") + "{{ ns.x | tojson }}",
    "many long texts": grow("[]", f"ns.x + [{LONG}]", 99_999),
    "many long slices": f"{{% set s = {LONG} %}}" + grow("[]", "ns.x + [s[1:]]", 9999),
    "one text many times": "{{ ['x' * 99999] * 99999 }}",
    "join": "{{ (['x' * 99999] * 9999) | join }}",
    "join as a method": "{{ ''.join(['x' * 99999] * 9999) }}",
    "a long separator": "{{ ('x' * 99999).join([1] * 9999) }}",
    "replace": "{{ ('x' * 99999).replace('x', 'x' * 99999) }}",
    "replace as a filter": "{{ ('x' * 99999) | replace('x', 'x' * 99999) }}",
    "replace nothing": "{{ ('x' * 99999).replace('', 'x' * 99999) }}",
    "a wide field": "{{ '%1000000000d' % 1 }}",
    "a wide field of an argument": "{{ '%*d' % (1000000000, 1) }}",
    "a precise field": "{{ '%.1000000000f' % 1.0 }}",
    "the filter format": "{{ '%1000000000d' | format(1) }}",
    "str.format": "{{ '{:1000000000d}'.format(1) }}",
    "nested str.format": "{{ '{:{}}'.format(1, 1000000000) }}",
    "many fields": "{{ ('{0}' * 9999).format('x' * 99999) }}",
    "many old fields": "{{ ('%(a)s' * 9999) % {'a': 'x' * 99999} }}",
    "center": "{{ 'x'.center(10**9) }}",
    "center as a filter": "{{ 'x' | center(10**9) }}",
    "ljust": "{{ 'x'.ljust(10**9) }}",
    "zfill": "{{ 'x'.zfill(10**9) }}",
    "expandtabs": "{{ '\t'.expandtabs(10**9) }}",
    "indent": "{{ ('\n' * 99999) | indent(10**9) }}",
    "indent by text": "{{ ('x\n' * 9999) | indent('x' * 99999) }}",
    "JSON indent": "{{ [[1]] | tojson(indent=10**9) }}",
    "round": "{{ 1.5 | round(10**9, 'ceil') }}",
    "to_bytes": "{{ (1).to_bytes(10**9, 'big') }}",
    "strftime": "{{ strftime_now('%1000000000d') }}",
    "a long strip": "{{ ('y' * 99999 + 'x' * 99999).strip('x' * 99999) }}",
    "a long number": "{{ ('9' * 99999) | int }}",
    "batch": "{{ [1] | batch(10**9, 0) | list }}",
    "slice": "{{ [1] | slice(10**9) | list }}",
    "wordwrap": "{{ ('x ' * 9999) | wordwrap(1, wrapstring='x' * 99999) }}",
    "lipsum": "{{ lipsum(n=10**6) }}",
    "sum of lists": "{{ ([[1]] * 9999) | sum(start=[]) }}",
    "a macro that calls itself": "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    "a macro that calls itself twice": "{% macro m(n) %}{{ m(n - 1) ~ m(n - 1) if n }}{% endmacro %}{{ m(60) }}",
    "a macro that prints much": "{% macro m() %}" + "x" * 9999 + "{% endmacro %}" + loop("{{ m() }}"),
    "a loop that recurses": "{% for x in [[1]] recursive %}{{ loop([x]) }}{% endfor %}",
    "searching": "{% set s = '" + "a" * 900_000 + "' %}{{ [" + "'ab' in s," * 1500 + "] }}",
    "searching by a test": "{% set s = '" + "a" * 900_000 + "' %}{{ [" + "'ab' is in s," * 1500 + "] }}",
    "searching a longer text": "{% set s = 'a' * 7999999 %}{{ [" + "'ab' in s," * 1500 + "] }}",
    "constant folding": "{{ 'x' * 10**9 ~ 'y' }}{{ ('x' ~ 'y') * 10**9 }}{{ ['x'] * 10**9 }}",
    "deep parentheses": "{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}",
    "deep blocks": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "many tags": "{{ a }}" * 140_000,
    "a long expression": "{{ 1" + " + 1" * 200_000 + " }}",
    "many literals": "{{ [" + "1," * 400_000 + "] }}",
}  # fmt: skip


ALLOWED = ("many literals", "a long number")


def attempt(source: str) -> tuple[TemplateError | None, float]:
    began = time.process_time()
    try:
        ChatTemplate(source).render([{"role": "user", "content": "x"}])
    except TemplateError as error:
        return error, time.process_time() - began
    return None, time.process_time() - began


@pytest.mark.parametrize("name", BOMBS)
def test_s02_bombs_end_soon(name: str) -> None:
    """S02: every bomb is refused in time, or defused: what it does within the limits is allowed."""
    error, seconds = attempt(BOMBS[name])
    assert seconds < SECONDS
    assert error is not None or name in ALLOWED


@pytest.mark.parametrize("name", BOMBS)
def test_s02_bombs_stay_small(name: str) -> None:
    """S02: no bomb takes more than 64 MiB; tracing makes Python slow, so time is measured apart."""
    tracemalloc.start()
    try:
        attempt(BOMBS[name])
        assert tracemalloc.get_traced_memory()[1] < BYTES
    finally:
        tracemalloc.stop()


def test_s02_bombs_end_on_other_threads_too() -> None:
    """S02: the limit needs no signal, which only a main thread would get, and leaves no thread behind."""
    results: list[tuple[TemplateError | None, float]] = []
    threads = [threading.Thread(target=lambda: results.append(attempt(BOMBS["nested loops"]))) for _ in range(2)]
    before = threading.active_count()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert all(error is not None and seconds < 2 * SECONDS for error, seconds in results)
    assert len(results) == 2
    assert threading.active_count() == before


def test_s02_templates_of_more_than_a_mebibyte_are_refused() -> None:
    """S02: before they are looked at."""
    with pytest.raises(TemplateError, match="1048577 characters"):
        ChatTemplate("x" * (MAX_TEMPLATE + 1))
