"""The filters, methods and functions that a chat template may use, each measured before it makes something large."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import markupsafe
from jinja2 import filters
from jinja2.utils import Namespace

from exllama.errors import TemplateError
from exllama.tokenizer.template_budget import budget

MAX_RANGE = 100_000
_WIDE = re.compile(r"\d{4,}|\*")  # a field width that would fill memory, or one taken from the arguments
_FORMAT_SPEC = re.compile(r"[:!][^{}]*(\d{4,}|\{)|\[")
_PERCENT = re.compile(r"%(?:\([^()]*\))?([^a-zA-Z%]*)")
_STRFTIME = re.compile(r"(?:[^%]|%[-_]?[a-zA-Z%])*")

_PLAIN = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "groupby", "items", "last", "length",
    "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "select", "selectattr", "sort", "title",
    "truncate", "unique", "upper",
)  # fmt: skip

# What templates do with values. Everything else that a built-in type offers (int.to_bytes, str.zfill, ...) is refused.
_TEXT_METHODS = (
    "strip", "lstrip", "rstrip", "split", "rsplit", "splitlines", "startswith", "endswith", "upper", "lower", "title",
    "capitalize", "casefold", "swapcase", "replace", "find", "rfind", "index", "rindex", "count", "join", "format",
    "isdigit", "isdecimal", "isnumeric", "isalpha", "isalnum", "isspace", "isupper", "islower", "removeprefix",
    "removesuffix", "partition", "rpartition",
)  # fmt: skip
_METHODS: dict[type, tuple[str, ...]] = {
    str: _TEXT_METHODS,
    list: ("index", "count", "copy"),
    tuple: ("index", "count"),
    dict: ("items", "keys", "values", "get", "copy"),
    float: ("is_integer",),
}
BUILT_IN = (str, bytes, bytearray, int, float, complex, list, tuple, dict, set, frozenset, range)


def bounded_range(*arguments: int) -> range:
    """range() of at most MAX_RANGE numbers."""
    numbers = range(*arguments)
    if numbers[:MAX_RANGE] != numbers:
        raise TemplateError(f"the chat template counts beyond {MAX_RANGE}")
    return numbers


def raise_exception(message: str) -> None:
    """What templates call when they do not like their messages."""
    raise TemplateError(f"the chat template refuses these messages: {str(message)[:1000]}")


def strftime_now(pattern: str) -> str:
    """The date and time as the template asks for it."""
    if len(pattern) > 256 or _STRFTIME.fullmatch(pattern) is None:
        raise TemplateError(f"the chat template asks for the time as {pattern[:256]!r}, which is not understood")
    return datetime.datetime.now().strftime(pattern)


def prepare_call(function: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Measures the call of a built-in type's method, or refuses it; returns the arguments to call it with."""
    method = getattr(function, "__wrapped__", function)  # the sandbox wraps str.format
    owner = getattr(method, "__self__", None)
    for kind in BUILT_IN:
        if isinstance(owner, kind) and method.__name__ not in _METHODS.get(kind, ()):
            raise TemplateError(f"the chat template calls {kind.__name__}.{method.__name__}, which is not allowed")
    if not isinstance(owner, str):
        return arguments
    if method.__name__ == "join":
        arguments = (list(arguments[0]),)
        _measure_join(owner, arguments[0])
    elif method.__name__ == "replace" and len(arguments) > 1:
        _measure_replace(owner, arguments[0], arguments[1])
    elif method.__name__ in ("strip", "lstrip", "rstrip") and arguments and len(arguments[0] or "") > 256:
        raise TemplateError("the chat template strips more than 256 different characters")
    return arguments


def prepare_format(function: Any, values: list[Any]) -> None:
    """Measures a call of str.format; of any other function nothing."""
    method = getattr(function, "__wrapped__", function)
    text = getattr(method, "__self__", None)
    if isinstance(text, str) and method.__name__ == "format":
        if _FORMAT_SPEC.search(text):
            raise TemplateError("the chat template formats text with nested, indexed or very wide fields")
        budget().allow(len(text) + text.count("{") * (1000 + sum(budget().size(value) for value in values)))


def join(values: Iterable[Any], separator: str = "", attribute: str | int | None = None) -> str:
    """Values joined to one text."""
    if attribute is not None:
        raise TemplateError("the chat template joins by attribute; use map(attribute=...) first")
    items = list(values)
    _measure_join(separator, items)
    return separator.join(map(str, items))


def concat(*values: Any) -> str:
    """The operator ~."""
    budget().allow(sum(budget().size(value) for value in values))
    return "".join(map(str, values))


def percent(left: Any, right: Any) -> Any:
    """left % right: a remainder, or text formatted the old way."""
    if not isinstance(left, str):
        return left % right
    if any(_WIDE.search(match[1]) for match in _PERCENT.finditer(left)):
        raise TemplateError("the chat template formats text with a very wide field")
    budget().allow(len(left) + 1000 * left.count("%") + left.count("%") * budget().size(right))
    return left % right


def slice_of(value: Any, start: Any, stop: Any, step: Any) -> Any:
    """value[start:stop:step]."""
    return value[start:stop:step]


def _measure_join(separator: str, items: list[Any]) -> None:
    budget().allow(len(separator) * len(items) + sum(budget().size(item) for item in items))


def _measure_replace(text: str, old: str, new: str) -> None:
    budget().allow(len(text) + text.count(old) * max(0, len(new) - len(old)))


def _replace(value: Any, old: str, new: str, count: int | None = None) -> str:
    text = _text(value)
    _measure_replace(text, old, new)
    return text.replace(old, new, -1 if count is None else count)


def _indent(value: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    text, fill = _text(value), width if isinstance(width, str) else " " * min(max(width, 0), 1000)
    budget().allow(len(text) + (text.count("\n") + 1) * len(fill))
    lines = text.splitlines(keepends=True)
    wanted = [(first or index > 0) and (blank or bool(line.strip())) for index, line in enumerate(lines)]
    return "".join(fill + line if indented else line for line, indented in zip(lines, wanted, strict=True))


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """As transformers has it: no HTML escapes, characters as they are."""
    if indent is not None and not 0 <= indent <= 16:
        raise TemplateError(f"the chat template indents JSON by {indent}, at most 16 are allowed")
    budget().allow(budget().size(value))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _int(value: Any, default: int = 0, base: int = 10) -> int:
    if isinstance(value, str) and len(value) > 1000:
        return default
    return filters.do_int(value, default, base)


def _round(value: float, precision: int = 0, method: Any = "common") -> float:
    if not 0 <= precision <= 32:
        raise TemplateError(f"the chat template rounds to {precision} digits")
    return float(filters.do_round(value, precision, method))


def _sum(values: Iterable[Any], attribute: None = None, start: float = 0) -> float:
    numbers = [start, *values]
    if attribute is not None or not all(isinstance(number, (int, float)) for number in numbers):
        raise TemplateError("the chat template sums something other than numbers")
    return float(sum(numbers)) if any(isinstance(number, float) for number in numbers) else int(sum(numbers))


def _format(text: str, *values: Any, **named: Any) -> Any:
    return percent(str(text), named or values)


def _trim(value: Any, characters: str | None = None) -> str:
    text = _text(value)
    return text.strip(*prepare_call(text.strip, (characters,)))


def _text(value: Any) -> str:
    budget().allow(budget().size(value))
    return str(value)


def _escape(value: Any) -> str:
    text = _text(value)
    budget().allow(5 * len(text))
    return str(markupsafe.escape(text))


def _measured(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose result is paid for; jinja's markers (pass_environment) stay on it."""

    @wraps(function)
    def run(*arguments: Any, **named: Any) -> Any:
        result = function(*arguments, **named)
        budget().pay_result(result)
        return result

    return run


_OWN: dict[str, Callable[..., Any]] = {
    "join": join, "replace": _replace, "indent": _indent, "tojson": _tojson, "int": _int, "round": _round, "sum": _sum,
    "trim": _trim, "string": _text, "safe": _text, "escape": _escape, "e": _escape, "format": _format,
}  # fmt: skip

FILTERS = {name: _measured(function) for name, function in {**{n: filters.FILTERS[n] for n in _PLAIN}, **_OWN}.items()}

GLOBALS: dict[str, Any] = {
    "range": bounded_range,
    "namespace": Namespace,
    "dict": dict,
    "raise_exception": raise_exception,
    "strftime_now": strftime_now,
}
