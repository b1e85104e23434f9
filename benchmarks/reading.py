"""How well is the built-in world read? Every kind of reading on held-out scenes whose truth is known exactly.

    python benchmarks/reading.py --pack FOLDER [--model FOLDER] [--count 2000] [--nets 200] [--splits train pairs test]
        [--sheet PNG]

Scenes of one to four objects, given by seed and number (cartouche/measure/reading.py): of train drawings in
combinations never trained on, of drawings whose style was held out for their concept (pairs), and of concepts never
seen (test). Two readers are compared on them: "recalling" is what `cartouche read` says, the detector's boxes named by
a memory of the train drawings (read/recall.py); "nets" are the nets that generalise, each alone, on the first --nets
scenes. The detector is asked for the English names of all concepts of the pack at once. The least score that counts as
found is chosen for each reader on 300 other scenes. Latencies are of one picture at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bench import against, machine, parser, table, write
from PIL import Image

from cartouche.config import CartoucheError
from cartouche.data.captions import FULL, caption
from cartouche.data.emoji import Pack
from cartouche.data.graphs import Lexicon
from cartouche.data.scenes import rng_of
from cartouche.measure import reading
from cartouche.measure.reading import Held
from cartouche.read.annotate import annotate
from cartouche.read.describe import Describer
from cartouche.read.locate import Found, Locator
from cartouche.read.reader import Reader
from cartouche.read.recall import Recaller
from cartouche.read.sheets import contact_sheet

CHOSEN_SEED, CHOSEN_COUNT = 2001, 300
GOALS = {"mAP@.5": 0.85, "mIoU": 0.80, "count": 0.95, "position": 0.95, "background": 0.97, "style": 0.97, "name": 0.80}
GRAPH_GOAL, LANGUAGE_GOAL = 0.80, 0.05


def recalling(pack: Pack, recaller: Recaller, split: str, count: int) -> dict[str, Any]:
    """Everything that is recalled of one split."""
    held = Held.of(pack, split, count)
    return {
        "scenes": count,
        "finding": reading.finding(held, reading.recalled_in(held, recaller), recaller.threshold),
        "mIoU": reading.masking(held, reading.remembering(recaller)),
        "position": reading.positions(held, reading.remembering(recaller)),
        "answers": reading.answering(held, recaller, per_kind=max(20, count // 20)),
        "captions": reading.captioning(held, recaller, Lexicon(pack.drawings), count // 2),
        "scenes as JSON": reading.telling(held, recaller, count // 2),
    }


def measure(
    pack: Pack, locator: Locator, describer: Describer, split: str, count: int, threshold: float
) -> dict[str, Any]:
    """Everything that the nets say of one split."""
    held = Held.of(pack, split, count)
    found = reading.found_in(held, locator, pack.drawings)
    return {
        "scenes": count,
        "finding": reading.finding(held, found, threshold),
        "mIoU": reading.masking(held, reading.asking(locator, threshold)),
        "position": reading.positions(held, reading.asking(locator, 0.0, with_masks=False)),
        "answers": reading.answering(held, describer, per_kind=max(20, count // 4)),
        "captions": reading.captioning(held, describer, Lexicon(pack.drawings), count // 2),
        "scenes as JSON": reading.telling(held, describer, count // 10),
    }


def chosen_threshold(pack: Pack, locator: Locator, count: int = CHOSEN_COUNT) -> float:
    """The least score that counts best, on scenes that are not reported."""
    held = Held.of(pack, "train", count, CHOSEN_SEED)
    return reading.best_threshold(reading.found_in(held, locator, pack.drawings), reading.true_boxes(held))


def goals(report: dict[str, Any]) -> dict[str, Any]:
    """The figures that the issue names, beside what was wanted of them."""
    captions = report["captions"]
    reached = {
        "mAP@.5": report["finding"]["mAP@.5"],
        "mIoU": report["mIoU"]["value"],
        "count": report["finding"]["count"]["value"],
        "position": report["position"]["value"],
        "background": report["scenes as JSON"]["background"]["value"],
        "style": report["scenes as JSON"]["style"]["value"],
        "name": report["finding"]["name"]["value"],
    }
    found = {name: against(reached[name], goal) for name, goal in GOALS.items()}
    f1 = {language: captions[language]["graph-F1"]["value"] for language in captions}
    found["graph-F1"] = against(f1["en"], GRAPH_GOAL)
    found["French behind English"] = against(f1["en"] - f1["fr"], LANGUAGE_GOAL, least=False)
    return found


def latencies(pack: Pack, reader: Reader, rounds: int = 50) -> dict[str, dict[str, float]]:
    """Milliseconds a picture, one at a time, for each kind of reading."""
    held, locator, describer = Held.of(pack, "train", rounds), reader.locator, reader.describer
    pictures = [held.pictures([i]) for i in range(rounds)]
    works: dict[str, Callable[[np.ndarray], object]] = {
        "recalling: caption": lambda x: reader.caption(x),
        "recalling: find (two names, with masks)": lambda x: reader.find(x, ["cat", "dog"]),
        "recalling: answer": lambda x: reader.ask(x, "what colour is the background?"),
        "nets: find (two names, with masks)": lambda x: locator.find(x, ["cat", "dog"]),
        "nets: caption": lambda x: describer.caption(x),
        "nets: answer": lambda x: describer.ask(x, "what colour is the background?"),
    }
    return {name: spread(work, pictures) for name, work in works.items()}


def spread(work: Callable[[np.ndarray], object], pictures: list[np.ndarray]) -> dict[str, float]:
    """p50 and p99 in milliseconds, after one call that is not counted."""
    work(pictures[0])
    taken = []
    for picture in pictures:
        started = time.perf_counter()
        work(picture)
        taken.append(1e3 * (time.perf_counter() - started))
    p50, p99 = np.percentile(taken, [50, 99])
    return {"p50": float(p50), "p99": float(p99), "n": len(taken)}


def sheet(pack: Pack, recaller: Recaller, count: int = 24) -> tuple[np.ndarray, list[dict[str, str]]]:
    """The first held-out scenes, none left out, with what is recalled; what is said beside a true caption."""
    held = Held.of(pack, "train", count)
    pixels = held.pixels(0, count)
    things = recaller.look(pixels)
    found = [[Found(one.recalled.drawing.name_en, one.recalled.sure, *one[1:3]) for one in seen] for seen in things]
    said = [one.text for one in recaller.caption(held.pictures(range(count)))]
    true = [caption(scene, rng_of(reading.SEED, i), "en", FULL) for i, scene in enumerate(held.scenes)]
    page = contact_sheet([annotate(a, b) for a, b in zip(pixels, found, strict=True)], said, columns=6, side=320)
    return page, [{"said": a, "true": b} for a, b in zip(said, true, strict=True)]


def rows_of(report: dict[str, Any]) -> list[list[object]]:
    """A line for each answer: accuracy, its interval, and the blank picture's."""
    rows: list[list[object]] = []
    for split, readers in report["splits"].items():
        for name, found in readers.items():
            for kind, one in found["answers"].items():
                seen, blank = one["accuracy"], one["blank picture"]
                where = f"{seen['low']:.2f}-{seen['high']:.2f}"
                rows.append([f"{split}, {name}: {kind}", seen["value"], where, blank["value"], seen["n"]])
    return rows


def main() -> None:
    given = parser(__doc__, "reading")
    given.add_argument("--pack", type=Path, required=True)
    given.add_argument(
        "--model", type=Path, help="a folder with detector/, segmenter/ and captioner/; the built-in one"
    )
    given.add_argument("--count", type=int, default=reading.COUNT)
    given.add_argument("--nets", type=int, default=200, help="scenes a split for the nets alone, 0 for none")
    given.add_argument("--splits", nargs="+", default=["train", "pairs", "test"])
    given.add_argument("--sheet", type=Path, help="also write the first 24 scenes with their readings, a PNG")
    a = given.parse_args()
    pack, reader = Pack(a.pack, cached=1 << 14), Reader(a.model)
    recaller = reader.recaller
    if recaller is None:
        raise CartoucheError("this model has no memory; make one: scripts/assemble_model.py --pack FOLDER")
    recaller.locator.batch = reader.describer.batch = 50
    chosen = Held.of(pack, "train", CHOSEN_COUNT, CHOSEN_SEED)
    recaller.threshold = reading.best_threshold(reading.recalled_in(chosen, recaller), reading.true_boxes(chosen))
    splits = {split: {"recalling": recalling(pack, recaller, split, a.count)} for split in a.splits}
    if a.nets:
        threshold = chosen_threshold(pack, reader.locator)
        for split, found in splits.items():
            found["nets"] = measure(pack, reader.locator, reader.describer, split, a.nets, threshold)
    report: dict[str, Any] = {
        "machine": machine(),
        "seed": reading.SEED,
        "splits": splits,
        "latency, ms": latencies(pack, Reader(a.model)),
    }
    if "train" in splits:
        report["goals"] = goals(splits["train"]["recalling"])
        print(
            table(
                ["goal", "reached", "wanted", "met"],
                [[k, v["reached"], v["target"], v["met"]] for k, v in report["goals"].items()],
            )
        )
    print(table(["answers", "right", "95 %", "blank picture", "n"], rows_of(report)))
    if a.sheet:
        page, report["sheet"] = sheet(pack, recaller)
        Image.fromarray(page).save(a.sheet)
    write(a.out, report)


if __name__ == "__main__":
    main()
