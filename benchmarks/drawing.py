"""How well the model obeys its prompts: each clause judged by the referee, with the referee's own accuracy beside it.

    python benchmarks/drawing.py --pack FOLDER [--count 500] [--model FOLDER] [--referee benchmarks/nets/referee]

Writes benchmarks/results/drawing.json and, for the eye, one sheet a line. Prompts are true captions of scenes composed
with a seed kept for this, over the train split's drawings of 100 names; picture i has seed i; nothing is picked.
"referee on true scenes" is the same reading of the scenes' own pictures, and "through the autoencoder" of those there
and back through the model's latents: no drawing can be expected to score above either. "begun from the true scene" is
what becomes of that scene when noise is put on it up to a strength and taken off again, told by the prompt: it shows at
which noise obedience is lost.
"""

import argparse
import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
from autoencoder import BATCH, reconstruction
from bench import NETS, RESULTS, machine, write

import cartouche
from cartouche import images
from cartouche.data.emoji import Pack
from cartouche.data.scenes import render
from cartouche.draw.paint import Painter
from cartouche.measure.nearest import Nearest
from cartouche.measure.obedience import LINES, Ask, asks, hundred_names, rates, verdict
from cartouche.read.referee import RefereeReader
from cartouche.weights.builtin import builtin

SHOWN = 48  # pictures on a sheet, seeds 0 to 47
COMPARED = 100  # pictures held against every training drawing, or begun from the true scene
STRENGTHS = (0.3, 0.5, 0.7, 0.85)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--referee", type=Path, default=NETS / "referee")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=None)
    parser.add_argument("--lines", nargs="*", default=list(LINES))
    parser.add_argument("--out", type=Path, default=RESULTS / "drawing.json")
    a = parser.parse_args()
    pack = Pack(a.pack)
    train = pack.of("train")
    names = hundred_names(train)
    family = {d.concept: d.family for d in pack.drawings}
    drawings = [d for d in train if d.concept in set(names)]
    painter = cartouche.load(a.model)
    again, _ = reconstruction((a.model or builtin()) / "vae")
    settings = {"num_inference_steps": a.steps} | ({"guidance_scale": a.guidance} if a.guidance is not None else {})
    report: dict = {"count": a.count, "settings": settings, "model": painter.hash, "machine": machine(), "lines": {}}
    for line in a.lines:
        reader = RefereeReader(a.referee, among=names)
        made = asks(line, drawings, a.count)
        true = images.from_uint8(np.stack([render(pack, ask.scene)[0] for ask in made]))
        back = images.to_uint8(np.concatenate([again(true[i : i + BATCH]) for i in range(0, len(true), BATCH)]))
        start = time.perf_counter()
        drawn = [painter.draw(ask.prompt, seed=i, **settings)[0].pixels for i, ask in enumerate(made)]
        took = (time.perf_counter() - start) / len(made)
        readings = reader.read(images.from_uint8(np.stack(drawn)))
        report["lines"][line] = judged(line, made, readings, family) | {
            "referee on true scenes": judged(line, made, reader.read(true), family)["all"],
            "through the autoencoder": judged(line, made, reader.read(images.from_uint8(back)), family)["all"],
            "seconds a picture": took,
            "shown": [ask.prompt for ask in made[:SHOWN]],
        }
        if line == "single":
            report["nearest training drawing"] = nearest(pack, train, drawn, made, readings)
            report["begun from the true scene"] = {
                strength: judged(
                    line, made[:COMPARED], reader.read(begun(painter, made, true, strength, settings)), family
                )["all"]
                for strength in STRENGTHS
            }
        sheet = images.grid(images.from_uint8(np.stack(drawn[:SHOWN])), columns=12)
        images.save_png(a.out.with_name(f"{a.out.stem}_{line}.png"), images.to_uint8(sheet)[0], force=True)
        print(line, json.dumps(report["lines"][line]["all"], indent=1), flush=True)
    write(a.out, report)


def judged(line: str, made: list[Ask], readings: list, family: dict[str, str]) -> dict:
    """The rates of all prompts and of each language alone."""
    verdicts = [verdict(line, ask.scene, reading, family) for ask, reading in zip(made, readings, strict=True)]
    parts = {"all": rates(verdicts)}
    for language in ("en", "fr"):
        parts[language] = rates([v for v, ask in zip(verdicts, made, strict=True) if ask.language == language])
    return parts


def begun(painter: Painter, made: list[Ask], true: np.ndarray, strength: float, settings: dict) -> np.ndarray:
    """The first true scenes (B, 3, H, W), drawn into as far as `strength` says."""
    scenes = images.to_uint8(true[:COMPARED])
    given = [{"seed": i, "image": scene, "strength": strength} for i, scene in enumerate(scenes)]
    drawn = [painter.draw(ask.prompt, **one, **settings)[0].pixels for ask, one in zip(made, given, strict=False)]
    return images.from_uint8(np.stack(drawn))


def nearest(pack: Pack, train: list, drawn: list, made: list[Ask], readings: list) -> dict:
    """Distances to the nearest training drawing of drawn objects, and of true scenes' objects for comparison."""
    look, drawn_gap, true_gap, same = Nearest(pack, train), [], [], Counter()
    for pixels, ask, reading in zip(drawn[:COMPARED], made, readings, strict=False):
        truth = ask.scene.objects[0]
        true_gap.append(look(render(pack, ask.scene)[0], truth.box).distance)
        if reading.objects:
            found = look(pixels, reading.objects[0].box)
            drawn_gap.append(found.distance)
            same[found.key == truth.drawing.key] += 1
    quartiles = [25, 50, 75]
    return {
        "drawn": np.percentile(drawn_gap, quartiles).round(4).tolist(),
        "true scenes": np.percentile(true_gap, quartiles).round(4).tolist(),
        "nearest is the very drawing asked for": same[True] / max(1, sum(same.values())),
    }


if __name__ == "__main__":
    main()
