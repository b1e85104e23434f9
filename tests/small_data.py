"""Small data sets for the tests: records, pictures and tars made on the spot."""

import io
import tarfile
from pathlib import Path

from PIL import Image

from cartouche.data import Folder, Limits, Record, Shards
from cartouche.data.tar import write_tar

LENIENT = Limits(broken=1.0)


def picture(shade: int, kind: str = "PNG", size: tuple[int, int] = (12, 8)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (shade, 255 - shade, 7)).save(file, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return file.getvalue()


def some_records(count: int = 7) -> list[Record]:
    """s000, s001 ...: PNG, WebP and JPEG in turn; every second one has a field besides its caption."""
    kinds = [("png", "PNG"), ("webp", "WEBP"), ("jpg", "JPEG")] * count
    return [
        Record(f"s{i:03}", suffix, picture(9 * i, kind), f"picture number {i}", {"n": i} if i % 2 else {})
        for i, (suffix, kind) in enumerate(kinds[:count])
    ]


def tar_of(path: Path, *files: tuple[str, bytes]) -> Path:
    write_tar(path, files)
    return path


def sample_files(key: str, caption: str = "a thing") -> list[tuple[str, bytes]]:
    return [(f"{key}.png", picture(len(key))), (f"{key}.txt", caption.encode())]


def add_special(path: Path, name: str, kind: bytes, **more: object) -> Path:
    with tarfile.open(path, "w") as tar:
        entry = tarfile.TarInfo(name)
        entry.type = kind
        for what, value in more.items():
            setattr(entry, what, value)
        tar.addfile(entry)
    return path


def keys(reader: Folder | Shards) -> list[str]:
    return [sample["key"] for sample in reader]
