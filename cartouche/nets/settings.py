"""What every network's configuration shares: read a library's config.json strictly, check types, write it back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import UnionType
from typing import Any, ClassVar, Self, Union, get_args, get_origin, get_type_hints

from cartouche.config import CartoucheError, unknown


@dataclass(frozen=True)
class NetConfig:
    """Base of the configurations: the fields are those of the reference library's config.json, in its spelling.

    FIXED names the settings that change the network but are built in one way only here, with the accepted values.
    IGNORED names the settings that leave the network as it is. Any other unknown name is refused.
    """

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    IGNORED: ClassVar[frozenset[str]] = frozenset()
    HEADER: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in fields(self):
            value = getattr(self, field.name)
            if not _fits(value, hints[field.name]):
                raise CartoucheError(
                    f"{type(self).__name__}.{field.name}={value!r} has the wrong type; give {_spell(hints[field.name])}"
                )
        self.check()

    def check(self) -> None:
        """Refuse settings that no network can be built from; each configuration adds its own rules."""

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Self:
        """The configuration written in a config.json; CartoucheError for what this network cannot be."""
        known = {field.name for field in fields(cls)}
        values = {}
        for name, value in given.items():
            if name in known:
                values[name] = _frozen(value)
            elif name in cls.FIXED or name in cls.HEADER:
                _check_fixed(cls.__name__, name, value, cls.FIXED.get(name) or (cls.HEADER[name],))
            elif not (name.startswith("_") or name in cls.IGNORED):
                raise unknown(f"{cls.__name__} setting", name, known)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The dictionary that the reference library reads as config.json."""
        return dict(self.HEADER) | {field.name: _thawed(getattr(self, field.name)) for field in fields(self)}


def per_level(name: str, value: int | tuple[int, ...], levels: int) -> tuple[int, ...]:
    """One number for each resolution level: a single number is repeated, a tuple must have `levels` entries."""
    if isinstance(value, int):
        return (value,) * levels
    if len(value) != levels:
        raise CartoucheError(
            f"{name}={value} has {len(value)} entries for {levels} levels; give one number or {levels}"
        )
    return value


def check_divides(name: str, divisor: int, numbers: tuple[int, ...]) -> None:
    """Refuse a group or head count that does not divide the channels it splits."""
    for number in numbers:
        if divisor < 1 or number % divisor:
            raise CartoucheError(f"{name}={divisor} does not divide {number} channels; choose a divisor of {numbers}")


def _check_fixed(owner: str, name: str, value: Any, accepted: tuple[Any, ...]) -> None:
    if value not in accepted:
        wanted = " or ".join(repr(choice) for choice in accepted)
        raise CartoucheError(f"{owner} got {name}={value!r}; this network is built with {wanted} only")


def _fits(value: Any, kind: Any) -> bool:
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, choice) for choice in get_args(kind))
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, get_args(kind)[0]) for item in value)
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, kind)


def _spell(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _thawed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
