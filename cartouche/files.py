"""Files written whole or not at all: whatever moment the power goes, a name holds the old file or the new one.

And told apart by their content: `fingerprint`.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from cartouche.config import CartoucheError


@contextmanager
def created(path: Path | str) -> Iterator[BinaryIO]:
    """A new file, on the disk to the last byte when the block ends. Raises OSError, also where the name is taken.

    No rename: this is for a file in a folder that is itself renamed later. Elsewhere use `whole`.
    """
    with open(path, "xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def whole(path: Path | str, *, force: bool = True) -> Iterator[BinaryIO]:
    """A file that appears at `path` in one stroke when the block ends, in place of an older one only where `force`.

    Temporary file beside it, fsync, rename (or link), fsync of the folder. It gets the ordinary mode, 0666 less the
    umask. Raises OSError where the disk refuses, FileExistsError where the name is taken and `force` is off: the old
    file is then untouched, and no temporary one is left, as after any error inside the block.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with created(temporary) as file:
            yield file
        if force:
            os.replace(temporary, path)
        else:
            _name_if_free(temporary, path)
        sync_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_whole(path: Path | str, data: bytes, *, force: bool = False) -> Path:
    """Put `data` at `path` as `whole` does. Raises CartoucheError, in words for people, where it cannot be."""
    path = Path(path)
    if path.is_dir():
        raise CartoucheError(f"{path} is a folder; give the name of a file in it")
    try:
        with whole(path, force=force) as file:
            file.write(data)
    except FileExistsError:
        raise CartoucheError(f"{path} exists already; choose another name, or --force to write over it") from None
    except OSError as error:
        raise CartoucheError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def sync_folder(folder: Path | str) -> None:
    """Make the names inside a folder durable (after a rename). Windows has no such call and needs none."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fingerprint(*paths: Path | str) -> str:
    """The first ten hexadecimal digits of `digest`, as model sites show them."""
    return digest(*paths)[:10]


def digest(*paths: Path | str) -> str:
    """The sha256 of a file; of several, that of theirs one after the other."""
    digests = []
    for path in paths:
        with open(path, "rb") as file:
            digests.append(hashlib.file_digest(file, "sha256"))
    whole = digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(one.digest() for one in digests))
    return whole.hexdigest()


def _name_if_free(temporary: Path, path: Path) -> None:
    """Give the file its name, unless another has it: a hard link is refused by the system itself, without a race."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if path.exists():
            raise FileExistsError(path) from None
        os.replace(temporary, path)
