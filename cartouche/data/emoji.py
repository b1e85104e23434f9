"""The emoji pack: thousands of small drawings on transparency, with names, keywords, colours and a fixed split.

A pack is a folder with `index.jsonl` (one drawing a line: key, concept, family, style, split, scene, name_en,
name_fr, keywords_en, keywords_fr, colors, bbox, shard, offset, bytes) and the tar shards the offsets point into.
Reading one drawing is a seek and a read.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from cartouche import images
from cartouche.config import CartoucheError

SPLITS = ("train", "val", "test", "pairs")
LARGEST_DRAWING = 1 << 20  # bytes of one WebP; the largest in the pack is 16 kB


@dataclass(frozen=True)
class Drawing:
    """One drawing of one concept in one style. bbox is (x0, y0, x1, y1) in pixels; colors are (name, share),
    largest first."""

    key: str
    concept: str
    family: str
    style: str
    split: str
    scene: bool
    group: str
    name_en: str
    name_fr: str
    keywords_en: tuple[str, ...]
    keywords_fr: tuple[str, ...]
    colors: tuple[tuple[str, float], ...]
    bbox: tuple[int, int, int, int]
    shard: str
    offset: int
    bytes: int

    def name(self, language: str) -> str:
        return self.name_en if language == "en" else self.name_fr

    def keywords(self, language: str) -> tuple[str, ...]:
        return self.keywords_en if language == "en" else self.keywords_fr


class Pack:
    """The drawings of a pack folder. `pack.drawings` lists them; `pack.pixels(drawing)` is the cut-out, (h, w, 4)
    uint8 RGBA. cached: how many cut-outs are kept, of about 40 kB each."""

    def __init__(self, folder: Path | str, cached: int = 4096):
        self.folder = Path(folder)
        index = self.folder / "index.jsonl"
        if not index.is_file():
            raise CartoucheError(
                f"no index.jsonl in {self.folder}; give an emoji pack, as scripts/build_emoji_pack.py makes"
            )
        with index.open(encoding="utf-8") as lines:
            self.drawings = [_drawing(json.loads(line)) for line in lines]
        self._cached = lru_cache(maxsize=cached)(self._read)

    def of(self, split: str) -> list[Drawing]:
        """The drawings of one split, in the order of the index."""
        if split not in SPLITS:
            raise CartoucheError(f"split={split!r} is not known; choose one of {', '.join(SPLITS)}")
        return [d for d in self.drawings if d.split == split]

    def pixels(self, drawing: Drawing) -> np.ndarray:
        """The drawing cut to its tight box: (h, w, 4) uint8 RGBA, read-only."""
        return self._cached(drawing)

    def _read(self, drawing: Drawing) -> np.ndarray:
        shard = self.folder / Path(drawing.shard).name
        if not 0 < drawing.bytes <= LARGEST_DRAWING:
            raise CartoucheError(
                f"{drawing.key}: {drawing.bytes} bytes claimed; a drawing has at most {LARGEST_DRAWING}"
            )
        with shard.open("rb") as file:
            file.seek(drawing.offset)
            data = file.read(drawing.bytes)
        pixels = np.asarray(images.opened(data).convert("RGBA").crop(drawing.bbox))
        pixels.setflags(write=False)
        return pixels


def _drawing(row: dict) -> Drawing:
    fields = {name: row[name] for name in Drawing.__dataclass_fields__}
    for name in ("keywords_en", "keywords_fr", "bbox"):
        fields[name] = tuple(fields[name])
    fields["colors"] = tuple((name, float(share)) for name, share in row["colors"])
    fields["name_fr"] = (
        fields["name_fr"].replace("’", "'").replace("\u202f", " ").replace("\u00a0", " ").replace(" (tous genres)", "")
    )
    fields["name_en"] = fields["name_en"].replace("’", "'")
    return Drawing(**fields)
