"""Compiled graphs, kept from one run to the next in a folder that may be deleted at any time."""

from __future__ import annotations

import os
import threading
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

CACHE_BYTES = 4 << 30  # a Stable Diffusion of 1.7 GB fits twice


@dataclass(frozen=True)
class CompileCache:
    """A folder of compiled graphs, at most `limit` bytes: the least recently used go first. Safe to delete at any time.

    A folder that cannot be written is no error: graphs are then compiled each time.
    """

    folder: Path
    limit: int = CACHE_BYTES

    @classmethod
    def default(cls) -> CompileCache:
        """`$XDG_CACHE_HOME/cartouche`, or `~/.cache/cartouche`."""
        root = os.environ.get("XDG_CACHE_HOME", "")
        home = os.path.expanduser("~")  # stays as it is where a user has none: then nothing is kept
        home = os.path.join(home, ".cache") if os.path.isabs(home) else os.devnull
        return cls(Path(root if os.path.isabs(root) else home) / "cartouche" / "compiled")

    def read(self, key: str) -> np.ndarray | None:
        """The bytes stored under `key`, mapped from the disk; None where there are none or they are damaged."""
        path = self.folder / key
        try:
            whole = np.memmap(path, np.uint8, "r")
            os.utime(path)
        except (OSError, ValueError):
            return None
        blob, check = whole[:-4], whole[-4:].tobytes()
        return blob if zlib.crc32(blob.data) == int.from_bytes(check, "little") else None

    def write(self, key: str, blob: bytes | memoryview) -> None:
        """Store whole or not at all, then drop the oldest until the folder is within its limit."""
        if len(blob) + 4 > self.limit:
            return
        temporary = self.folder / f"{key}.{os.getpid()}.{threading.get_ident()}.tmp"
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                with open(temporary, "xb") as file:
                    file.write(blob)
                    file.write(zlib.crc32(blob).to_bytes(4, "little"))
                os.replace(temporary, self.folder / key)
            finally:
                temporary.unlink(missing_ok=True)
            self.prune()

    def drop(self, key: str) -> None:
        """Forget what is stored under `key`."""
        with suppress(OSError):
            (self.folder / key).unlink(missing_ok=True)

    def prune(self) -> None:
        """Delete the least recently used files, those of a killed process among them, until `limit` holds."""
        found = []
        for path in self.folder.iterdir():
            with suppress(OSError):
                found.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        excess = sum(size for _, size, _ in found) - self.limit
        for _, size, path in sorted(found):
            if excess <= 0:
                return
            with suppress(OSError):
                path.unlink()
                excess -= size
