"""Constrained decoding: JSON of a given shape and nothing else, whatever a net would rather say.

A shape (Record, Array, Row, Enum, Integer, Text) is read as an automaton over bytes. Its state is what is still to
come, a tuple of parts; `step` takes one byte and gives the state after it, or None where no JSON of the shape goes on
so. Tokens are tried byte by byte over their common prefixes, which gives the mask of those a net may say next. At any
moment `closing` is a shortest text that ends what is open, so a text that must stop is still JSON of the shape.

Spaces mean nothing but inside free text: a byte-pair vocabulary marks the end of a word, and JSON's signs are words to
it. So names are matched with their spaces taken out, and `restore` puts them back.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from cartouche.config import CartoucheError

QUOTE, SPACE = ord('"'), ord(" ")
DIGITS = frozenset(b"0123456789")
PLAIN = frozenset(range(0x20, 0x7F)) - set(b'"\\')  # bytes that stand for themselves in a JSON string
LEADS, TRAILS = frozenset(range(0xC3, 0xE0)), frozenset(range(0x80, 0xC0))  # letters of two bytes: U+00C0 to U+07FF
REMEMBERED = 8192  # states whose mask is kept


# shapes


@dataclass(frozen=True, eq=False)
class Enum:
    """A string, one of `values`. Values that differ in their spaces alone are refused."""

    values: tuple[str, ...]
    spelled: dict[str, str] = field(init=False, repr=False)
    sorted: tuple[bytes, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        spelled = {_squeezed(value): value for value in self.values}
        if len(spelled) != len(set(self.values)) or not spelled:
            raise CartoucheError(f"{len(self.values)} values to choose from, {len(spelled)} told apart without spaces")
        object.__setattr__(self, "spelled", spelled)
        encoded = sorted(json.dumps(value, ensure_ascii=False)[1:-1].encode() for value in spelled)
        object.__setattr__(self, "sorted", tuple(encoded))


@dataclass(frozen=True, eq=False)
class Integer:
    """A whole number from `low` (0 or more) to `high`."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise CartoucheError(f"numbers from {self.low} to {self.high} asked; wanted 0 <= low <= high")


@dataclass(frozen=True, eq=False)
class Text:
    """A string of at most `longest` bytes: printable ASCII and letters of two bytes (Latin, Greek, Cyrillic, ...)."""

    longest: int


@dataclass(frozen=True, eq=False)
class Array:
    """`low` to `high` items of one shape."""

    item: Shape
    low: int
    high: int

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise CartoucheError(f"an array of {self.low} to {self.high} items asked; wanted 0 <= low <= high")


@dataclass(frozen=True, eq=False)
class Row:
    """An array of these items, one after another."""

    items: tuple[Shape, ...]


@dataclass(frozen=True, eq=False)
class Record:
    """An object of these fields, all of them, in this order."""

    fields: dict[str, Shape]


Shape = Enum | Integer | Text | Array | Row | Record


# parts of a state: bytes that must come, a shape not yet begun, or one of these


class Spelling(NamedTuple):
    """Inside an Enum's string: `at` bytes are said and the values from `low` to `high` begin so."""

    enum: Enum
    low: int
    high: int
    at: int


class Counting(NamedTuple):
    """Inside a number: its digits so far."""

    integer: Integer
    digits: str


class Writing(NamedTuple):
    """Inside a Text: how many bytes are left, whether a letter's second byte must come, whether a space was last."""

    left: int
    open: bool = False
    spaced: bool = True


class More(NamedTuple):
    """Inside an Array: how many items are there."""

    array: Array
    there: int


Part = bytes | Shape | Spelling | Counting | Writing | More
State = tuple[Part, ...]


def start(shape: Record) -> State:
    """The state before the first byte. () is the state after the last."""
    return (shape,)


def step(state: State, byte: int) -> State | None:
    """The state after one more byte, None where no text of the shape goes on so. Spaces without meaning are passed."""
    if not state:
        return state if byte == SPACE else None
    part, rest = state[0], state[1:]
    if isinstance(part, Writing):
        return _write(part, rest, byte)
    if byte == SPACE:
        return state
    if isinstance(part, bytes):
        return None if part[0] != byte else (part[1:], *rest) if len(part) > 1 else rest
    if isinstance(part, Spelling):
        return _spell(part, rest, byte)
    if isinstance(part, Counting):
        return _count(part, rest, byte)
    if isinstance(part, More):
        return _more(part, rest, byte)
    return step(_opened(part) + rest, byte)


def complete(state: State) -> bool:
    """Whether the text may end here."""
    return not state


def closing(state: State) -> bytes:
    """A shortest text that ends all that is open."""
    return b"".join(map(_closing, state))


def restore(shape: Shape, value: Any) -> Any:
    """Parsed JSON with its names spelled as the shape spells them and free text trimmed."""
    if isinstance(shape, Record):
        return {name: restore(one, value[name]) for name, one in shape.fields.items()}
    if isinstance(shape, Row):
        return [restore(one, item) for one, item in zip(shape.items, value, strict=True)]
    if isinstance(shape, Array):
        return [restore(shape.item, item) for item in value]
    if isinstance(shape, Enum):
        return shape.spelled[value]
    return value.strip() if isinstance(shape, Text) else value


def _opened(shape: Shape) -> State:
    """A shape as the parts it begins with."""
    if isinstance(shape, Enum):
        return b'"', Spelling(shape, 0, len(shape.sorted), 0)
    if isinstance(shape, Integer):
        return (Counting(shape, ""),)
    if isinstance(shape, Text):
        return b'"', Writing(shape.longest)
    if isinstance(shape, Array):
        return b"[", More(shape, 0)
    if isinstance(shape, Row):
        return _listed(b"[", [(b"", item) for item in shape.items], b"]")
    named = [(json.dumps(name).encode() + b":", one) for name, one in shape.fields.items()]
    return _listed(b"{", named, b"}")


def _listed(opening: bytes, items: Sequence[tuple[bytes, Shape]], end: bytes) -> State:
    parts: list[Part] = []
    for i, (label, item) in enumerate(items):
        parts += [(b"," if i else opening) + label, item]
    return (*parts, end) if items else (opening + end,)


def _spell(part: Spelling, rest: State, byte: int) -> State | None:
    """The values whose next byte it is, a half-open range of the sorted ones; the quote ends the shortest."""
    enum, low, high, at = part
    values = enum.sorted
    if byte == QUOTE and len(values[low]) == at:
        return rest
    said = values[low][:at]
    first = bisect_left(values, said + bytes([byte]), low, high)
    last = bisect_left(values, said + bytes([byte + 1]), low, high) if byte < 255 else high
    return (Spelling(enum, first, last, at + 1), *rest) if first < last else None


def _count(part: Counting, rest: State, byte: int) -> State | None:
    if byte in DIGITS:
        longer = part.digits + chr(byte)
        return (Counting(part.integer, longer), *rest) if _reaches(part.integer, longer) is not None else None
    return step(rest, byte) if _reaches(part.integer, part.digits) == "" else None


def _reaches(integer: Integer, digits: str) -> str | None:
    """The fewest digits after these that make a number in range: "" where it is one already, None where none can."""
    if not digits:
        return str(integer.low)
    if len(digits) > 1 and digits[0] == "0":
        return None
    room = 0 if digits == "0" else len(str(integer.high)) - len(digits)
    for more in range(room + 1):
        first = int(digits) * 10**more
        least = max(first, integer.low)
        if least <= min(first + 10**more - 1, integer.high):
            return str(least)[len(digits) :]
    return None


def _write(part: Writing, rest: State, byte: int) -> State | None:
    left, inside, spaced = part
    if inside:
        return (Writing(left, spaced=False), *rest) if byte in TRAILS else None
    if byte == QUOTE:
        return rest
    if byte == SPACE and spaced:
        return (part, *rest)
    if byte in PLAIN and left:
        return (Writing(left - 1, spaced=byte == SPACE), *rest)
    return (Writing(left - 2, open=True), *rest) if byte in LEADS and left > 1 else None


def _more(part: More, rest: State, byte: int) -> State | None:
    array, there = part
    if byte == ord("]"):
        return rest if there >= array.low else None
    if there == array.high:
        return None
    after = (array.item, More(array, there + 1), *rest)
    if there:
        return after if byte == ord(",") else None
    return step(after, byte)


def _closing(part: Part) -> bytes:
    if isinstance(part, bytes):
        return part
    if isinstance(part, Spelling):
        return min(part.enum.sorted[part.low : part.high], key=len)[part.at :] + b'"'
    if isinstance(part, Counting):
        return (_reaches(part.integer, part.digits) or "").encode()
    if isinstance(part, Writing):
        return b'\xa9"' if part.open else b'"'
    if isinstance(part, More):
        lacking = max(0, part.array.low - part.there)
        items = [_closing(part.array.item)] * lacking
        return (b"," if part.there and lacking else b"") + b",".join(items) + b"]"
    return closing(_opened(part))


def _squeezed(text: str) -> str:
    return text.replace(" ", "")


# tokens


class Fork:
    """A node of the tree of tokens: which bytes go on from here, and which tokens end here."""

    __slots__ = ("ends", "next")

    def __init__(self) -> None:
        self.next: dict[int, Fork] = {}
        self.ends: list[int] = []


class Vocabulary:
    """The bytes of every token, as a tree, and the masks of the tokens a state allows.

    pieces: what each id says, in bytes; b"" for one that is no text. A word's end is a space.
    """

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = pieces
        self.root = Fork()
        for token, piece in enumerate(pieces):
            node = self.root
            for byte in piece:
                node = node.next.setdefault(byte, Fork())
            if piece.strip(b" "):
                node.ends.append(token)
        self.allowed = lru_cache(REMEMBERED)(self._allowed)

    def _allowed(self, state: State) -> np.ndarray:
        """The ids of the tokens that may come next: those all of whose bytes may, and that say something."""
        found: list[int] = []
        open_nodes: list[tuple[Fork, State]] = [(self.root, state)]
        while open_nodes:
            node, here = open_nodes.pop()
            found += node.ends
            for byte, child in node.next.items():
                after = step(here, byte)
                if after is not None:
                    open_nodes.append((child, after))
        return np.array(sorted(found), np.int64)

    def read(self, state: State, token: int) -> tuple[State, bytes]:
        """The state after a token that `allowed` has, and the bytes it adds to the text."""
        said = bytearray()
        for byte in self.pieces[token]:
            after = step(state, byte)
            if after is None:
                raise CartoucheError(f"token {token} cannot come here; choose one of those allowed")
            if byte != SPACE or after != state:
                said.append(byte)
            state = after
        return state, bytes(said)


class Writer:
    """Writes one JSON text token by token. `allowed` says what may come, `say` takes one; `text` is what is said."""

    def __init__(self, vocabulary: Vocabulary, shape: Record) -> None:
        self.vocabulary, self.shape = vocabulary, shape
        self.state, self.text = start(shape), b""
        self.taken = 0
        """How many tokens were said."""

    @property
    def done(self) -> bool:
        return complete(self.state)

    def allowed(self) -> np.ndarray:
        """The ids of the tokens that may come next."""
        return self.vocabulary.allowed(self.state)

    def say(self, token: int) -> None:
        """Take one of the tokens allowed."""
        self.state, said = self.vocabulary.read(self.state, token)
        self.text += said
        self.taken += 1

    def value(self) -> Any:
        """What is said, ended where it is not yet, as a value of the shape."""
        return restore(self.shape, json.loads(self.text + closing(self.state)))
