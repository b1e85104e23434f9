"""Checkpoints: a folder per step, written whole or not at all, checked byte for byte when read.

    step-00001234/
        net.safetensors        the weights
        ema.safetensors        their moving average
        optimizer.safetensors  the optimizer's memory
        state.json             step, samples read, settings, loss, the sha256 of each file, and its own seal

A folder is filled under a hidden name, every file synced, then renamed, then the parent synced: whatever moment the
power goes, each `step-` folder is either complete or absent. Should the disk itself damage one, its sums tell, and the
one before is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from cartouche import files
from cartouche.config import CartoucheError
from cartouche.weights import safetensors

FILES = ("net", "ema", "optimizer")
STATE = "state.json"


class DamagedWarning(UserWarning):
    """A checkpoint could not be trusted and the one before was used."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: its folder and what state.json says."""

    folder: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one of FILES."""
        return safetensors.load(self.folder / f"{name}.safetensors")


def name_of(step: int) -> str:
    """step-00001234"""
    return f"step-{step:08d}"


def folders(out: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first."""
    found = [one for one in out.glob("step-*") if one.is_dir() and one.name[5:].isdigit()]
    return sorted(found, key=lambda one: int(one.name[5:]))


def save(out: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int = 3) -> Path:
    """Write step-NNNNNNNN with one safetensors file per entry of `tensors`; then drop all but the newest `keep`.

    Raises CartoucheError in one line where the disk refuses (full, read-only, broken): the older checkpoints are
    untouched and nothing half-written is left.
    """
    out.mkdir(parents=True, exist_ok=True)
    final = out / name_of(int(state["step"]))
    temporary = out / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        sums = {
            f"{name}.safetensors": safetensors.write(temporary / f"{name}.safetensors", one)
            for name, one in tensors.items()
        }
        _write_state(temporary / STATE, {**state, "sha256": sums})
        files.sync_folder(temporary)
        _move(temporary, final)
        files.sync_folder(out)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CartoucheError(_disk_words(final, error)) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    prune(out, keep, final)
    return final


def verify(folder: Path) -> Checkpoint:
    """The checkpoint in `folder` if every byte is as written; otherwise CartoucheError naming the first bad file."""
    path = folder / STATE
    try:
        state = json.loads(path.read_bytes())
        seal = state.pop("seal")
        sums: dict[str, str] = state["sha256"]
        whole = seal == _seal(state)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CartoucheError(f"{path} is damaged ({error})") from error
    if not whole:
        raise CartoucheError(f"{path} is damaged (its own sum does not match)")
    for name, wanted in sums.items():
        try:
            here = files.digest(folder / name)
        except FileNotFoundError:
            raise CartoucheError(f"{folder / name} is missing") from None
        except OSError as error:  # the disk cannot give it back
            raise CartoucheError(f"{folder / name} is damaged ({error.strerror or error})") from error
        if here != wanted:
            raise CartoucheError(f"{folder / name} is damaged (its sha256 is not the one written)")
    return Checkpoint(folder, state)


def newest(out: Path) -> Checkpoint | None:
    """The newest undamaged checkpoint, or None; each damaged one that is passed over is warned about by file name.

    Raises CartoucheError where there are checkpoints and none is whole: starting anew would hide the loss.
    """
    problems = []
    for folder in reversed(folders(out)):
        try:
            found = verify(folder)
        except CartoucheError as error:
            problems.append(f"{error}")
        else:
            for problem in problems:
                warnings.warn(f"{problem}; going back to {found.folder.name}", DamagedWarning, stacklevel=2)
            return found
    if problems:
        raise CartoucheError(f"no checkpoint in {out} is whole: {problems[0]}; move the folder away to start anew")
    return None


def clean(out: Path) -> None:
    """Remove what a killed save left behind."""
    for rest in [*out.glob(".step-*.tmp"), *out.glob(".step-*.old")]:
        shutil.rmtree(rest, ignore_errors=True)


def prune(out: Path, keep: int, newest_folder: Path) -> None:
    """Drop all but the last `keep` checkpoints up to the newest (0 keeps every one)."""
    known = [one for one in folders(out) if int(one.name[5:]) <= int(newest_folder.name[5:])]
    for folder in known[:-keep] if keep > 0 else []:
        shutil.rmtree(folder, ignore_errors=True)


def _move(temporary: Path, final: Path) -> None:
    """Rename into place; a damaged folder of the same step steps aside first."""
    old = final.with_name(f".{final.name}.old")
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(final, old)
    os.rename(temporary, final)
    shutil.rmtree(old, ignore_errors=True)


def _write_state(path: Path, state: dict[str, Any]) -> None:
    text = json.dumps({**state, "seal": _seal(state)}, indent=1)
    with files.created(path) as file:
        file.write(text.encode())


def _seal(state: dict[str, Any]) -> str:
    """The sha256 of the state's own content, so that a flipped byte in state.json shows."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _disk_words(final: Path, error: OSError) -> str:
    free = ""
    with suppress(OSError):
        free = f", {shutil.disk_usage(final.parent).free / 2**20:.0f} MB free"
    return (
        f"could not save {final} ({error.strerror or error}{free}); the checkpoints before it are untouched: "
        "make room and start the same command again"
    )
