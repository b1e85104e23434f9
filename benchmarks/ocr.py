"""Is writing read as it is written? Error rates of rapidocr on text that we set, by font, blur, rotation and language.

    python benchmarks/ocr.py                                                          (about five minutes; extra: ocr)

Two lines of black text on white, 28 pixels high, in the fonts that Pillow and matplotlib bring. Fonts are compared
upright and sharp; blur (a Gaussian of so many pixels) and rotation (degrees, counter-clockwise) over all fonts. French
is apart for its accents, which Pillow's own font lacks. Every rate is over all characters or words of its cell;
nothing is forgiven: case, blanks and signs count.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from bench import machine, parser, table, timed, write
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from cartouche.metrics.characters import cer, wer
from cartouche.read.ocr import Ocr

HEIGHT, MARGIN = 28, 24
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral")
PILLOW = "Pillow's own"
BLURS = (0.0, 1.0, 2.0, 3.0)
ANGLES = (0, 3, 10, 20, 45, 90, 180)
TEXTS = {
    "en": (
        ("Two red apples on a table", "and one green frog beside them"),
        ("Open from 9:30 to 17:45", "closed on Sundays and in July"),
        ("Total: 1,204.50 EUR (tax 20%)", "paid by card, thank you"),
        ("Mind the gap between the train", "and the platform edge"),
        ("Question 7: why is the sky blue?", "Answer in fewer than 50 words."),
    ),
    "fr": (
        ("Deux pommes rouges sur la table", "et une grenouille verte à côté"),
        ("Ouvert de 9 h 30 à 17 h 45", "fermé le dimanche et en août"),
        ("Où est passé le garçon ?", "Il a mangé la crème brûlée."),
        ("Attention à la marche en sortant", "Accès réservé aux élèves"),
        ("Un cœur, une œuvre, des œufs", "naïve, Noël, forêt, déjà"),
    ),
}


def fonts() -> dict[str, ImageFont.FreeTypeFont | ImageFont.ImageFont]:
    """By name, the fonts that are here wherever the packages are."""
    found: dict[str, Any] = {PILLOW: ImageFont.load_default(HEIGHT)}
    plots = find_spec("matplotlib")
    if plots is not None and plots.origin is not None:
        folder = Path(plots.origin).parent / "mpl-data" / "fonts" / "ttf"
        found |= {name: ImageFont.truetype(str(folder / f"{name}.ttf"), HEIGHT) for name in FONTS}
    return found


def set_text(lines: Iterable[str], font: Any, blur: float = 0.0, angle: float = 0.0) -> np.ndarray:
    """Lines of black text on white, (H, W, 3) uint8, blurred and turned."""
    text = "\n".join(lines)
    left, top, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), text, font, spacing=12)
    image = Image.new("RGB", (int(right - left) + 2 * MARGIN, int(bottom - top) + 2 * MARGIN), "white")
    ImageDraw.Draw(image).multiline_text((MARGIN - left, MARGIN - top), text, "black", font, spacing=12)
    turned = image.rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor="white")
    return np.asarray(turned.filter(ImageFilter.GaussianBlur(blur)) if blur else turned)


def rates(ocr: Ocr, fonts: Iterable[Any], language: str, blur: float = 0.0, angle: float = 0.0) -> dict[str, float]:
    """Both error rates over all texts of a language in these fonts, and how many were read."""
    said, truth = [], []
    for font in fonts:
        for lines in TEXTS[language]:
            said.append("\n".join(line.text for line in ocr.pixels(set_text(lines, font, blur, angle))))
            truth.append("\n".join(lines))
    return {"cer": cer(said, truth), "wer": wer(said, truth), "texts": len(truth)}


def measure(ocr: Ocr) -> dict[str, Any]:
    """Everything this script reports."""
    here = fonts()
    sample = set_text(TEXTS["en"][0], here[PILLOW])
    seconds = [timed(lambda: ocr.pixels(sample)) for _ in range(12)][2:]
    return {
        "fonts": {f"{name}, {tongue}": rates(ocr, [font], tongue) for tongue in TEXTS for name, font in here.items()},
        "blur": {str(blur): rates(ocr, here.values(), "en", blur=blur) for blur in BLURS},
        "rotation": {str(angle): rates(ocr, here.values(), "en", angle=angle) for angle in ANGLES},
        "milliseconds": {"p50": 1000 * float(np.median(seconds)), "p99": 1000 * float(np.quantile(seconds, 0.99))},
    }


def main() -> None:
    a: argparse.Namespace = parser(__doc__, "ocr").parse_args()
    report = measure(Ocr())
    rows = [
        [f"{kind} {name}", *found.values()]
        for kind in ("fonts", "blur", "rotation")
        for name, found in report[kind].items()
    ]
    print(table(["text", "CER", "WER", "texts"], rows))
    write(a.out, {"machine": machine(), **report})


if __name__ == "__main__":
    main()
