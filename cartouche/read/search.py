"""An index of a folder of pictures: one vector each, made once, kept beside them, searched exactly.

    for progress in update("PHOTOS", matcher): ...            # reads what is new or changed, forgets what is gone
    hits = Index.load("PHOTOS").checked(matcher).search(asked(matcher, "a happy cat"))

The index is one safetensors file, `.cartouche/index.safetensors` in the folder, written whole or not at all: the
vectors, (N, D) float32, and as JSON the name, size and time of change of every file, also of those that could not be
read and why.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from cartouche import images
from cartouche.config import CartoucheError
from cartouche.data.records import kind_of
from cartouche.read import approximate
from cartouche.read.match import Matcher, batches
from cartouche.weights import safetensors

HOME, FILE = ".cartouche", "index.safetensors"
FORMAT = "cartouche-index-1"
BLOCK = 65_536  # vectors that are compared at once: 128 MB of 512 numbers
SAVE_EVERY = 30.0  # seconds


class Entry(NamedTuple):
    """A file as it was when it was read. name: relative to the folder; why: the reason where it could not be read."""

    name: str
    size: int
    changed: int
    why: str = ""


class Hit(NamedTuple):
    """A picture that was found, and the cosine of its angle with the query."""

    path: Path
    score: float


@dataclass(frozen=True)
class Progress:
    """Where an update stands: `done` of `total` files that are new or changed; name: the last one read, "" at first.

    why: the reason where it could not be read. kept: files that were known already; gone: known ones that are no more.
    """

    done: int
    total: int
    kept: int
    gone: int
    name: str = ""
    why: str = ""


@dataclass
class Index:
    """The vectors of the pictures of a folder. entries and rows of vectors, (N, D), belong together one by one."""

    folder: Path
    place: Path
    model: str
    entries: list[Entry] = field(default_factory=list)
    vectors: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    broken: list[Entry] = field(default_factory=list)
    token: str = ""

    @classmethod
    def load(cls, folder: Path | str, place: Path | str | None = None) -> Index:
        """The index of a folder, kept in it or at `place`. Raises CartoucheError where there is none that is sound."""
        path = _place(folder, place) / FILE
        if not path.is_file():
            raise CartoucheError(f"{folder} has no index; make one with `cartouche index {folder}`")
        try:
            return cls(Path(folder), path.parent, **_read(path))
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise CartoucheError(f"{path} is damaged ({error}); delete it and index {folder} again") from error

    def save(self) -> None:
        """Write the index, whole or not at all, sorted by name. Raises CartoucheError where the disk refuses."""
        order = sorted(range(len(self.entries)), key=lambda i: self.entries[i].name)
        self.entries, self.vectors = [self.entries[i] for i in order], self.vectors[order]
        files = {"files": self.entries, "broken": sorted(self.broken)}
        self.token = os.urandom(8).hex()
        about = {"format": FORMAT, "model": self.model, "token": self.token}
        tensors = {"vectors": self.vectors, "files": np.frombuffer(json.dumps(files).encode(), np.uint8)}
        try:
            self.place.mkdir(parents=True, exist_ok=True)
            safetensors.save(self.place / FILE, tensors, about)
        except OSError as error:
            why = error.strerror or error
            raise CartoucheError(f"cannot write {self.place / FILE}: {why}; give another place with --index") from error

    def checked(self, matcher: Matcher) -> Index:
        """Itself, if its vectors are those of this matcher. Raises CartoucheError, with what to type, otherwise."""
        if self.model != matcher.hash:
            raise CartoucheError(
                f"the index of {self.folder} was made with model {self.model}, this one is {matcher.hash}; name that "
                f"one with --model, or make the index anew: `cartouche index {self.folder} --force`"
            )
        if self.vectors.shape[1:] != (matcher.width,):
            raise CartoucheError(
                f"the index of {self.folder} is damaged: its vectors have the shape {self.vectors.shape}, not "
                f"(N, {matcher.width}); make it anew: `cartouche index {self.folder} --force`"
            )
        return self

    def search(self, query: np.ndarray, count: int = 10) -> list[Hit]:
        """The `count` pictures whose vectors are nearest to a query (D,) of length 1, the nearest first.

        Exact up to approximate.EXACT pictures, and beyond wherever there is no graph of them.
        """
        if count < 1:
            raise CartoucheError(f"count={count} given; choose 1 or more")
        rows = approximate.candidates(self.place, self.token, len(self.entries), query, count)
        best = exact(self.vectors if rows is None else self.vectors[rows], query, count)
        return [Hit(self.folder / self.entries[row if rows is None else rows[row]].name, score) for row, score in best]


def exact(vectors: np.ndarray, query: np.ndarray, count: int) -> list[tuple[int, float]]:
    """The rows of (N, D) with the largest products with (D,), and these; of equal ones the first row first."""
    found: list[tuple[float, int]] = []
    for first in range(0, len(vectors), BLOCK):
        scores = np.asarray(vectors[first : first + BLOCK] @ query)
        worst = np.partition(scores, -count)[-count] if len(scores) > count else -np.inf
        rows = np.flatnonzero(scores >= worst)
        found = sorted([*found, *zip((-scores[rows]).tolist(), (first + rows).tolist(), strict=True)])[:count]
    return [(row, -score) for score, row in found]


def asked(matcher: Matcher, query: str) -> np.ndarray:
    """The vector (D,) of a query: of the picture, where it names one, or of the text."""
    if kind_of(Path(query).suffix) and Path(query).is_file():
        return np.asarray(matcher.pixels([images.decode(query)])[0])
    return np.asarray(matcher.texts([query])[0])


def update(
    folder: Path | str, matcher: Matcher, place: Path | str | None = None, *, anew: bool = False
) -> Iterator[Progress]:
    """Bring the index of a folder up to date, picture by picture; what was read is kept wherever it is stopped.

    anew: forget what an older index says, also one of another model or a damaged one.
    Raises CartoucheError where the folder is none, the index is of another model, or the disk refuses.
    """
    folder, place = Path(folder), _place(folder, place)
    files = {entry.name: entry for entry in pictures(folder)}
    index = Index(folder, place, matcher.hash)
    if not anew and (place / FILE).is_file():
        index = Index.load(folder, place).checked(matcher)
    known = {one.name for one in (*index.entries, *index.broken)}
    rows = [i for i, one in enumerate(index.entries) if files.get(one.name) == one]
    index.entries, index.vectors = [index.entries[i] for i in rows], index.vectors[rows].reshape(-1, matcher.width)
    index.broken = [one for one in index.broken if files.get(one.name) == one._replace(why="")]
    kept = {one.name for one in (*index.entries, *index.broken)}
    fresh = [one for name, one in files.items() if name not in kept]
    start = Progress(0, len(fresh), len(kept), len(known - files.keys()))
    yield start
    if fresh or known != kept or not (place / FILE).is_file():
        yield from _reading(index, fresh, matcher, start)
        approximate.write(index.place, index.token, index.vectors)


def pictures(folder: Path | str) -> Iterator[Entry]:
    """Every picture in a folder and the folders in it, hidden ones left out, in the order of their names."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CartoucheError(f"{folder} is not a folder of pictures")
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(root, name)
            if name.startswith(".") or not kind_of(path.suffix):
                continue
            with suppress(OSError):  # gone since its name was read
                state = path.stat()
                if stat.S_ISREG(state.st_mode):
                    yield Entry(path.relative_to(folder).as_posix(), state.st_size, state.st_mtime_ns)


def _reading(index: Index, fresh: Sequence[Entry], matcher: Matcher, start: Progress) -> Iterator[Progress]:
    """Read what is fresh, a batch at a time; saved from time to time, and at the end however it comes."""
    read: list[tuple[list[Entry], np.ndarray]] = [(index.entries, index.vectors)]
    saved, cost, done = time.monotonic(), 0.0, 0
    try:
        for some in batches(fresh, matcher.batch):
            prepared, broken = _prepared(index.folder, some, matcher)
            good = [one for one in some if one.name in prepared]
            read.append((good, matcher.prepared(prepared[one.name] for one in good)))
            index.broken += broken.values()
            for one in some:
                done += 1
                why = broken[one.name].why if one.name in broken else ""
                yield replace(start, done=done, name=one.name, why=why)
            if time.monotonic() - saved > max(SAVE_EVERY, 10 * cost):
                began = time.monotonic()
                _save(index, read)
                saved, cost = time.monotonic(), time.monotonic() - began
    finally:
        _save(index, read)


def _prepared(folder: Path, some: Iterable[Entry], matcher: Matcher) -> tuple[dict[str, np.ndarray], dict[str, Entry]]:
    """By name, the pictures as the tower takes them, and those that cannot be read, with the reason."""
    prepared, broken = {}, {}
    for one in some:
        try:
            prepared[one.name] = matcher.prepare(images.decode(folder / one.name))
        except CartoucheError as error:
            broken[one.name] = one._replace(why=str(error))
    return prepared, broken


def _save(index: Index, read: Sequence[tuple[list[Entry], np.ndarray]]) -> None:
    index.entries = [one for entries, _ in read for one in entries]
    index.vectors = np.concatenate([vectors for _, vectors in read])
    index.save()


def _place(folder: Path | str, place: Path | str | None) -> Path:
    return Path(folder) / HOME if place is None else Path(place)


def _read(path: Path) -> dict[str, Any]:
    """What a file of `Index.save` holds; the vectors stay on the disk until they are looked at."""
    about, layout = safetensors.metadata(path), safetensors.layout(path)
    if about.get("format") != FORMAT:
        raise ValueError(f"format {about.get('format')!r}, wanted {FORMAT}")
    files = json.loads(safetensors.load_numpy(path, ("files",))["files"].tobytes())
    entries, broken = ([_entry(one) for one in files[name]] for name in ("files", "broken"))
    lies = layout["vectors"]
    if lies.dtype != "F32" or len(lies.shape) != 2 or lies.shape[0] != len(entries):
        raise ValueError(f"{lies.dtype} vectors {lies.shape} for {len(entries)} files")
    if not about["token"].isalnum():
        raise ValueError(f"token {about['token']!r}")
    empty = 0 in lies.shape
    vectors = np.zeros(lies.shape, np.float32) if empty else np.memmap(path, np.float32, "r", lies.start, lies.shape)
    return {
        "model": about["model"],
        "token": about["token"],
        "entries": entries,
        "broken": broken,
        "vectors": vectors,
    }


def _entry(given: Sequence[Any]) -> Entry:
    name, size, changed, why = given
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ValueError(f"the name {name!r} leads outside the folder")
    return Entry(str(name), int(size), int(changed), str(why))
