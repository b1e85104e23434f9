"""What every network's configuration shares: read a library's config.json strictly, check types, write it back."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from types import UnionType
from typing import Any, ClassVar, Self, Union, get_args, get_origin, get_type_hints

from cartouche.config import CartoucheError, shown, unknown

LARGEST = 2**20
DEEPEST = 512
"""No published network is wider than the first or has more layers than the second: what asks for more is a trap."""

_SIZE = re.compile(r"channels|_size$|_dim$|(?<!extract_)layers|heads|groups|max_position")
_DEPTH = re.compile(r"^num_\w*(layers|blocks)$|layers_per_block$")


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
        own: Any = type(self)
        for name, kind in _hints(own).items():
            value = getattr(self, name)
            if not _fits(value, kind):
                said = f"{own.__name__}.{name}={shown(repr(value))}"
                raise CartoucheError(f"{said} has the wrong type; give {_spell(kind)}")
            _check_number(f"{own.__name__}.{name}", value)
        depths = {field.name: getattr(self, field.name) for field in fields(self) if _DEPTH.search(field.name)}
        if math.prod(sum(_numbers(one)) or 1 for one in depths.values()) > DEEPEST:
            raise CartoucheError(f"{own.__name__} asks for {shown(depths)}; no known network is so deep")
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
            elif not (_note(name) or name in cls.IGNORED):
                raise unknown(f"{cls.__name__} setting", name, known)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The dictionary that the reference library reads as config.json."""
        return dict(self.HEADER) | {field.name: _thawed(getattr(self, field.name)) for field in fields(self)}


@cache
def _hints(kind: type) -> dict[str, Any]:
    """The kinds of a configuration's fields; they are written as text, so finding them out is slow."""
    kinds = get_type_hints(kind)
    return {field.name: kinds[field.name] for field in fields(kind)}


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
        raise CartoucheError(f"{owner} got {name}={shown(repr(value))}; this network is built with {wanted} only")


def _note(name: str) -> bool:
    """Whether a setting is a library's note to itself, as `_diffusers_version`; `_target_` names code to be run."""
    return name.startswith("_") and not name.endswith("_")


def _check_number(name: str, value: Any) -> None:
    """Refuse what is not a number, and sizes that no network has, before anything is made of them."""
    for number in _numbers(value):
        if not math.isfinite(number):
            raise CartoucheError(f"{name}={shown(repr(value))} is not finite; give an ordinary number")
        if _SIZE.search(name) and not 1 <= number <= LARGEST:
            raise CartoucheError(f"{name}={shown(repr(value))} is no size of a network; give 1 to {LARGEST:,}")
    if isinstance(value, tuple) and len(_numbers(value)) > 64:
        raise CartoucheError(f"{name} has {len(value)} numbers; no known network has more than 64")


def _numbers(value: Any) -> list[int | float]:
    """The numbers of a setting, if it has any."""
    values = value if isinstance(value, tuple) else (value,)
    return [one for one in values if isinstance(one, (int, float)) and not isinstance(one, bool)]


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
