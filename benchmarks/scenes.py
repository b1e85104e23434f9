"""How many scenes one core makes a second: composed, drawn and captioned, against what the trainings eat.

    python benchmarks/scenes.py --pack FOLDER [--needs 100]          (about half a minute)

The trainings make their scenes in one worker process beside the one that computes, so one core must keep up. The
process keeps to one core, and the drawings are read from the pack as training reads them: of a stream's first scenes
every drawing is new, later many are remembered.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from bench import against, interleaved, machine, parser, spread, table, write

from cartouche.data.emoji import Pack
from cartouche.data.scenes import Composer, render
from cartouche.data.streams import Scenes

NEEDS = 100.0  # images a second that a training eats
SEED = 9


def measure(
    folder: Path, needs: float = NEEDS, chunk: int = 100, rounds: int = 16, split: str = "train"
) -> dict[str, Any]:
    """Scenes a second for each part of the work and for whole training samples; `rounds` chunks of `chunk` each."""
    pack = Pack(folder)
    taken = interleaved(works(pack, split, chunk), rounds, warmup=1)
    rates = {name: spread(chunk / one for one in seconds) for name, seconds in taken.items()}
    return {
        "drawings": len(pack.of(split)),
        "scenes": chunk * rounds,
        "scenes a second on one core": rates,
        "needs": needs,
        "times what training needs": rates["sample with caption"]["median"] / needs,
        "target": against(rates["sample with caption"]["median"], needs),
    }


def works(pack: Pack, split: str, chunk: int) -> Mapping[str, Callable[[], object]]:
    """Chunks of scenes in several stages of readiness; a call goes on where that stage's last call stopped."""
    composer = Composer(pack.of(split), SEED)
    whole, cut = Scenes(pack, composer), Scenes(pack, composer, crop=64)
    ready = [composer[i] for i in range(chunk)]
    stages: dict[str, Callable[[int], object]] = {
        "compose": composer.__getitem__,
        "draw": lambda i: render(pack, ready[i % chunk]),
        "caption": lambda i: whole.caption(ready[i % chunk], i),
        "sample with caption": whole.__getitem__,
        "sample cut to 64x64": cut.__getitem__,
    }
    return {name: chunked(stage, chunk) for name, stage in stages.items()}


def chunked(stage: Callable[[int], object], chunk: int) -> Callable[[], object]:
    """A call that does the next `chunk` numbers."""
    starts = count(0, chunk)

    def call() -> None:
        first = next(starts)
        for i in range(first, first + chunk):
            stage(i)

    return call


def keep_to_one_core() -> None:
    """Where the system can: Linux."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def main() -> None:
    given = parser(__doc__, "scenes")
    given.add_argument("--pack", type=Path, required=True)
    given.add_argument("--needs", type=float, default=NEEDS, help="images a second that training eats")
    given.add_argument("--rounds", type=int, default=16)
    a = given.parse_args()
    here = machine()
    keep_to_one_core()
    report = measure(a.pack, a.needs, rounds=a.rounds)
    rows = [[name, *(f"{row[key]:.0f}" for key in ("median", "min", "max"))] for name, row in
            report["scenes a second on one core"].items()]  # fmt: skip
    print(table(["scenes a second, one core", "median", "min", "max"], rows))
    print(f"{report['times what training needs']:.1f} times the {a.needs:g} images a second that training eats")
    write(a.out, {"machine": here, **report})


if __name__ == "__main__":
    main()
