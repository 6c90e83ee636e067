"""Values checked against the types and ranges that options are annotated with, where each option is defined.

An option says what it may be once, as its annotation: ``Annotated[int, Range(1)]``. Fields of dataclasses and arguments
of functions are checked alike, wherever the values come from: Python, configurations, files.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from inspect import Parameter, getattr_static, signature
from math import inf, isfinite
from numbers import Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Range:
    """Numbers from `least` to `most`. open: without its ends."""

    least: float = -inf
    most: float = inf
    open: Literal["", "least", "most"] = ""

    def __call__(self, value: Any) -> bool:
        return self.least <= value <= self.most and value != {"least": self.least, "most": self.most}.get(self.open)

    def __str__(self) -> str:
        if self.most == inf:
            return "positive" if self.open == "least" else f"{self.least} or more"
        return f"from {self.least} to below {self.most}" if self.open else f"between {self.least} and {self.most}"


@dataclass(frozen=True)
class Name:
    """Text that names a folder: it leads nowhere else."""

    def __call__(self, value: Any) -> bool:
        return bool(re.fullmatch(r"[\w.,=+-]+", value)) and ".." not in value and len(value) <= 150 and value != "."

    def __str__(self) -> str:
        return "the name of a folder (letters, digits and . _ - are allowed, no slashes)"


Whole = Annotated[int, Range(0)]
Count = Annotated[int, Range(1)]
Repeats = Annotated[int, Range(1, 10**5)]  # of work: a number with more zeros is a slip, and would not end
Size = Annotated[int, Range(1, 10**6)]  # of a tensor along one axis
Pixels = Annotated[int, Range(1, 4096)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
NotNegative = Annotated[float, Range(0)]
AboveZero = Annotated[float, Range(0, open="least")]
Share = Annotated[float, Range(0, 1)]
FolderName = Annotated[str, Name()]

_WORDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", Path: "a path"}
_WORDS[NoneType] = "null"


def check_fields(instance: Any, where: str = "") -> None:
    """Raises ValueError for the first field of a dataclass whose value is not what its annotation says. where: what
    the names in messages begin with, such as "recipe."."""
    values = {item.name: getattr(instance, item.name) for item in fields(instance) if item.init}
    _check(values, get_type_hints(type(instance), include_extras=True), where)


def check_arguments(function: Callable[..., Any], values: Mapping[str, Any], where: str = "") -> None:
    """Raises ValueError as `check_fields` does, for arguments of a function; those that it does not have too."""
    hints = _hints(function)
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in signature(function).parameters.values()):
        hints |= dict.fromkeys(values.keys() - hints.keys(), Any)
    if unknown := sorted(map(str, values.keys() - hints.keys())):
        raise ValueError(f"{where}{unknown[0]} is unknown; there are {', '.join(sorted(hints.keys() - {'return'}))}")
    _check(values, hints, where)


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    constructor = getattr_static(function, "__init__") if isinstance(function, type) else None
    return get_type_hints(constructor or function, include_extras=True)


def _check(values: Mapping[str, Any], hints: Mapping[str, Any], where: str) -> None:
    for name, value in values.items():
        if not _fits(value, hints[name]):
            raise ValueError(f"{where}{name} must be {_wanted(value, hints[name])}, got {_short(value)}")


def _fits(value: Any, hint: Any) -> bool:
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Annotated:
        return _fits(value, parts[0]) and all(limit(value) for limit in hint.__metadata__)
    if kind in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if kind is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if kind is tuple:
        return isinstance(value, list | tuple) and len(value) == len(parts) and all(map(_fits, value, parts))
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return isinstance(value, Mapping) and all(_fits(k, parts[0]) and _fits(v, parts[1]) for k, v in value.items())
    if isinstance(kind, type) and issubclass(kind, Sequence):
        return isinstance(value, list | tuple) and all(_fits(item, parts[0]) for item in value)
    if hint is float:
        return isinstance(value, Real) and not isinstance(value, bool) and _is_finite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return hint is Any or not isinstance(hint, type) or isinstance(value, hint)


def _is_finite(number: Real) -> bool:
    try:
        return isfinite(float(number))
    except OverflowError:  # a whole number too large for a float
        return False


def _wanted(value: Any, hint: Any) -> str:
    """What an option must be, in words; the range alone for a value of the right type."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for part in parts:
        if get_origin(part) is Annotated and _fits(value, get_args(part)[0]):
            return ", ".join(map(str, part.__metadata__))
    return _describe(hint)


def _describe(hint: Any) -> str:
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Annotated:
        return ", ".join([_describe(parts[0]), *map(str, hint.__metadata__)])
    if kind in (Union, UnionType):
        return " or ".join(map(_describe, parts))
    if kind is Literal:
        return f"one of {', '.join(map(repr, parts))}" if len(parts) > 1 else repr(parts[0])
    if kind is tuple:
        return f"[{'; '.join(map(_describe, parts))}]"
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return "a mapping {name: value}"
    if isinstance(kind, type) and issubclass(kind, Sequence):
        return f"a list (each {_describe(parts[0])})"
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def _short(value: Any) -> str:
    text = repr(str(value) if isinstance(value, Path) else value)
    return text if len(text) <= 100 else f"{text[:100]}..."
