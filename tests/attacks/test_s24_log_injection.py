"""S24: names that would steer a terminal or forge a line of a log are shown escaped."""

from __future__ import annotations

import pytest

from exllama.cli import console
from exllama.errors import FormatError

HOSTILE = "evil\x1b[31m\r\nexllama: all is well\x07"


def test_s24_format_errors_escape_file_and_field() -> None:
    """S24: a damaged file names itself and its fields."""
    text = str(FormatError(f"/models/{HOSTILE}.gguf", HOSTILE, HOSTILE, HOSTILE))
    assert text.isprintable()
    assert "\\x1b[31m" in text


def test_s24_command_lines_escape_what_they_say(capsys: pytest.CaptureFixture[str]) -> None:
    """S24: a path in the one sentence on stderr."""
    console.fail("no model at /models/\x1b]0;title\x07\r.gguf")
    said = capsys.readouterr().err
    assert said == "exllama: no model at /models/\\x1b]0;title\\x07\\r.gguf\n"
