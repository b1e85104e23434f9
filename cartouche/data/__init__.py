"""Pictures with captions, from a folder, from tar shards or composed from drawings; sample i is had by its number.

`opened(path)` reads what is there, `Pictures` makes an endless shuffled training stream of it; `streams.Scenes` is the
stream that needs nothing but the drawings.
"""

from pathlib import Path

from .folder import Folder, write_folder
from .records import BadSampleError, Limits, Reader, Record
from .shards import Shards, write_shards
from .shuffle import Pictures

__all__ = [
    "BadSampleError",
    "Folder",
    "Limits",
    "Pictures",
    "Reader",
    "Record",
    "Shards",
    "opened",
    "write_folder",
    "write_shards",
]


def opened(
    path: Path | str, caption: str = "text", cache: Path | str | None = None, limits: Limits | None = None
) -> Reader:
    """The reader for a path: a folder of pictures, or tar shards (a folder of .tar files, a .tar, a pattern).

    caption names the field with the caption; cache is where indexes of shards are kept. Raises CartoucheError where
    nothing can be read.
    """
    folder = Path(path)
    if folder.is_dir() and not any(folder.glob("*.tar")):
        return Folder(folder, caption, limits)
    return Shards(path, caption, cache, limits)
