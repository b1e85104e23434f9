"""The engines side by side: how long a step of the U-Net takes in each, and how far their pictures are apart.

    python benchmarks/engines.py [--model FOLDER] [--rounds 15]          (about two minutes; needs torch)
    python benchmarks/engines.py --large [--rounds 4]                    (a quarter of an hour; with the rivals)
    python benchmarks/engines.py --whole [--rounds 3]                    (half an hour: whole pictures)
    python benchmarks/engines.py --large --whole --small --out FILE      (three minutes: the same, on a toy)

A step is one call of the U-Net: for one picture with guidance (both passes, a batch of 2) and for a batch of 16. The
engines are called as drawing calls them, one after the other in every round. bf16 is measured where the processor
multiplies it natively. Pictures are drawn from the same seeds by each engine whole (text tower, steps, decoder) and
compared with those of torch in fp32, in units of 255; in fp32 a mean difference of at most 2 is wanted.

--large is a model of the size of Stable Diffusion 1.5 (rivals.py) at 512 x 512 with guidance, against diffusers as
installed and tuned and ONNX Runtime: the same weights, each engine in a process of its own, one step each in every
round. They do not all fit into 20 GB, so there are three groups, and diffusers in fp32 is in each; speeds are told as
times of it, round by round. The ceiling is a product of two large bf16 matrices, in the same rounds. Memory is that of
a fresh process, after two steps. --whole: whole pictures of the same model (text, 20 steps, decoding), by those in bf16
in turns, and one by diffusers as installed.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from bench import RESULTS, against, interleaved, machine, parser, speedups, spread, table, timed, write
from rivals import RIVALS, SIDE, Process, inputs, write_model

from cartouche.device import processor_has_bf16, use_threads
from cartouche.draw.paint import Painter
from cartouche.draw.recipe import STEPS
from cartouche.weights import folder as folders

BATCHES = (2, 16)
TARGET = 2.0  # of 255
BASE = ("torch", "fp32")
PROMPTS = (
    "a red apple on a blue background, flat style",
    "two cats on a yellow background, noto style",
    "a guitar to the left of a rocket on a white background, 3D style",
    "trois poires sur fond violet, style twemoji",
)


def painters(model: Path | None = None) -> dict[str, Painter]:
    """The model opened in every engine and precision that this machine has, under names like "torch fp32"."""
    precisions = ("fp32", "bf16") if processor_has_bf16() else ("fp32",)
    return {
        f"{engine} {precision}": Painter(model, engine=engine, precision=precision, device="cpu")  # type: ignore[arg-type]
        for engine in ("openvino", "torch")
        for precision in precisions
    }


def steps(opened: dict[str, Painter], batch: int, rounds: int = 15, limit: float = 60.0) -> dict[str, Any]:
    """Seconds of one call of the U-Net on `batch` latents, by engine."""
    given = step_inputs(next(iter(opened.values())), batch)
    calls = {name: partial(painter.net("unet"), **given) for name, painter in opened.items()}
    taken = interleaved(calls, rounds, warmup=2, limit=limit)
    times = speedups(taken, " ".join(BASE))
    return {name: {"seconds": spread(one), "times torch fp32": times[name]} for name, one in taken.items()}


def step_inputs(painter: Painter, batch: int) -> dict[str, np.ndarray]:
    """Noise at the model's size, and the states of a prompt."""
    channels = folders.read_json(painter.folder / "unet" / "config.json")["in_channels"]
    width, height = (side // painter.shrink for side in painter.size)
    states, _ = painter.encode(PROMPTS[0])
    return {
        "sample": np.random.default_rng(0).standard_normal((batch, channels, height, width), np.float32),
        "timestep": np.full(batch, 500, np.float32),
        "encoder_hidden_states": np.repeat(states, batch, axis=0),
    }


def pictures(opened: dict[str, Painter], num_inference_steps: int = STEPS) -> dict[str, Any]:
    """How far each engine's pictures are from those of torch in fp32, of 255."""
    drawn = {name: drawings(painter, num_inference_steps) for name, painter in opened.items()}
    there: np.ndarray = drawn.pop(" ".join(BASE)).astype(int)
    apart = {name: np.abs(there - here) for name, here in drawn.items()}
    return {name: {"mean": one.mean(), "largest": one.max(), "pictures": len(one)} for name, one in apart.items()}


def drawings(painter: Painter, num_inference_steps: int) -> np.ndarray:
    """One picture for each prompt: (B, H, W, 3) uint8."""
    settings = {"num_inference_steps": num_inference_steps}
    return np.stack([painter.draw(prompt, seed=seed, **settings)[0].pixels for seed, prompt in enumerate(PROMPTS)])


def measure(model: Path | None = None, rounds: int = 15, limit: float = 60.0) -> dict[str, Any]:
    """Steps in every engine and batch, and the pictures' differences."""
    use_threads()
    opened = painters(model)
    differences = pictures(opened)
    return {
        "model": next(iter(opened.values())).hash,
        "steps": {f"batch of {batch}": steps(opened, batch, rounds, limit) for batch in BATCHES},
        "differences from torch fp32, of 255": differences,
        "target": against(float(differences["openvino fp32"]["mean"]), TARGET, least=False),
    }


# the size of Stable Diffusion 1.5

FIRST = "diffusers fp32"
GROUPS = (  # what fits into 20 GB together
    (FIRST, "cartouche openvino bf16", "cartouche torch bf16", "diffusers bf16", "diffusers bf16, channels last"),
    (FIRST, "cartouche openvino fp32", "cartouche torch fp32"),
    (FIRST, "onnxruntime fp32"),
)
CEILING = "bf16 product"
DRAWERS = GROUPS[0][1:]  # of whole pictures, ours in openvino first; decoding needs room, so the one in fp32 stays out
SHARES = {  # of the time of a step, at most: ours, theirs, wanted
    "openvino to diffusers as installed": ("cartouche openvino bf16", FIRST, 0.33),
    "openvino to diffusers in bf16": ("cartouche openvino bf16", "diffusers bf16", 0.60),
    "torch to diffusers in bf16": ("cartouche torch bf16", "diffusers bf16", 0.75),
}
OF_CEILING, MORE, SPARE = 0.62, 1.15, 1e9
WIDTHS = {"bf16": 2, "fp32": 4}


def large(rounds: int = 4, limit: float = 1200.0, small: bool = False) -> dict[str, Any]:
    """Steps and memory of every rival on the same weights."""
    with tempfile.TemporaryDirectory(prefix="cartouche-engines-") as place:
        folder = Path(place) / "model"
        counts = write_model(folder, small)
        flops = operations(folder)
        found: dict[str, Any] = {"numbers": counts, "GFLOP a step": flops / 1e9, "steps": {}}
        for group in GROUPS:
            found["steps"] |= race(group, folder, rounds, limit, flops, known=found["steps"])
        found["memory"] = {name: peak(name, folder) for name in dict.fromkeys(sum(GROUPS, ()))}
    found["targets"] = targets(found)
    return found


def operations(folder: Path) -> int:
    """What torch counts for a step: two for each multiplication with its addition."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.device("meta"), torch.no_grad(), counter:
        net = folders.build(folders.read_json(folder / "unet" / "config.json"))
        net(**{name: torch.from_numpy(one).to("meta") for name, one in inputs(folder).items()})
    return int(counter.get_total_flops())


def race(
    group: tuple[str, ...], folder: Path, rounds: int, limit: float, flops: int, known: dict[str, Any]
) -> dict[str, Any]:
    """Seconds of a step of each rival, one after the other in every round; who is `known` already is not told again."""
    with ExitStack() as stack:
        rivals = {name: stack.enter_context(Process(name, folder)) for name in (*group, CEILING)}
        outputs = {name: folder.parent / f"{i}.npy" for i, name in enumerate(group)}
        for name, path in outputs.items():
            rivals[name].ask(f"save {path}")
        taken = interleaved({name: partial(one.ask, "step") for name, one in rivals.items()}, rounds, limit=limit)
    times, most = speedups(taken, FIRST), 2 * SIDE**3 / np.asarray(taken[CEILING])
    expected = np.load(outputs[FIRST])
    rows = {}
    for name in group:
        row = {"seconds": spread(taken[name]), f"times {FIRST}": times[name]}
        row |= {"share of the bf16 ceiling": spread(flops / np.asarray(taken[name]) / most)}
        row["largest difference, of the largest number"] = np.abs(np.load(outputs[name]) - expected).max()
        row["largest difference, of the largest number"] /= np.abs(expected).max()
        against_all = {other: spread(np.asarray(taken[name]) / np.asarray(taken[other])) for other in group}
        rows[name] = row | {"share of the time of": against_all}
    ceiling = {CEILING: {"seconds": spread(taken[CEILING]), "GFLOP/s": spread(most / 1e9)}}
    return {name: row for name, row in (rows | ceiling).items() if name not in known}


def peak(name: str, folder: Path) -> dict[str, int]:
    """Bytes that a fresh process of a rival took at most, after two steps."""
    with Process(name, folder) as rival:
        rival.ask("step")
        rival.ask("step")
        found: dict[str, int] = rival.ask("memory")
    return found


def whole(rounds: int = 3, small: bool = False) -> dict[str, Any]:
    """Seconds of whole pictures: the drawers take turns, once each has warmed up on a short one; `FIRST` draws one."""
    with tempfile.TemporaryDirectory(prefix="cartouche-engines-") as place, ExitStack() as stack:
        folder = Path(place) / "model"
        write_model(folder, small)
        drawers = {name: stack.enter_context(Process(name, folder)) for name in DRAWERS}
        for one in drawers.values():
            one.ask("picture 2")
        calls = {name: partial(one.ask, f"picture {STEPS}") for name, one in drawers.items()}
        taken = interleaved(calls, rounds, warmup=0)
        memory = {name: one.ask("memory") for name, one in drawers.items()}
        stack.close()  # there is no room for one more
        with Process(FIRST, folder) as rival:
            rival.ask("picture 2")
            taken[FIRST] = [timed(partial(rival.ask, f"picture {STEPS}"))]
    seconds = {name: spread(one) for name, one in taken.items()}
    others = min(one["median"] for name, one in seconds.items() if not name.startswith("cartouche"))
    held = against(seconds[DRAWERS[0]]["median"] / others, 1.0, least=False)
    return {"seconds": seconds, "memory": memory, "targets": {"openvino to the best other": held}}


def targets(found: dict[str, Any]) -> dict[str, Any]:
    """What is wanted of these numbers, and whether it is reached."""
    steps, best = found["steps"], "cartouche openvino bf16"
    held = {
        what: against(steps[one]["share of the time of"][other]["median"], most, least=False)
        for what, (one, other, most) in SHARES.items()
    }
    held["openvino, of the bf16 ceiling"] = against(steps[best]["share of the bf16 ceiling"]["median"], OF_CEILING)
    if memory := found["memory"][best]:
        parts = found["numbers"]["unet"] * WIDTHS["bf16"]
        held["openvino, bytes for the U-Net"] = against(memory["VmHWM"], MORE * parts + SPARE, least=False)
    return held


def rows_of(found: dict[str, Any]) -> list[list[str]]:
    """A line for each engine: milliseconds, and how many times as fast as torch in fp32."""
    rows = []
    for name, row in found.items():
        ms = (f"{1000 * row['seconds'][key]:.1f}" for key in ("median", "min", "max"))
        rows.append([name, *ms, f"{row['times torch fp32']['median']:.2f}"])
    return rows


def main() -> None:
    given = parser(__doc__, "engines")
    given.add_argument("--model", type=Path, default=None, help="a model folder; the built-in one unless given")
    given.add_argument("--rounds", type=int, default=None, help="15; with --large 4, with --whole 3")
    given.add_argument("--limit", type=float, default=60.0, help="seconds a batch size, after which no round begins")
    given.add_argument("--large", action="store_true", help="a model of the size of Stable Diffusion 1.5")
    given.add_argument("--whole", action="store_true", help="whole pictures of such a model")
    given.add_argument("--small", action="store_true", help="with --large and --whole: a toy in its place")
    a = given.parse_args()
    if a.small and a.out.parent == RESULTS:
        given.error("--small measures a toy; give --out FILE")
    if a.large:
        main_large(a)
    if a.whole:
        main_whole(a)
    if not a.large and not a.whole:
        main_builtin(a)


def main_builtin(a: Any) -> None:
    here = machine()
    report = measure(a.model, a.rounds or 15, a.limit)
    for batch, found in report["steps"].items():
        print(table([f"{batch}, ms a step", "median", "min", "max", "times torch fp32"], rows_of(found)), end="\n\n")
    apart = report["differences from torch fp32, of 255"]
    rows = [[name, f"{row['mean']:.3f}", row["largest"]] for name, row in apart.items()]
    print(table(["pictures, of 255", "mean", "largest"], rows))
    write(a.out, {**before(a.out), "machine": here, **report})


def main_large(a: Any) -> None:
    here = machine()
    report = large(a.rounds or 4, max(a.limit, 1200.0), a.small)
    rows = []
    for name, row in report["steps"].items():
        if name in RIVALS and name != CEILING:
            numbers = (f"{row['seconds'][key]:.3f}" for key in ("median", "min", "max"))
            share = row["share of the bf16 ceiling"]["median"]
            rows.append([name, *numbers, f"{row[f'times {FIRST}']['median']:.2f}", f"{share:.2f}"])
    print(table(["seconds a step", "median", "min", "max", f"times {FIRST}", "of bf16 ceiling"], rows), end="\n\n")
    say(report["targets"])
    write(a.out, {**before(a.out), "large": {"machine": here, **report}})


def main_whole(a: Any) -> None:
    here = machine()
    report = whole(a.rounds or 3, a.small)
    rows = [[name, *(f"{row[key]:.1f}" for key in ("median", "min", "max"))] for name, row in report["seconds"].items()]
    print(table(["seconds a picture", "median", "min", "max"], rows), end="\n\n")
    say(report["targets"])
    write(a.out, {**before(a.out), "whole": {"machine": here, **report}})


def say(targets: dict[str, Any]) -> None:
    for what, row in targets.items():
        print(f"{what}: {row['reached']:.4g}, wanted {row['wanted']} {row['target']:.4g}: {_yes(row['met'])}")


def before(path: Path) -> dict[str, Any]:
    """What the file said: the parts of this benchmark are measured apart."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _yes(met: bool) -> str:
    return "reached" if met else "not reached"


if __name__ == "__main__":
    main()
