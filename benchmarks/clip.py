"""Do pictures find their words? Recall of a CLIP among the captions of scenes never trained on, and on new drawings.

    python benchmarks/clip.py --pack FOLDER [--clip cartouche/weights/builtin/clip] [--count 1000]   (2 to 3 minutes)

Scenes: composed of the train split's drawings with a seed that no training uses. Each has its caption in the full
manner (every clause said) and in the everyday manner (clauses left out at random, as in training), in English, in
French, and in both mixed. Captions that are word for word the same count as one: no reader could tell them apart.

Drawings: those of `val` (concepts never seen) and `pairs` (concept and style seen, never together), each alone on
white, against bare names: of the split's own concepts, and of the whole pack's. A hit inside the same family counts.

Every rate has its 95 % interval (Wilson). The target is image-to-text recall@1 of at least 60 % among 1,000 captions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from bench import against, machine, parser, table, write

from cartouche import images
from cartouche.data.captions import FULL, LANGUAGES, Manner, caption
from cartouche.data.emoji import Drawing, Pack
from cartouche.data.palette import COLOURS
from cartouche.data.scenes import Background, Composer, Placed, Scene, render, rng_of
from cartouche.measure.obedience import rate
from cartouche.nets.clip import CLIPModel
from cartouche.text import Tokenizer
from cartouche.weights.builtin import builtin
from cartouche.weights.folder import load_net

SEED = 4  # training reads scenes of seed 3
CAPTION_SEED = 44
MANNERS = {"full": FULL, "everyday": Manner()}
TARGET = 0.6
BEST = (1, 5)
BATCH = 50
SIZE = 128


class Clip(NamedTuple):
    """The net and the tokenizer that belongs to it."""

    net: CLIPModel
    tokenizer: Tokenizer

    def pictures(self, pixels: np.ndarray) -> np.ndarray:
        """(B, H, W, 3) uint8 to unit vectors (B, D)."""
        return self._each(torch.from_numpy(images.from_uint8(pixels)), self.net.encode_image)

    def words(self, texts: Sequence[str]) -> np.ndarray:
        """Texts to unit vectors (B, D)."""
        return self._each(torch.from_numpy(self.tokenizer.batch(list(texts))), self.net.encode_text)

    @torch.inference_mode()
    def _each(self, given: torch.Tensor, encode: Any) -> np.ndarray:
        vectors: np.ndarray = torch.cat([encode(part) for part in given.split(BATCH)]).numpy()
        return vectors


def opened(folder: Path) -> Clip:
    """The CLIP that recipes/clip.py exports."""
    net: Any = load_net(folder)
    return Clip(net, Tokenizer.load(folder))


def recall(scores: np.ndarray, right: np.ndarray) -> dict[str, dict[str, float]]:
    """For each row, whether a right column is among its best 1 and its best 5. scores, right: (rows, columns)."""
    order = np.argsort(-scores, axis=1, kind="stable")
    hits = np.take_along_axis(right, order, axis=1)
    return {f"@{k}": rate(hits[:, :k].any(1).tolist()) for k in BEST}


def both_ways(pictures: np.ndarray, words: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """Recall from pictures (rows) to texts (columns), and back, where right (pictures, texts) says what belongs."""
    scores = pictures @ words.T
    return {"image to text": recall(scores, right), "text to image": recall(scores.T, right.T)}


# scenes


def scenes(clip: Clip, pack: Pack, count: int = 1000, split: str = "train") -> dict[str, Any]:
    """Recall among the captions of `count` scenes, by manner and language."""
    composer = Composer(pack.of(split), SEED)
    composed = [composer[i] for i in range(count)]
    pictures = clip.pictures(np.stack([render(pack, scene)[0] for scene in composed]))
    report = {}
    for manner in MANNERS:
        told = {
            language: [told_in(scene, i, language, manner) for i, scene in enumerate(composed)]
            for language in LANGUAGES
        }
        told["mixed"] = [told[LANGUAGES[i % len(LANGUAGES)]][i] for i in range(count)]
        for language, texts in told.items():
            same = np.array(texts)[:, None] == np.array(texts)[None]
            found = both_ways(pictures, clip.words(texts), same)
            reached = found["image to text"]["@1"]["rate"]
            found |= {"captions": count, "different captions": len(set(texts)), "target": against(reached, TARGET)}
            report[f"{manner}, {language}"] = found
    return report


def told_in(scene: Scene, index: int, language: str, manner: str) -> str:
    """The caption of scene `index`, the same on every run."""
    rng = rng_of(CAPTION_SEED, index * len(MANNERS) + list(MANNERS).index(manner))
    return caption(scene, rng, language, MANNERS[manner])


# drawings


def drawings(clip: Clip, pack: Pack, split: str) -> dict[str, Any]:
    """Recall of the split's drawings, alone on white, against names in each language."""
    chosen = pack.of(split)
    pictures = clip.pictures(np.stack([alone(pack, drawing) for drawing in chosen]))
    families = np.array([drawing.family for drawing in chosen])
    report: dict[str, Any] = {"drawings": len(chosen)}
    for among, known in {"its own names": chosen, "all names": pack.drawings}.items():
        concepts = list({drawing.concept: drawing for drawing in known}.values())
        right = families[:, None] == np.array([one.family for one in concepts])[None]
        for language in LANGUAGES:
            words = clip.words([one.name(language) for one in concepts])
            found: dict[str, Any] = {"image to text": recall(pictures @ words.T, right), "names": len(concepts)}
            if among == "its own names":
                found["text to image"] = recall(words @ pictures.T, right.T)
            report[f"among {among}, {language}"] = found
    return report


def alone(pack: Pack, drawing: Drawing) -> np.ndarray:
    """One drawing, framed as its maker framed it, on plain white: (H, W, 3) uint8."""
    ground = Background(("white",), (COLOURS["white"].rgb,))
    return render(pack, Scene(SIZE, drawing.style, ground, (Placed(drawing, drawing.bbox),)))[0]


def rows_of(name: str, found: dict[str, Any]) -> list[object]:
    """A line of the table: both ways, both depths, with the interval of the first."""
    cells: list[object] = [name, found.get("captions") or found["names"]]
    for way in ("image to text", "text to image"):
        for depth in (f"@{k}" for k in BEST):
            one = found[way][depth] if way in found else None
            cells.append(f"{one['rate']:.1%} ({one['low']:.0%}-{one['high']:.0%})" if one else "")
    return cells


def measure(clip: Clip, pack: Pack, count: int = 1000, splits: Sequence[str] = ("val", "pairs")) -> dict[str, Any]:
    """Everything this script reports."""
    return {"scenes": scenes(clip, pack, count), "drawings": {split: drawings(clip, pack, split) for split in splits}}


def main() -> None:
    given = parser(__doc__, "clip")
    given.add_argument("--pack", type=Path, required=True)
    given.add_argument("--clip", type=Path, default=builtin() / "clip")
    given.add_argument("--count", type=int, default=1000)
    a = given.parse_args()
    report = measure(opened(a.clip), Pack(a.pack), a.count)
    rows = [rows_of(f"scenes, {name}", found) for name, found in report["scenes"].items()]
    for split, found in report["drawings"].items():
        rows += [rows_of(f"{split} {name}", one) for name, one in found.items() if isinstance(one, dict)]
    head = ["recall", "among", "image-text @1", "image-text @5", "text-image @1", "text-image @5"]
    print(table(head, rows))
    write(a.out, {"machine": machine(), "scene seed": SEED, **report})


if __name__ == "__main__":
    main()
