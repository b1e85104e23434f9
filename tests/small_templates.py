"""Graphs without numbers of two small families, to stand in the place of those that ship: the same ways, a thousandth
of the size. Stable Diffusion 2 has no part that the others lack.

    python tests/small_templates.py [NAME ...]        (a minute; writes tests/fixtures/graphs anew)
"""

from __future__ import annotations

import sys
from pathlib import Path

from small_families import small

from cartouche.weights import source, template

SMALL = Path(__file__).parent / "fixtures" / "graphs"
WANTED = {  # family, part, methods; the autoencoder and the first tower are the same net in both
    "clip-l": ("sd1", "text_encoder", ("forward", "earlier", "inner")),
    "clip-g": ("sdxl", "text_encoder_2", ("inner",)),
    "vae": ("sd1", "vae", ("decode", "encode")),
    "unet-sd1": ("sd1", "unet", ("forward",)),
    "unet-sdxl": ("sdxl", "unet", ("sized",)),
}

if __name__ == "__main__":
    for name in sys.argv[1:] or WANTED:
        family, part, calls = WANTED[name]
        template.write(SMALL / name, source.Folder(small(family).folder).config(part), calls)
