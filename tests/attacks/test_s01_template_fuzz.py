"""Templates made of random pieces of Jinja: text or our own error comes out, soon."""

from __future__ import annotations

import time

from hypothesis import given, settings
from hypothesis import strategies as st

from exllama.errors import TemplateError
from exllama.tokenizer.chat_template import ChatTemplate

SECONDS = 3.0  # two limits of half a second, on a busy machine
PIECES = [
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "#}",
    "{%-",
    "-%}",
    " for m in messages ",
    " endfor ",
    " if ",
    " else ",
    " endif ",
    " set x = ",
    " macro f(a) ",
    " endmacro ",
    " f(1) ",
    " block b ",
    " endblock ",
    " raw ",
    " endraw ",
    " filter upper ",
    " generation ",
    " endgeneration ",
    " break ",
    " continue ",
    " include 'x' ",
    " extends 'x' ",
    " import 'os' as o ",
    "messages",
    "m['content']",
    "m.role",
    "bos_token",
    "namespace(a=1)",
    "range(9)",
    "raise_exception('no')",
    "loop.index",
    "tojson",
    "|",
    "|length",
    "|join(',')",
    "|map(attribute='role')",
    "|tojson(indent=2)",
    "|sort",
    "|default('')",
    "__class__",
    ".__init__",
    "['__globals__']",
    "self",
    "cycler",
    "lipsum",
    "strftime_now('%Y')",
    "()",
    "[0]",
    "[::-1]",
    "(",
    ")",
    "'",
    '"',
    "1",
    "-1",
    "1e308",
    "**",
    "*",
    "/",
    "//",
    "%",
    "~",
    "==",
    "is defined",
    "not",
    "and",
    "in",
    "none",
    "true",
    "\n",
    " ",
    "<|im_start|>",
    "\u13000",
    "\x00",
    "é",
]
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<|im_end|> {{ 7*7 }}"}]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), max_size=40))
def test_s01_any_template_gives_text_or_an_error(pieces: list[str]) -> None:
    """S01: nothing but TemplateError comes out, within the limits, whatever a file says."""
    began = time.process_time()
    try:
        text = ChatTemplate("".join(pieces), {"bos_token": "<s>"}).render(MESSAGES)
    except TemplateError:
        pass
    else:
        assert isinstance(text, str)
    assert time.process_time() - began < SECONDS
