"""Code in chat templates, which come with models that anyone can publish."""

from __future__ import annotations

from pathlib import Path

import pytest

from exllama.errors import TemplateError
from exllama.loader.gguf_checkpoint import GgufCheckpoint
from exllama.tokenizer.chat_template import ChatTemplate
from exllama.tokenizer.from_folder import read_folder_tokenizer
from tests.tokenizer import golden
from tests.tokenizer.test_folder_tokenizers import byte_level_backend, save
from tests.tokenizer.vocab_files import write_byte_level

# Ways out of a Jinja environment that have been published, with every door that this one has.
GADGETS = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ ''|attr('\\x5f\\x5fclass\\x5f\\x5f') }}",
    "{{ messages.__class__.__base__ }}",
    "{{ messages[0].__init__.__globals__ }}",
    "{{ self.__init__.__globals__.__builtins__ }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ range.__globals__ }}",
    "{{ range.__wrapped__ }}",
    "{{ raise_exception.__globals__['__builtins__']['open']('/etc/passwd').read() }}",
    "{{ strftime_now.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ dict.__subclasses__() }}",
    "{{ dict.mro() }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ lipsum.__globals__['os'] }}",
    "{{ get_flashed_messages.__globals__ }}",
    "{{ config.items() }}",
    "{{ '{0.__class__}'.format('') }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "{% set f = '{0.__class__}'.format %}{{ f('') }}",
    "{{ ['{0.__class__}'] | map('format', '') | list }}",
    "{{ ('{0.__class__}' | attr('format'))('') }}",
    "{{ [''] | map(attribute='__class__') | list }}",
    "{{ [''] | selectattr('__class__') | list }}",
    "{{ [''] | groupby('__class__') }}",
    "{{ [{'a': ''}] | map(attribute='a.__class__') | list }}",
    "{{ messages | sort(attribute='__class__') }}",
    "{{ (messages | map('upper')).gi_frame }}",
    "{{ (messages | map('upper')).gi_frame.f_globals }}",
    "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "{% macro m() %}{{ caller.__globals__ }}{% endmacro %}{% call m() %}{% endcall %}",
    "{% for x in [1] %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "{% for x in [1] %}{{ loop._iterator }}{% endfor %}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'a': 1}) }}",
    "{{ messages[0].pop('role') }}",
    "{{ messages.sort() }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
    "{% from 'os' import path %}",
    "{% extends '/etc/passwd' %}",
    "{{ ''.encode().__class__ }}",
    "{{ 'a'.encode() }}",
    "{{ (1).to_bytes(8, 'big') }}",
    "{{ 'x' | xmlattr }}",
    "{{ 'x' | pprint }}",
    "{{ environment }}{{ environment.loader.__class__ }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 5 %}{{ ns.__class__ }}",
]


def outcome(source: str) -> str:
    """What a template prints, or nothing when it is refused."""
    try:
        return ChatTemplate(source).render([{"role": "user", "content": "x"}])
    except TemplateError:
        return ""


@pytest.mark.parametrize("source", GADGETS)
def test_s01_gadgets_reach_nothing(source: str) -> None:
    """S01: a gadget is refused, or prints nothing that is not the template's own."""
    printed = outcome(source)
    for leak in ("class", "function", "module", "object at", "generator", "root:", "builtins", "0x", "b'"):
        assert leak not in printed, printed


def test_s01_nothing_is_executed_at_loading(tmp_path: Path) -> None:
    """S01: hostile templates in a GGUF file and in a folder are text until someone chats, and then refused."""
    source = "{{ cycler.__init__.__globals__.os.system('touch hacked') }}"
    vocabulary = golden.load("byte_level")
    merges = [(left, right) for left, right in vocabulary["merges"]]
    path = write_byte_level(tmp_path / "model.gguf", vocabulary["tokens"], merges, "smollm", source)
    with GgufCheckpoint(path) as checkpoint:
        tokenizers = [checkpoint.load_tokenizer()]
    tokenizers.append(read_folder_tokenizer(save(tmp_path, byte_level_backend(), chat_template=source), {}))
    for tokenizer in tokenizers:
        assert tokenizer.chat_template is not None
        for render in (tokenizer.chat_template.render, tokenizer.encode_chat):
            with pytest.raises(TemplateError):
                render([{"role": "user", "content": "x"}])
    assert not list(Path.cwd().glob("hacked"))


def test_s01_messages_are_data() -> None:
    """S01: Jinja code in a message is printed, not run."""
    content = "{{ 7 * 7 }}{% for x in range(3) %}x{% endfor %}{# c #}"
    assert ChatTemplate("{{ messages[0].content }}").render([{"role": "user", "content": content}]) == content
