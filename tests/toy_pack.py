"""An emoji pack of four made-up things in two styles, written on the spot: all that scenes need."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from cartouche.data.tar import write_tar

THINGS = {  # concept: (English, French, colour name, rgb)
    "c1": ("cherry", "cerise", "red", (220, 40, 40)),
    "c2": ("kite", "cerf-volant", "blue", (40, 90, 220)),
    "c3": ("right arrow", "flèche droite", "green", (30, 160, 60)),
    "c4": ("orange book", "livre orange", "orange", (240, 150, 40)),
}


MORE_THINGS = THINGS | {  # for what needs things that a scene of four does not have
    "c5": ("red apple", "pomme rouge", "red", (200, 30, 30)),
    "c6": ("hammer and wrench", "marteau et clé à molette", "gray", (140, 140, 140)),
    "c7": ("tooth", "dent", "white", (250, 250, 250)),
    "c8": ("house", "maison", "brown", (120, 70, 40)),
}


def write_pack(folder: Path, things: dict = THINGS, styles: tuple[str, ...] = ("flat", "outline")) -> Path:
    """Shards and index.jsonl in `folder`; every drawing has a tight box of its own shape."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, files, offset = [], [], 0
    for style in styles:
        for number, (concept, (name, nom, colour, rgb)) in enumerate(things.items()):
            pixels, box = np.zeros((128, 128, 4), np.uint8), (10, 20 + number, 100 + number, 110)
            pixels[box[1] : box[3], box[0] : box[2]] = (*((0, 0, 0) if style == "outline" else rgb), 255)
            data = io.BytesIO()
            Image.fromarray(pixels).save(data, "WEBP", lossless=True)
            key = f"{style}-{concept}"
            files.append((f"{key}.webp", data.getvalue()))
            row = {"key": key, "concept": concept, "family": f"fam-{concept}", "style": style, "scene": True}
            row |= {"split": "train" if style != "outline" or concept != "c2" else "pairs", "group": "Objects"}
            row |= {"name_en": name, "name_fr": nom, "keywords_en": ["thing"], "keywords_fr": ["chose"]}
            row |= {"colors": [["black" if style == "outline" else colour, 1.0]], "bbox": list(box)}
            rows.append(row | {"shard": "toy-000.tar", "offset": offset + 512, "bytes": len(data.getvalue())})
            offset += 512 + -(-len(data.getvalue()) // 512) * 512
    write_tar(folder / "toy-000.tar", files)
    (folder / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder
