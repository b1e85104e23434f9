"""Tar shards in the WebDataset layout: KEY.webp|png|jpg beside KEY.txt or KEY.json, read by offset.

A shard is scanned once for where its samples lie; after that sample i is a seek and a read. Nothing is unpacked or
unpickled and no command is run: a member is a picture, a text or JSON, or it is left alone.
"""

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from glob import glob
from itertools import chain, groupby, islice
from pathlib import Path

import numpy as np

from cartouche.config import CartoucheError
from cartouche.files import write_whole

from .records import KINDS, BadSampleError, Limits, Reader, Record, Tally, kind_of, parse, safe_name, words
from .tar import DamagedTarError, Member, members, write_tar

VERSION = 1  # of the index file; raised when its content changes meaning
_PARTS = ("picture", "txt", "json")
_ROW = np.dtype([("kind", "u1")] + [(f"{part}_{what}", "<i8") for part in _PARTS for what in ("at", "size")])


@dataclass
class Index:
    """Where the samples of one shard lie (one row each, size 0 where a part is missing); what was left out, and why."""

    rows: np.ndarray
    keys: list[str]
    faults: dict[str, str] = field(default_factory=dict)


class Shards(Reader):
    """The samples of tar shards, in the order of the shards and of their members.

    paths: a folder, a tar, a pattern (`train-*.tar`, `train-{0000..0011}.tar`) or a list of those. caption: the field
    of KEY.json that holds the caption where there is no KEY.txt. cache: a folder for the indexes, made once and safe to
    delete; None keeps them in memory. Raises CartoucheError for no shard, for a shard with links, devices or names that
    lead outside, and when too many samples are broken.
    """

    def __init__(
        self,
        paths: Path | str | list[Path | str],
        caption: str = "text",
        cache: Path | str | None = None,
        limits: Limits | None = None,
    ):
        self.limits = limits or Limits()
        self.caption = caption
        self.paths = shard_paths(paths)
        self.tally = Tally(self.limits.broken)
        self.indexes = [indexed(path, self.limits, Path(cache) if cache else None) for path in self.paths]
        self.ends = np.cumsum([len(index.rows) for index in self.indexes])
        for path, index in zip(self.paths, self.indexes, strict=True):
            for key, why in index.faults.items():
                self.tally.add(f"{path.name}/{key}", why)
        self.tally.limit(len(self) + len(self.tally))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def record(self, index: int) -> Record:
        path, row, key = self._find(index)
        picture = _part(path, row, "picture")
        fields = parse(_part(path, row, "json"), self.limits) if row["json_size"] else {}
        caption = _text(_part(path, row, "txt")) if row["txt_size"] else fields.get(self.caption)
        return Record(key, KINDS[row["kind"]], picture, words(caption, f"the caption {self.caption!r}"), fields)

    def _find(self, index: int) -> tuple[Path, np.void, str]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        shard = int(np.searchsorted(self.ends, index, side="right"))
        place = index - int(self.ends[shard] - len(self.indexes[shard].rows))
        return self.paths[shard], self.indexes[shard].rows[place], self.indexes[shard].keys[place]


def shard_paths(paths: Path | str | list[Path | str]) -> list[Path]:
    """The tar files meant by a folder, a file, a pattern or a list. Raises CartoucheError where there is none."""
    if isinstance(paths, list):
        return list(dict.fromkeys(chain.from_iterable(shard_paths(path) for path in paths)))
    path, text = Path(paths), str(paths)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = sorted(path.glob("*.tar"))
    else:
        found = [Path(name) for pattern in _ranges(text) for name in sorted(glob(pattern))]
    if not found:
        raise CartoucheError(
            f"no tar shard at {text}; give a folder of .tar files, a file or a pattern like train-*.tar"
        )
    return found


def _ranges(pattern: str) -> list[str]:
    """train-{0000..0011}.tar as its twelve names; any other text as it is."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not match:
        return [pattern]
    first, last, width = int(match[1]), int(match[2]), len(match[1])
    if not 0 <= last - first < 1_000_000:
        raise CartoucheError(f"{match[0]} names {last - first + 1} shards; wanted 1 to 1000000")
    return [f"{pattern[: match.start()]}{number:0{width}}{pattern[match.end() :]}" for number in range(first, last + 1)]


def indexed(path: Path, limits: Limits, cache: Path | None = None) -> Index:
    """The index of one shard: from the cache when the shard has not changed since, else by scanning it."""
    if cache is None:
        return scan(path, limits)
    where = path.resolve()
    stamp = json.dumps([VERSION, str(where), where.stat().st_size, where.stat().st_mtime_ns, asdict(limits)])
    sidecar = cache / f"{path.stem}-{hashlib.sha256(str(where).encode()).hexdigest()[:12]}.npz"
    index = _load(sidecar, stamp)
    if index is None:
        index = scan(path, limits)
        said = json.dumps({"stamp": stamp, "keys": index.keys, "faults": index.faults}).encode()
        file = io.BytesIO()
        np.savez(file, rows=index.rows, said=np.frombuffer(said, np.uint8))
        cache.mkdir(parents=True, exist_ok=True)
        write_whole(sidecar, file.getvalue(), force=True)
    return index


def _load(sidecar: Path, stamp: str) -> Index | None:
    """A stored index, or None when there is none, it is damaged or it belongs to another state of the shard."""
    try:
        with np.load(io.BytesIO(sidecar.read_bytes())) as stored:
            said, rows = json.loads(stored["said"].tobytes()), stored["rows"]
            fits = said["stamp"] == stamp and rows.dtype == _ROW and len(rows) == len(said["keys"])
            return Index(rows, said["keys"], said["faults"]) if fits else None
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile):
        return None


def scan(path: Path, limits: Limits) -> Index:
    """Read the headers of a shard and put together the members that share a key; `faults` has what makes no sample."""
    rows, index, seen = [], Index(np.zeros(0, _ROW), []), set[str]()
    listing = _keyed(members(path, limits), index.faults)
    for key, group in groupby(listing, lambda member: split_key(member.name)[0]):
        parts = list(group)
        row, fault = _row(parts, limits)
        if row is None and not fault:
            continue
        if key in seen:
            index.faults[f"{key} at byte {parts[0].offset}"] = "the key came before; only its first sample is kept"
            continue
        seen.add(key)
        if fault:
            index.faults[key] = fault
        if row is not None:
            rows.append(row)
            index.keys.append(key)
    index.rows = np.array(rows, _ROW)
    return index


def split_key(name: str) -> tuple[str, str]:
    """A member's key and suffix, the base name cut at its first dot; both empty where there is no key (".hidden")."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return (folder + slash + stem, suffix) if stem and suffix else ("", "")


def write_shards(
    folder: Path | str, records: Iterable[Record], name: str = "shard", per_shard: int = 1000
) -> list[Path]:
    """Write NAME-000000.tar, NAME-000001.tar ... with per_shard samples each; returns their paths.

    The same records give the same bytes (order as given, no times, no owners). Each shard appears whole or not at all.
    A dot in a key becomes "_", since the layout ends the key there. Raises CartoucheError for a key given twice or one
    that leads outside.
    """
    written, source = list[Path](), _distinct(records)
    while chunk := list(islice(source, per_shard)):
        path = Path(folder) / f"{name}-{len(written):06}.tar"
        write_tar(path, chain.from_iterable(files_of(record) for record in chunk))
        written.append(path)
    return written


def files_of(record: Record) -> Iterator[tuple[str, bytes]]:
    """The members that hold one record: the picture, the caption, and the other fields where there are any."""
    yield f"{record.key}.{record.kind}", record.picture
    yield f"{record.key}.txt", record.caption.encode()
    if record.fields:
        yield f"{record.key}.json", json.dumps(record.fields, ensure_ascii=False, separators=(",", ":")).encode()


def _distinct(records: Iterable[Record]) -> Iterator[Record]:
    seen = set[str]()
    for record in records:
        folder, slash, base = safe_name(record.key, "a key").rpartition("/")
        key = folder + slash + base.replace(".", "_")
        if key in seen:
            raise CartoucheError(f"the key {key!r} is given twice; every sample needs its own")
        seen.add(key)
        yield Record(key, record.kind, record.picture, record.caption, record.fields)


def _keyed(listing: Iterator[Member], faults: dict[str, str]) -> Iterator[Member]:
    """The members that have a key, as far as the tar can be read."""
    try:
        yield from (member for member in listing if split_key(member.name)[0])
    except DamagedTarError as damage:
        faults["the rest"] = str(damage)


def _row(parts: list[Member], limits: Limits) -> tuple[tuple[int, ...] | None, str]:
    """The row of a sample and what is wrong: no row when it cannot be read, no fault when it is no sample at all."""
    kind, found, fault = 0, dict[str, Member](), ""
    for member in parts:
        suffix = split_key(member.name)[1].lower()
        part = "picture" if kind_of(suffix) else suffix
        if part in found:
            fault = f"more than one {part}; the first is kept"
        elif part in _PARTS:
            found[part] = member
            kind = KINDS.index(kind_of(suffix) or KINDS[0]) if part == "picture" else kind
    if not found:
        return None, ""
    if "picture" not in found or len(found) == 1:
        return None, "no caption (txt, json)" if "picture" in found else "no picture (webp, png, jpg)"
    for part, member in found.items():
        most = limits.picture if part == "picture" else limits.text
        if not 0 < member.size <= most:
            return None, f"{member.name} has {member.size} bytes; wanted 1 to {most}"
    places = ((found[part].offset, found[part].size) if part in found else (0, 0) for part in _PARTS)
    return (kind, *chain.from_iterable(places)), fault


def _part(path: Path, row: np.void, part: str) -> bytes:
    """The bytes of one part of a sample. The file is opened anew each time, so any process may read any sample."""
    size = int(row[f"{part}_size"])
    try:
        with path.open("rb") as file:
            file.seek(int(row[f"{part}_at"]))
            data = file.read(size)
    except OSError as error:
        raise BadSampleError(f"{path.name}: {error}") from error
    if len(data) < size:
        raise BadSampleError(f"{path.name}: {size} bytes wanted, {len(data)} left; it was cut short after indexing")
    return data


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadSampleError(f"a caption that is not UTF-8: {error}") from error
