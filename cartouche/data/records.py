"""Samples as they are stored: a picture's bytes, its caption, its other fields; and the limits that keep bad ones out.

Every reader gives records by number and nothing else, so reading is pure: sample i today is sample i tomorrow, in any
process. A broken sample raises BadSampleError, is left out and counted; above a set share the reading stops.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, TypeVar

import numpy as np

from cartouche import images
from cartouche.config import CartoucheError

T = TypeVar("T")
KINDS = ("png", "jpg", "webp")  # the only pictures read; a format more is a decoder more to trust
_SUFFIXES = {"png": "png", "jpg": "jpg", "jpeg": "jpg", "webp": "webp"}


@dataclass(frozen=True)
class Limits:
    """What may be asked of this machine by a file from outside.

    members: entries of one tar, or lines of one metadata file. picture, text: bytes of one picture, of one caption or
    record. pixels: width x height, checked before decoding. broken: share of samples that may be broken before reading
    stops.
    """

    members: int = 1_000_000
    picture: int = 64 << 20
    text: int = 1 << 20
    pixels: int = images.MAX_PIXELS
    broken: float = 0.01


class BadSampleError(CartoucheError):
    """One sample cannot be read; the others can."""


@dataclass(frozen=True)
class Record:
    """One sample as stored: picture is the encoded file, kind one of KINDS, fields whatever else was said of it."""

    key: str
    kind: str
    picture: bytes
    caption: str
    fields: dict[str, Any] = field(default_factory=dict)


class Tally:
    """The broken samples met so far, each counted once, with the reason; above `share` of all samples it raises."""

    def __init__(self, share: float):
        self.share = share
        self.total: int | None = None
        self.reasons: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.reasons)

    def limit(self, total: int) -> None:
        """From now on know how many samples there are, good and broken. Raises CartoucheError, as `add` does."""
        self.total = total
        self._check()

    def add(self, where: str, why: object) -> None:
        """Count a broken sample. Raises CartoucheError when too many are broken."""
        self.reasons.setdefault(where, str(why))
        self._check()

    def _check(self) -> None:
        if self.total is not None and len(self) > self.share * self.total:
            first = "; ".join(f"{where}: {why}" for where, why in list(self.reasons.items())[:3])
            raise CartoucheError(
                f"{len(self)} of {self.total} samples are broken, more than the {self.share:.2%} allowed ({first}); "
                "mend the data or raise Limits.broken"
            )


class Reader(ABC):
    """Pictures with captions by number: reader[i] = {"key", "image" (H, W, 3) uint8, "caption", "fields"}.

    reader[i] raises BadSampleError for a broken sample; iterating leaves those out and counts them in `tally`, the
    order of the rest unchanged.
    """

    limits: Limits
    tally: Tally

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def record(self, index: int) -> Record:
        """Sample `index` as stored, the picture not decoded. Raises BadSampleError, IndexError."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.record(index)
        image = decode(record.picture, self.limits)
        return {"key": record.key, "image": image, "caption": record.caption, "fields": record.fields}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self._good(self.__getitem__)

    def records(self) -> Iterator[Record]:
        """The records in order, those that cannot be read left out and counted; this is what the writers take."""
        return self._good(self.record)

    def count_broken(self, index: int, why: object) -> None:
        """Count sample `index` as broken. Raises CartoucheError above the share that limits.broken allows."""
        self.tally.add(f"sample {index}", why)

    def _good(self, read: Callable[[int], T]) -> Iterator[T]:
        for index in range(len(self)):
            try:
                yield read(index)
            except BadSampleError as broken:
                self.count_broken(index, broken)


def kind_of(suffix: str) -> str | None:
    """The kind of picture a file suffix promises ("jpeg" is "jpg"), or None when it is no picture we read."""
    return _SUFFIXES.get(suffix.lower().removeprefix("."))


def decode(picture: bytes, limits: Limits) -> np.ndarray:
    """The picture as (H, W, 3) uint8, turned as its camera says, on white. Raises BadSampleError where it is broken."""
    try:
        return images.decode(picture, limits.pixels)
    except CartoucheError as error:
        raise BadSampleError(str(error)) from error


def parse(text: bytes, limits: Limits) -> dict[str, Any]:
    """One JSON object. Raises BadSampleError when it is too long, too deep or something else."""
    if len(text) > limits.text:
        raise BadSampleError(f"a record of {len(text)} bytes; at most {limits.text} are read")
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadSampleError(f"not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise BadSampleError(f"wanted a JSON object, got {type(fields).__name__}")
    return fields


def words(value: object, what: str) -> str:
    """A caption or a name: text, the spaces around it taken off. Raises BadSampleError for anything else."""
    if not isinstance(value, str) or not value.strip():
        raise BadSampleError(f"{what} is {'empty' if value == '' else 'no text'}; every sample needs one")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a character, which no file name and no tokenizer takes
        raise BadSampleError(f"{what} {value!r} holds half a character; every sample needs whole ones") from error
    return value.strip()


def safe_name(name: str, where: str) -> str:
    """A relative path that stays inside its folder, with "./" taken off. Raises CartoucheError for any other."""
    path = PurePosixPath(name)
    outside = path.is_absolute() or ".." in path.parts or "\\" in name or name[1:2] == ":"
    if outside or not path.parts or min(name) < " ":
        raise CartoucheError(f"{where}: the name {name!r} could lead outside the folder; wanted a plain relative one")
    return str(path)
