"""Settings: frozen dataclasses filled from TOML tables and `a.b=value`, and the one error class of the project.

An unknown or wrongly typed name is never dropped in silence: it is refused with the nearest known one.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
JSON_BYTES = 64 << 20  # a vocabulary has five; what has more was not written by a tool that describes models


class CartoucheError(ValueError):
    """What was given, what was wanted, and what to do; shown to people as one line."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that looks most like `name`, or None when nothing does."""
    names = {str(one).lower(): str(one) for one in known}
    found = difflib.get_close_matches(str(name).lower(), names, n=1, cutoff=0.5)
    return names[found[0]] if found else None


def unknown(kind: str, name: str, known: Iterable[str]) -> CartoucheError:
    """The error for a name that is not known: it offers the nearest one and lists the others."""
    names = [str(one) for one in known]
    guess = nearest(name, names)
    hint = f"did you mean {guess!r}? " if guess else ""
    return CartoucheError(f"unknown {kind} {name!r}; {hint}known: {', '.join(names) or 'none'}")


def shown(said: object, longest: int = 200) -> str:
    """Text from a file as one line that a terminal can show: no control characters, and not too much of it."""
    text = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(said))
    return text if len(text) <= longest else f"{text[:longest]}..."


def read_toml(path: Path | str) -> dict[str, Any]:
    """The tables of a TOML file. Raises CartoucheError where it is missing or not TOML."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CartoucheError(f"cannot read settings from {path}: {error}") from error


def read_json(path: Path | str) -> dict[str, Any]:
    """A JSON object of ordinary numbers.

    Raises CartoucheError where the file is missing, too large, nested without end, not JSON or not an object, and for
    NaN and infinity, which JSON does not have.
    """
    path = Path(path)
    try:
        if path.stat().st_size > JSON_BYTES:
            raise CartoucheError(
                f"{path} has {path.stat().st_size:,} bytes; wanted a JSON object of {JSON_BYTES:,} at most"
            )
        found = json.loads(path.read_text(encoding="utf-8"), parse_constant=_finite, parse_float=_finite)
    except RecursionError:
        raise CartoucheError(f"cannot read {path}: it is nested too deeply") from None
    except (OSError, ValueError) as error:
        if isinstance(error, CartoucheError):
            raise
        raise CartoucheError(f"cannot read {path}: {error}") from error
    if not isinstance(found, dict):
        raise CartoucheError(f"{path} holds a {type(found).__name__}; wanted a JSON object")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def fill(settings: type[T] | T, values: Mapping[str, Any], where: str = "") -> T:
    """A copy of `settings` (a dataclass or an instance of one) with `values` put in, nested tables included.

    `where` is the dotted name of this table, used in errors. Raises CartoucheError for unknown or mistyped names.
    """
    kind = settings if isinstance(settings, type) else type(settings)
    wanted = field_types(kind)
    given: dict[str, Any] = {}
    for name, value in values.items():
        if name not in wanted:
            raise unknown("setting", f"{where}{name}", [f"{where}{one}" for one in wanted])
        now = None if isinstance(settings, type) else getattr(settings, name)
        given[name] = convert(value, wanted[name], f"{where}{name}", now)
    try:
        if isinstance(settings, type):
            return kind(**given)
        return dataclasses.replace(settings, **given)  # type: ignore[type-var]
    except TypeError as error:
        raise CartoucheError(f"settings {where or kind.__name__}: {error}") from error


def override(settings: T, assignments: Iterable[str]) -> T:
    """A copy of `settings` with every `a.b=value` applied, from left to right."""
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise CartoucheError(f"{text!r} is not a setting; write name=value, as in batch=64")
        table: Any = value.strip()
        for part in reversed(name.strip().split(".")):
            table = {part: table}
        settings = fill(settings, table)
    return settings


def plain(value: Any) -> Any:
    """Settings as JSON can hold them: dataclasses become dicts, paths strings, tuples lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value) if isinstance(value, Path) else repr(value)


def field_types(kind: type) -> dict[str, Any]:
    """Field name -> resolved type of a dataclass."""
    if not dataclasses.is_dataclass(kind):
        raise CartoucheError(f"{kind.__name__} has no settings inside; it takes one value")
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}


def convert(value: Any, kind: Any, name: str, now: Any = None) -> Any:
    """`value` (a TOML value or the text behind `=`) as `kind`; `now` is the present value of a nested table."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _one_of(value, arguments, name, now)
    if origin is typing.Literal:
        return _choice(value, arguments, name)
    if origin in (tuple, list):
        return _sequence(value, origin, arguments, name)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if isinstance(value, kind):
            return value
        if not isinstance(value, Mapping):
            raise CartoucheError(f"{name}={value!r}: {name} holds several settings; write {name}.NAME=value")
        return fill(kind if now is None else now, value, f"{name}.")
    return _scalar(value, kind, name)


def _one_of(value: Any, kinds: tuple[Any, ...], name: str, now: Any) -> Any:
    if type(None) in kinds and (value is None or value == "none"):
        return None
    problem: CartoucheError | None = None
    for kind in kinds:
        if kind is not type(None):
            try:
                return convert(value, kind, name, now if isinstance(kind, type) and isinstance(now, kind) else None)
            except CartoucheError as error:
                problem = problem or error
    raise problem or CartoucheError(f"{name}={value!r} cannot be set")


def _choice(value: Any, choices: tuple[Any, ...], name: str) -> Any:
    for choice in choices:
        if value == choice or (isinstance(value, str) and value == str(choice)):
            return choice
    raise unknown(f"value for {name}", str(value), [str(choice) for choice in choices])


def _sequence(value: Any, origin: Any, arguments: tuple[Any, ...], name: str) -> Any:
    if isinstance(value, str):
        value = [part.strip() for part in value.strip("[]() ").split(",") if part.strip()]
    if not isinstance(value, (list, tuple)):
        raise CartoucheError(f"{name}={value!r}: wanted a list, as in {name}=1,2")
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise CartoucheError(f"{name}={value!r}: wanted {len(arguments)} values, got {len(value)}")
        return tuple(convert(one, kind, name) for one, kind in zip(value, arguments, strict=True))
    return origin(convert(one, arguments[0] if arguments else Any, name) for one in value)


def _scalar(value: Any, kind: Any, name: str) -> Any:
    """Numbers, words, paths: text is read as the wanted kind; a number may widen but never lose a digit."""
    wanted = getattr(kind, "__name__", str(kind))
    wrong = CartoucheError(f"{name}={value!r}: wanted {_in_words.get(wanted, wanted)}")
    if kind is bool:
        if isinstance(value, str):
            value = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(value.lower())
        if not isinstance(value, bool):
            raise wrong
        return value
    if kind in (int, float):
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise wrong
        try:
            number = float(value)
            if kind is float:
                return number
            return int(value) if not isinstance(value, float) and "e" not in str(value).lower() else _whole(number)
        except (ValueError, OverflowError):
            raise wrong from None
    if kind is Path and isinstance(value, (str, Path)):
        return Path(value)
    if isinstance(kind, type) and isinstance(value, kind):
        return value
    raise wrong


def _whole(number: float) -> int:
    if not math.isfinite(number) or number != int(number):
        raise ValueError(number)
    return int(number)


_in_words = {
    "int": "a whole number, as in 100",
    "float": "a number, as in 0.001",
    "bool": "true or false",
    "str": "text",
    "Path": "a path",
}
