"""What the benchmarks share: the machine in words, fair timing of rivals, results as JSON and as a table to read.

Timings are only worth something on a quiet machine; the load before the start is written beside every result.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from cartouche.device import processor_has_bf16, processor_name, processors
from cartouche.files import write_whole

RESULTS = Path(__file__).parent / "results"
NETS = Path(__file__).parent / "nets"  # not in the package: the referee
LIBRARIES = ("numpy", "torch", "openvino", "diffusers", "transformers")
DIGITS = 6  # of a stored number: what was measured has no more


def parser(text: str | None, name: str) -> argparse.ArgumentParser:
    """An argument parser whose help is the script's docstring; `--out` is results/NAME.json unless given."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, default=RESULTS / f"{name}.json", help="where the result goes (JSON)")
    return made


def machine() -> dict[str, Any]:
    """What a timing depends on, without a name of host or place. load: runnable processes over the last minute."""
    return {
        "processor": processor_name(),
        "cores": processors(),
        "bf16": processor_has_bf16(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": {name: found for name in LIBRARIES if (found := installed(name))},
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def installed(package: str) -> str:
    """The version of a package, "" where it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


# timing


def interleaved(
    rivals: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1, limit: float = float("inf")
) -> dict[str, list[float]]:
    """Seconds of every call, by rival: each is called once a round, forwards and backwards in turn.

    So a machine that slows down slows all of them, and none always follows the same neighbour. The first `warmup`
    rounds are not kept; after `limit` seconds no further round begins, but three are always made where asked for.
    """
    names = list(rivals)
    taken: dict[str, list[float]] = {name: [] for name in names}
    started = time.perf_counter()
    for turn in range(warmup + rounds):
        if turn >= warmup + 3 and time.perf_counter() - started > limit:
            break
        for name in names if turn % 2 == 0 else reversed(names):
            seconds = timed(rivals[name])
            if turn >= warmup:
                taken[name].append(seconds)
    return taken


def timed(call: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def spread(values: Iterable[float]) -> dict[str, float]:
    """Least, median, most, and how many."""
    array = np.asarray(list(values), float)
    return {"min": array.min(), "median": float(np.median(array)), "max": array.max(), "n": array.size}


def speedups(taken: Mapping[str, Sequence[float]], base: str) -> dict[str, dict[str, float]]:
    """How many times as fast as `base` each rival was, round by round."""
    there = np.asarray(taken[base])
    return {name: spread(there / np.asarray(here)) for name, here in taken.items()}


def against(reached: float, target: float, least: bool = True) -> dict[str, Any]:
    """A number beside what was wanted of it: at least, or at most (`least` False)."""
    met = reached >= target if least else reached <= target
    return {"target": target, "wanted": "at least" if least else "at most", "reached": reached, "met": bool(met)}


# results


def write(path: Path, report: Mapping[str, Any]) -> None:
    """The report as JSON, whole or not at all; numbers with six digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(rounded(report), indent=1, ensure_ascii=False) + "\n"
    write_whole(path, text.encode(), force=True)
    print(f"written to results/{path.name}" if path.parent == RESULTS else f"written to {path}")


def rounded(value: Any) -> Any:
    """The same with Python's own numbers, floats cut to six digits."""
    if isinstance(value, Mapping):
        return {str(name): rounded(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(one) for one in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.{DIGITS}g}")
    return value.item() if isinstance(value, np.generic) else value


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns that stand under each other: the first to the left, numbers to the right; floats with three digits."""
    lines = [[str(one) for one in head], *([_said(one) for one in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            one.rjust(width) if i else one.ljust(width) for i, (one, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (float, np.floating)):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)
