"""Scenes: one to four drawings placed on a coloured background, with everything about the picture known exactly.

`Composer(drawings, seed)[index]` is pure: the same seed and index give the same scene for ever, so a training set is a
seed, an epoch is a range of numbers, and resuming is starting at a number. Objects of one scene share a style and
never overlap, so boxes and masks are exact and a caption (captions.py) can be checked against the picture.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from cartouche.config import CartoucheError
from cartouche.data import palette
from cartouche.data.emoji import Drawing, Pack

# color is a near-copy of 3d; outline and fxemoji have fewer or harder drawings
STYLE_WEIGHT = {"color": 0.4, "outline": 0.7, "fxemoji": 0.7}
# hundreds of near-alike people would crowd out the rest
GROUP_WEIGHT = {"People & Body": 0.3, "Smileys & Emotion": 0.5, "Symbols": 0.3}
ONE_WORD_WEIGHT = 2.0  # "cat" is asked for more often than "woman in motorized wheelchair: facing right"
MARGIN = 3  # pixels kept free around each object
RUNS = 0xA11C  # keeps what a run of scenes shares apart from the scenes' own randomness
OUTLINE = "outline"  # the style that takes any colour
DARK = frozenset({"black", "brown", "purple"})  # where a black outline cannot be seen


@dataclass(frozen=True)
class Background:
    """Plain (one colour) or two-tone: `split` is "" | "left" (first colour left, second right) | "above" (first
    above, second below)."""

    colours: tuple[str, ...]
    shades: tuple[tuple[int, int, int], ...]
    split: str = ""


@dataclass(frozen=True)
class Placed:
    """A drawing in a scene. box (x0, y0, x1, y1) in pixels; tint is a colour name when the drawing was
    recoloured, else ""."""

    drawing: Drawing
    box: tuple[int, int, int, int]
    flip: bool = False
    tint: str = ""

    @property
    def colour(self) -> str:
        """The one colour that describes the object, or "" when none covers 60 % of it."""
        name, share = self.drawing.colors[0] if self.drawing.colors else ("", 0.0)
        return self.tint or (name if share >= 0.6 and name in palette.COLOURS else "")

    @property
    def centre(self) -> tuple[float, float]:
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2


@dataclass(frozen=True)
class Scene:
    """A composed picture before it is drawn: size in pixels (square), style, background and the placed objects,
    largest count first."""

    size: int
    style: str
    background: Background
    objects: tuple[Placed, ...]

    def counts(self) -> dict[str, int]:
        """How many of each concept: {concept: n}."""
        counts: dict[str, int] = {}
        for placed in self.objects:
            counts[placed.drawing.concept] = counts.get(placed.drawing.concept, 0) + 1
        return counts

    def relation(self, a: int, b: int) -> str:
        """How object a lies to object b: "left" | "right" | "above" | "below", or "" when no word is clearly true."""
        (ax, ay), (bx, by) = self.objects[a].centre, self.objects[b].centre
        dx, dy = bx - ax, by - ay
        if max(abs(dx), abs(dy)) < 1.5 * min(abs(dx), abs(dy)):
            return ""  # diagonal: both words or neither
        if abs(dx) > abs(dy):
            return "left" if dx > 0 else "right"
        return "above" if dy > 0 else "below"


@dataclass(frozen=True)
class Mixture:
    """What is drawn how often. count: weights of 1, 2, 3, 4 objects; same: chance that several objects are all of
    one concept; settled: chance that the objects stand large and unmirrored in the middle of their cells, the cells in
    one plain arrangement: so little is left to chance that a denoiser learns what things look like first; coloured:
    chance that they are outlines, every kind of them in a colour of its own."""

    count: tuple[float, float, float, float] = (0.45, 0.3, 0.15, 0.1)
    same: float = 0.4
    two_tone: float = 0.12
    tint: float = 0.15
    flip: float = 0.3
    symbols: float = 0.1  # chance that a single object comes from the drawings that are not things (signs, clocks)
    settled: float = 0.0
    coloured: float = 0.0


@dataclass
class Composer:
    """Composes scenes from drawings. `composer[i]` is scene i; a pure function of the fields and i.

    favoured: concepts that are drawn `favour` times as often as they would be: a core vocabulary to learn first.
    alike: runs of so many scenes share their style and, where no drawing would vanish in it, their ground: told apart
    in such company, a caption has to say what the things are.
    """

    drawings: Sequence[Drawing]
    seed: int = 0
    size: int = 128
    mixture: Mixture = field(default_factory=Mixture)
    favoured: Collection[str] = frozenset()
    favour: float = 1.0
    alike: int = 1

    def __post_init__(self) -> None:
        if not self.drawings:
            raise CartoucheError("no drawings to compose; give at least one")
        self._by_style: dict[str, list[Drawing]] = {}
        for drawing in self.drawings:
            self._by_style.setdefault(drawing.style, []).append(drawing)
        self._styles = sorted(self._by_style)
        self._style_weights = _normal([STYLE_WEIGHT.get(s, 1.0) for s in self._styles])
        self._things = {s: self._weighted([d for d in self._by_style[s] if d.scene]) for s in self._styles}
        self._signs = {s: self._weighted([d for d in self._by_style[s] if not d.scene]) for s in self._styles}
        if self.mixture.coloured and OUTLINE not in self._by_style:
            raise CartoucheError(
                f"coloured={self.mixture.coloured} given, and no drawings in {OUTLINE} style; choose 0"
            )

    def __getitem__(self, index: int) -> Scene:
        if self.alike == 1:
            return self.compose(rng_of(self.seed, index))
        return self.compose(rng_of(self.seed, index), rng_of(self.seed ^ RUNS, index // self.alike))

    def compose(self, rng: np.random.Generator, shared: np.random.Generator | None = None) -> Scene:
        """One scene drawn from the mixture; style and ground come from `shared`, where several scenes share them."""
        mix = self.mixture
        coloured = mix.coloured > 0 and bool(rng.random() < mix.coloured)
        style = OUTLINE if coloured else self._styles[(shared or rng).choice(len(self._styles), p=self._style_weights)]
        count = int(rng.choice(4, p=_normal(mix.count))) + 1
        drawings = self._pick(style, count, rng)
        background = _background(drawings, mix, rng, wanted=() if shared is None else shared.permutation(palette.NAMES))
        taken = coloured or rng.random() < mix.tint or _needs_tint(style, background)
        tints = _tints(drawings, background, rng, coloured) if taken else {}
        settled = mix.settled > 0 and bool(rng.random() < mix.settled)
        boxes = settle(drawings, self.size, rng) if settled else place(drawings, self.size, rng)
        flip = 0.0 if settled else mix.flip
        objects = [
            Placed(d, box, bool(rng.random() < flip) and flippable(d), tints.get(d.concept, ""))
            for d, box in zip(drawings, boxes, strict=True)
        ]
        return Scene(self.size, style, background, tuple(objects))

    def _weighted(self, drawings: list[Drawing]) -> tuple[list[Drawing], np.ndarray]:
        return drawings, _normal([self._weight(d) for d in drawings])

    def _weight(self, drawing: Drawing) -> float:
        plain = GROUP_WEIGHT.get(drawing.group, 1.0) * (1.0 if " " in drawing.name_en else ONE_WORD_WEIGHT)
        return plain * (self.favour if drawing.concept in self.favoured else 1.0)

    def _pick(self, style: str, count: int, rng: np.random.Generator) -> list[Drawing]:
        things, weights = self._things[style]
        if not things or (count == 1 and rng.random() < self.mixture.symbols and self._signs[style][0]):
            things, weights = self._signs[style]
        if count == 1 or rng.random() < self.mixture.same or len(things) < count:
            return [things[rng.choice(len(things), p=weights)]] * count
        chosen = [things[i] for i in rng.choice(len(things), count, replace=False, p=weights)]
        if count > 2 and rng.random() < 0.3:
            chosen[1] = chosen[0]  # "two cats and a dog"
        return chosen


def rng_of(seed: int, index: int) -> np.random.Generator:
    """The generator of sample `index` of stream `seed`: counter-based, so any sample is reached at once."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, index], dtype=np.uint64)))


def render(pack: Pack, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene. Returns pixels (H, W, 3) uint8 and the objects' masks (n, H, W) bool (alpha over one half)."""
    canvas = _paint_background(scene.background, scene.size)
    masks = np.zeros((len(scene.objects), scene.size, scene.size), bool)
    for i, placed in enumerate(scene.objects):
        x0, y0, x1, y1 = placed.box
        colour, alpha = cutout(pack.pixels(placed.drawing), (x1 - x0, y1 - y0), placed)
        patch = canvas[y0:y1, x0:x1]
        patch[:] = colour + (1 - alpha) * patch  # premultiplied "over" (Porter & Duff, 1984)
        masks[i, y0:y1, x0:x1] = alpha[..., 0] > 0.5
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8), masks


def cutout(pixels: np.ndarray, size: tuple[int, int], placed: Placed) -> tuple[np.ndarray, np.ndarray]:
    """Resize with premultiplied alpha, flip and tint: colour (h, w, 3) times alpha in 0..255, alpha (h, w, 1) in
    0..1."""
    small = (
        Image.fromarray(pixels)
        .convert("RGBa")
        .resize(size, Image.Resampling.BOX if size[0] < 48 else Image.Resampling.BICUBIC, reducing_gap=2.0)
    )
    array = np.asarray(small, np.float32)
    if placed.flip:
        array = array[:, ::-1]
    colour, alpha = array[..., :3], array[..., 3:] / 255
    if placed.tint:
        colour = _recolour(colour, alpha, placed.tint)
    return np.minimum(colour, 255 * alpha), alpha


def _recolour(colour: np.ndarray, alpha: np.ndarray, tint: str) -> np.ndarray:
    """Give a one-coloured drawing another colour, keeping light and dark: the tint times luminance over its mean."""
    light = colour @ np.array([0.299, 0.587, 0.114], np.float32)
    mean = light.sum() / max(float(alpha.sum()), 1e-6)
    relative = light[..., None] / mean if mean > 48 else alpha  # black glyphs have no shading to keep
    return np.clip(relative, 0, 1.25 * alpha) * np.array(palette.COLOURS[tint].rgb, np.float32)


def _paint_background(background: Background, size: int) -> np.ndarray:
    canvas = np.empty((size, size, 3), np.float32)
    canvas[:] = background.shades[0]
    if background.split == "left":
        canvas[:, size // 2 :] = background.shades[1]
    elif background.split == "above":
        canvas[size // 2 :] = background.shades[1]
    return canvas


def _background(
    drawings: list[Drawing], mix: Mixture, rng: np.random.Generator, wanted: Sequence[str] | np.ndarray = ()
) -> Background:
    """Colours that no object of the scene would vanish in; of the `wanted` ones the first such, if any are named."""
    taken = {d.colors[0][0] for d in drawings if d.colors and d.colors[0][1] > 0.45 and d.style != OUTLINE}
    if any(d.style == OUTLINE and not tintable(d) for d in drawings):
        taken |= DARK
    free = [n for n in palette.NAMES if n not in taken] or list(palette.NAMES)
    split = str(rng.choice(["left", "above"])) if rng.random() < mix.two_tone and len(free) > 1 else ""
    names = rng.choice(free, 2 if split else 1, replace=False).tolist()
    if len(wanted) and not split:
        names = [next(str(name) for name in wanted if name in free)]
    return Background(tuple(names), tuple(palette.shade(n, rng) for n in names), split)


def _needs_tint(style: str, background: Background) -> bool:
    return style == OUTLINE and bool(DARK & set(background.colours))


def _tints(drawings: list[Drawing], background: Background, rng: np.random.Generator, apart: bool) -> dict[str, str]:
    """A colour for every concept of a scene, the same for all unless `apart`; {} where a drawing cannot take one:
    several colours, or a colour in its name."""
    if not all(tintable(d) for d in drawings):
        return {}
    avoid = set(background.colours) | (DARK if DARK & set(background.colours) else set())
    free, kinds = [n for n in palette.NAMES if n not in avoid], dict.fromkeys(d.concept for d in drawings)
    if not apart:
        return dict.fromkeys(kinds, str(rng.choice(free)))
    return dict(zip(kinds, rng.permutation(free).tolist(), strict=False))


def tintable(drawing: Drawing) -> bool:
    """Whether the drawing can be recoloured and still be what its name says."""
    words = set(drawing.name_en.lower().replace("-", " ").split())
    plain = drawing.style == OUTLINE or (bool(drawing.colors) and drawing.colors[0][1] >= 0.9)
    return drawing.scene and plain and not words & {*palette.NAMES, "light", "dark"}


def flippable(drawing: Drawing) -> bool:
    """Whether the mirror image is still what the name says: no signs, and nothing that faces or points a named way."""
    return drawing.scene and not {"left", "right", "leftwards", "rightwards", "clockwise"} & set(
        drawing.name_en.lower().replace(":", " ").split()
    )


def place(drawings: list[Drawing], size: int, rng: np.random.Generator) -> list[tuple[int, int, int, int]]:
    """Boxes that do not overlap: each object gets a cell (the whole, halves, thirds or quarters) and a place
    inside it."""
    cells = _cells(len(drawings), rng)
    low, high = ((0.5, 0.92), (0.74, 1.0), (0.8, 1.0), (0.8, 1.0))[len(drawings) - 1]
    common = rng.uniform(low, high)
    boxes = []
    for drawing, cell in zip(drawings, cells, strict=True):
        scale = common * rng.uniform(0.92, 1.0)
        boxes.append(_box(drawing, cell, size, scale, lambda room: rng.uniform(0, room)))
    return boxes


def settle(drawings: list[Drawing], size: int, rng: np.random.Generator) -> list[tuple[int, int, int, int]]:
    """Boxes in the middle of plainly arranged cells: one, a pair (beside or above each other), two over one, four."""
    pair = [(0.0, 0.15, 0.5, 0.7), (0.5, 0.15, 0.5, 0.7)]
    quarters = [(0.0, 0.0, 0.5, 0.5), (0.5, 0.0, 0.5, 0.5), (0.0, 0.5, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5)]
    count = len(drawings)
    if count == 2 and rng.random() < 0.5:
        pair = [(y, x, h, w) for x, y, w, h in pair]
    arranged = {1: [(0.0, 0.0, 1.0, 1.0)], 2: pair, 3: [*quarters[:2], (0.25, 0.5, 0.5, 0.5)], 4: quarters}[count]
    order = rng.permutation(count)
    return [_box(drawings[i], arranged[order[i]], size, 0.92, lambda room: room / 2) for i in range(count)]


def _box(
    drawing: Drawing,
    cell: tuple[float, float, float, float],
    size: int,
    scale: float,
    offset: Callable[[float], float],
) -> tuple[int, int, int, int]:
    """The drawing's box in a cell, in pixels; `offset` says how much of the free room lies left of it, then above."""
    cx, cy, cw, ch = cell
    room_w, room_h = cw * size - 2 * MARGIN, ch * size - 2 * MARGIN
    w0, h0 = drawing.bbox[2] - drawing.bbox[0], drawing.bbox[3] - drawing.bbox[1]
    fit = scale * min(room_w / w0, room_h / h0, min(room_w, room_h) / (0.75 * max(w0, h0)))
    w, h = max(8, round(w0 * fit)), max(8, round(h0 * fit))
    x = cx * size + MARGIN + offset(max(room_w - w, 0))
    y = cy * size + MARGIN + offset(max(room_h - h, 0))
    return int(x), int(y), min(int(x) + w, size), min(int(y) + h, size)


def _cells(count: int, rng: np.random.Generator) -> list[tuple[float, float, float, float]]:
    """`count` cells (x, y, width, height) in fractions of the picture, in random order."""
    if count == 1:
        return [(0.0, 0.0, 1.0, 1.0)]
    across = bool(rng.random() < 0.5)
    if count == 2:
        near, far, half = rng.uniform(0, 0.3), rng.uniform(0, 0.3), 0.5
        cells = (
            [(0.0, near, half, 0.7), (half, far, half, 0.7)]
            if across
            else [(near, 0.0, 0.7, half), (far, half, 0.7, half)]
        )
    elif count == 3 and rng.random() < 0.4:
        third = 1 / 3
        rows = [(i * third, float(rng.uniform(0, 0.5)), third, 0.5) for i in range(3)]
        cells = rows if across else [(y, x, h, w) for x, y, w, h in rows]
    else:
        cells = [(0.0, 0.0, 0.5, 0.5), (0.5, 0.0, 0.5, 0.5), (0.0, 0.5, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5)]
    return [cells[i] for i in rng.permutation(len(cells))[:count]]


def _normal(weights: Sequence[float]) -> np.ndarray:
    array = np.asarray(weights, float)
    return array / array.sum() if array.size else array
