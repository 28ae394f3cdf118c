"""Typed reading of a config.json: every value is checked, and every error names the file and the key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from exllama.errors import FormatError, UnsupportedModelError

MAX_INTEGER = 1 << 31
MIN_NUMBER, MAX_NUMBER = 1e-12, 1e12  # what a factor can be, so that nothing computed from it overflows or vanishes


class ConfigReader:
    """Reads one JSON object. file: what errors name; prefix: where in it this object is, as in "rope_scaling."."""

    def __init__(self, file: object, values: Mapping[str, Any], prefix: str = "") -> None:
        self.file, self.prefix, self._values = file, prefix, values

    def error(self, key: str, found: object, expected: object, hint: str = "") -> FormatError:
        return FormatError(self.file, self.prefix + key, found, expected, hint)

    def keys(self) -> set[str]:
        return set(self._values)

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self._values.get(key) is not None

    def integer(self, key: str, default: int | None = None, least: int = 1, most: int = MAX_INTEGER) -> int:
        """A whole number; without a default the key must be there."""
        value = self._get(key, default, f"a whole number from {least} to {most}")
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.error(key, value, f"a whole number from {least} to {most}")
        return value

    def number(
        self, key: str, default: float | None = None, least: float = MIN_NUMBER, most: float = MAX_NUMBER
    ) -> float:
        """A number from least to most; without a default the key must be there."""
        expected = f"a number from {least:g} to {most:g}"
        value = self._get(key, default, expected)
        if not _is_number(value) or not least <= value <= most:
            raise self.error(key, value, expected)
        return float(value)

    def optional_number(self, key: str) -> float | None:
        """A number above 0, or None where the key is absent or null."""
        return self.number(key) if self.has(key) else None

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default, "true or false")
        if not isinstance(value, bool):
            raise self.error(key, value, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self._get(key, default, "a string")
        if not isinstance(value, str):
            raise self.error(key, value, "a string")
        return value

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        """A list of `count` numbers above 0."""
        expected = f"a list of {count} numbers from {MIN_NUMBER:g} to {MAX_NUMBER:g}"
        values = self._get(key, None, expected)
        if not isinstance(values, list) or len(values) != count:
            raise self.error(key, values, expected)
        if not all(_is_number(value) and MIN_NUMBER <= value <= MAX_NUMBER for value in values):
            raise self.error(key, values, expected)
        return tuple(float(value) for value in values)

    def texts(self, key: str, count: int, allowed: Sequence[str]) -> tuple[str, ...]:
        """A list of `count` strings, each one of `allowed`."""
        expected = f"a list of {count} strings out of {', '.join(allowed)}"
        values = self._get(key, None, expected)
        if not isinstance(values, list) or len(values) != count or not all(value in allowed for value in values):
            raise self.error(key, values, expected)
        return tuple(values)

    def section(self, key: str) -> ConfigReader:
        """A nested object, empty where it is absent or null."""
        value = self._values.get(key) or {}
        if not isinstance(value, dict):
            raise self.error(key, value, "an object")
        return ConfigReader(self.file, value, f"{self.prefix}{key}.")

    def require(self, key: str, supported: Sequence[object], model_type: str) -> None:
        """Refuses a present value that the model_type does not have: it would mean another computation."""
        if self.has(key) and self._values[key] not in supported:
            expected = " or ".join(repr(value) for value in supported) or "nothing"
            raise UnsupportedModelError(
                f"{self.file}: {self.prefix}{key} is {self._values[key]!r}, {model_type} models of this version need "
                f"{expected}"
            )

    def _get(self, key: str, default: Any, expected: str) -> Any:
        value = self._values.get(key)
        if value is None and default is None:
            raise self.error(key, "nothing", expected)
        return default if value is None else value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
