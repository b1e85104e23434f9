"""A folder of pictures with metadata.jsonl (the "imagefolder" layout): the plainest way to keep pictures with captions.

One JSON object a line, `{"file_name": "cats/1.png", "text": "a cat", ...}`, names relative to the metadata file.
Without any metadata file, a picture's caption is the name of the sub-folder it lies in. The listing is held in memory:
for millions of pictures use shards.
"""

import json
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cartouche.config import CartoucheError
from cartouche.files import write_whole

from .records import BadSampleError, Limits, Reader, Record, Tally, kind_of, parse, safe_name, words

METADATA = "metadata.jsonl"


class Folder(Reader):
    """The pictures of a folder, in the order of its metadata files (of their names where there is none).

    caption: the field that holds the caption. Raises CartoucheError for a folder without pictures, names that lead
    outside it, and when too many lines are broken.
    """

    def __init__(self, folder: Path | str, caption: str = "text", limits: Limits | None = None):
        self.folder = Path(folder)
        self.caption = caption
        self.limits = limits or Limits()
        self.tally = Tally(self.limits.broken)
        if not self.folder.is_dir():
            raise CartoucheError(f"{self.folder} is not a folder; give a folder of pictures with a {METADATA}")
        listings = sorted(self.folder.rglob(METADATA))
        self.rows = [row for one in listings for row in self._listed(one)] if listings else self._by_folder_name()
        if not self.rows:
            raise CartoucheError(
                f"no picture is listed in {self.folder}; it needs a {METADATA}, or sub-folders of pictures"
            )
        self.tally.limit(len(self) + len(self.tally))

    def __len__(self) -> int:
        return len(self.rows)

    def record(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        name, fields = self.rows[index]
        kind = kind_of(Path(name).suffix)
        if kind is None:
            raise BadSampleError(f"{name} is no webp, png or jpg")
        caption = words(fields.get(self.caption), f"the caption {self.caption!r}")
        others = {key: value for key, value in fields.items() if key not in ("file_name", self.caption)}
        return Record(name.rpartition(".")[0], kind, self._bytes(name), caption, others)

    def _listed(self, listing: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        """(name relative to the whole folder, fields) of every good line of a metadata file."""
        where = listing.parent.relative_to(self.folder).as_posix()
        for number, line in self._lines(listing):
            try:
                fields = parse(line, self.limits)
                name = words(fields.get("file_name"), "file_name")
            except BadSampleError as broken:
                self.tally.add(f"{where}/{METADATA} line {number}", broken)
                continue
            yield safe_name(f"{where}/{safe_name(name, f'{METADATA} line {number}')}", METADATA), fields

    def _lines(self, listing: Path) -> Iterator[tuple[int, bytes]]:
        """The lines that are not blank, by number; an endless one is cut above the limit, and fills no memory."""
        with listing.open("rb") as file:
            count = 0
            while line := file.readline(self.limits.text + 1):
                count += 1
                if count > self.limits.members:
                    raise CartoucheError(
                        f"{METADATA} has over {self.limits.members} lines; use shards or raise Limits.members"
                    )
                if line.strip():
                    yield count, line
                while line and not line.endswith(b"\n"):
                    line = file.readline(self.limits.text)

    def _by_folder_name(self) -> list[tuple[str, dict[str, Any]]]:
        paths = sorted(path for path in self.folder.rglob("*") if kind_of(path.suffix) and path.parent != self.folder)
        return [(path.relative_to(self.folder).as_posix(), {self.caption: path.parent.name}) for path in paths]

    def _bytes(self, name: str) -> bytes:
        path = self.folder / name
        try:
            about = path.stat()
            if not stat.S_ISREG(about.st_mode) or not 0 < about.st_size <= self.limits.picture:
                raise BadSampleError(f"{name} is no ordinary file of 1 to {self.limits.picture} bytes")
            return path.read_bytes()
        except OSError as error:
            raise BadSampleError(f"{name}: {error.strerror}") from error


def write_folder(folder: Path | str, records: Iterable[Record], caption: str = "text") -> int:
    """Write every picture and then metadata.jsonl, so a folder that has it is complete; returns how many samples.

    The pictures keep their bytes. Raises CartoucheError for a key given twice or one that leads outside the folder.
    """
    seen, lines = set[str](), []
    for record in records:
        name = f"{safe_name(record.key, 'a key')}.{record.kind}"
        if name in seen:
            raise CartoucheError(f"the key {record.key!r} is given twice; every sample needs its own")
        seen.add(name)
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(record.picture)
        others = {key: value for key, value in record.fields.items() if key not in ("file_name", caption)}
        lines.append(json.dumps({"file_name": name, caption: record.caption} | others, ensure_ascii=False) + "\n")
    write_whole(Path(folder) / METADATA, "".join(lines).encode(), force=True)
    return len(lines)
