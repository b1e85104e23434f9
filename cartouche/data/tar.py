"""Tar files by offset: where each member lies, nothing unpacked, nothing trusted; and tars that come out the same.

Read is plain tar as POSIX.1-1988 (ustar) lays it out, with the two ways of giving a long name (POSIX.1-2001 "x" records
and GNU "L"). Anything that is not an ordinary file or folder (links, devices, pipes, sparse files) is refused, and so
is a name that leads outside.
"""

import io
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cartouche.config import CartoucheError
from cartouche.files import whole

from .records import Limits, safe_name

BLOCK = 512
LONGEST_HEADER = 64 << 10  # bytes of an extended header; ours are under 1 kB
_KINDS = {b"1": "a hard link", b"2": "a symbolic link", b"K": "a link"}
_KINDS |= {b"3": "a device", b"4": "a device", b"6": "a pipe", b"S": "a sparse file"}


class DamagedTarError(CartoucheError):
    """The rest of this tar cannot be read; what came before is good."""


@dataclass(frozen=True)
class Member:
    """An ordinary file in a tar: its bytes are [offset, offset + size)."""

    name: str
    offset: int
    size: int


def members(path: Path, limits: Limits) -> Iterator[Member]:
    """The ordinary files of a tar, in order.

    Raises DamagedTarError where the reading must end early, CartoucheError for what is refused: links, devices, names
    that lead outside, more than limits.members entries.
    """
    length = path.stat().st_size
    with path.open("rb") as file:
        at, count, extended = 0, 0, dict[str, str]()
        while header := _header(file, at, path):
            count += 1
            if count > limits.members:
                raise CartoucheError(
                    f"{path.name}: over {limits.members} entries; split the tar or raise Limits.members"
                )
            kind, size = header[156:157], _number(header[124:136], path)
            if kind in b"0\x007" and "size" in extended:
                size = _decimal(extended["size"], path)
            start = at + BLOCK
            at = start + -(-size // BLOCK) * BLOCK
            name = extended.get("path") or _name(header)
            if start + size > length:
                raise DamagedTarError(
                    f"{name!r} claims {size} bytes where {length - start} are left; the rest is unreadable"
                )
            if kind in b"xgL":
                extended |= _extended(file, kind, start, size, path)
                continue
            extended = {}
            if kind not in b"0\x0075":
                what = _KINDS.get(kind, "of an unknown kind")
                raise CartoucheError(f"{path.name}: {name!r} is {what}; only ordinary files are read")
            if kind == b"5" and name in (".", "./"):
                continue
            safe = safe_name(name, path.name)
            if kind != b"5" and not name.endswith("/"):
                yield Member(safe, start, size)


def write_tar(path: Path, files: Iterable[tuple[str, bytes]]) -> dict[str, int]:
    """Write (name, bytes) in that order, without times or owners, whole or not at all; returns each one's offset."""
    offsets = {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
            offsets[name] = tar.offset - -(-len(data) // BLOCK) * BLOCK
    return offsets


def _header(file: BinaryIO, at: int, path: Path) -> bytes:
    """The header block at `at`, checked against its own sum; empty at the end mark, a block of zeros."""
    file.seek(at)
    block = file.read(BLOCK)
    if at == 0 and block[:2] == b"\x1f\x8b":
        raise CartoucheError(f"{path.name} is compressed, so nothing in it has a place; gunzip it first")
    if len(block) < BLOCK:
        raise DamagedTarError("the tar ends without its end mark; it was cut short")
    if not block.strip(b"\0"):
        return b""
    if sum(block[:148]) + sum(block[156:]) + 8 * ord(" ") != _number(block[148:156], path):
        raise DamagedTarError(f"no tar header at byte {at}; the rest of the tar is unreadable")
    return block


def _number(digits: bytes, path: Path) -> int:
    """A size: octal text, or GNU's binary form when the first bit is set."""
    if digits[:1] == b"\x80":
        return int.from_bytes(digits[1:], "big")
    octal = digits.strip(b"\0 ")
    if octal.strip(b"01234567"):
        raise DamagedTarError(f"{path.name}: {digits!r} is no octal number")
    return int(octal or b"0", 8)


def _decimal(digits: str, path: Path) -> int:
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
        raise DamagedTarError(f"{path.name}: an extended header gives the size {digits[:20]!r}")
    return int(digits)


def _name(header: bytes) -> str:
    name, prefix = (part.split(b"\0", 1)[0] for part in (header[:100], header[345:500]))
    whole = prefix + b"/" + name if header[257:263] == b"ustar\0" and prefix else name
    return whole.decode("utf-8", "replace")


def _extended(file: BinaryIO, kind: bytes, start: int, size: int, path: Path) -> dict[str, str]:
    """What an extended header says of the next member: its name and, for a very large one, its size."""
    if size > LONGEST_HEADER:
        raise DamagedTarError(f"an extended header of {size} bytes; at most {LONGEST_HEADER} are read")
    file.seek(start)
    data = file.read(size)
    if kind == b"L":
        return {"path": data.split(b"\0", 1)[0].decode("utf-8", "replace")}
    said = _pairs(data)
    if any(name.startswith("GNU.sparse") for name in said):
        raise CartoucheError(f"{path.name}: a sparse file; only ordinary files are read")
    return {name: said[name] for name in ("path", "size") if name in said and kind == b"x"}


def _pairs(data: bytes) -> dict[str, str]:
    """The "LENGTH NAME=VALUE\\n" lines of a POSIX.1-2001 header."""
    said = {}
    while data.strip(b"\0"):
        digits, _, rest = data.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        line = rest[: max(length - len(digits) - 1, 0)]
        if not line.endswith(b"\n") or b"=" not in line:
            raise DamagedTarError("an extended header that cannot be read")
        name, _, value = line[:-1].partition(b"=")
        said[name.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
        data = data[length:]
    return said
