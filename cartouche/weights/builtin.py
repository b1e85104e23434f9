"""The model that ships inside the package: drawn with when no other is named."""

from __future__ import annotations

from pathlib import Path

from cartouche import files
from cartouche.config import CartoucheError

SUMS = "SHA256SUMS"


def builtin() -> Path:
    """The folder of the built-in model. Raises CartoucheError where this copy of the package has none."""
    folder = Path(__file__).parent / "builtin"
    if not (folder / "model_index.json").is_file():
        raise CartoucheError("this copy of cartouche has no built-in model; name one with model=FOLDER")
    return folder


def seal(folder: Path) -> Path:
    """Write down the sha256 of every file of a model folder, as `sha256sum` does."""
    lines = [
        f"{files.digest(path)}  {path.relative_to(folder).as_posix()}\n"
        for path in sorted(folder.rglob("*"))
        if _counts(path)
    ]
    return files.write_whole(folder / SUMS, "".join(lines).encode(), force=True)


def damaged(folder: Path) -> list[str]:
    """The files of a sealed model folder that are missing or not as they were. Raises CartoucheError without a seal."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise CartoucheError(f"{folder} has no {SUMS}, so nothing says whether it is whole") from error
    known = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    return [
        name for name, wanted in known.items() if not (folder / name).is_file() or files.digest(folder / name) != wanted
    ]


def _counts(path: Path) -> bool:
    return path.is_file() and path.name != SUMS and not path.name.startswith(".")
