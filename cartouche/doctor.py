"""What this machine and this installation are, what will draw here and why, and what to type to do better.

Every probe may fail, for this is what people run where something is broken: then it says so in its own line, and the
others go on.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cartouche
from cartouche import device, engine
from cartouche.config import shown
from cartouche.weights import builtin
from cartouche.weights.convert import OLDEST_TORCH

FEATURES = "avx2 avx512f avx_vnni avx512_vnni avx512_bf16 amx_int8 amx_bf16 amx_fp16 asimd bf16 i8mm sve sve2".split()
"""Instruction sets that decide how fast nets run."""


@dataclass(frozen=True)
class Finding:
    """What one probe found: a line for people, the facts for programs, and what to do about it, if anything."""

    name: str
    text: str
    facts: dict[str, Any] = field(default_factory=dict)
    advice: str | None = None


def examine(model: Path | str | None = None) -> list[Finding]:
    """Every finding, in the order of the screen. model: what to draw with, the built-in one if not given."""
    return [_guarded(name, probe, model) for name, probe in PROBES.items()]


def _guarded(name: str, probe: Callable[[Path | str | None], Finding], model: Path | str | None) -> Finding:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return probe(model)
    except Exception as error:
        said = shown(error) or "no reason given"
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        advice = f"pip install {missing}" if missing else None
        return Finding(name, f"unknown: {said}", {"error": f"{type(error).__name__}: {said}"}, advice)


def _python(_: Path | str | None) -> Finding:
    version = platform.python_version()
    facts = {"cartouche": cartouche.__version__, "python": version, "system": platform.system()}
    text = f"{version}, {platform.system()} {platform.machine()}; cartouche {cartouche.__version__}"
    return Finding("python", text, facts | {"machine": platform.machine(), "executable": sys.executable})


def _processor(_: Path | str | None) -> Finding:
    flags = device.processor_flags()
    known = [one for one in FEATURES if one in flags]
    facts = {"name": device.processor_name(), "features": known, "bf16": device.processor_has_bf16()}
    text = f"{facts['name']}; {' '.join(known) or 'features not told'}"
    return Finding("processor", text, facts)


def _threads(_: Path | str | None) -> Finding:
    usable, there, cores = device.processors(), os.cpu_count() or 1, device.cores()
    asked = os.environ.get("OMP_NUM_THREADS")
    facts = {"threads": usable, "processors": there, "cores": cores, "share": device.processor_share(), "asked": asked}
    text = f"{usable} of {there} processors" + (f" on {cores} cores" if cores else "")
    if asked:
        text += f"; OMP_NUM_THREADS={asked}, which torch heeds"
    held = usable < there
    return Finding("threads", text, facts, "a container or taskset holds threads back: give it more" if held else None)


def _memory(_: Path | str | None) -> Finding:
    found = device.memory()
    parts = [
        f"{_size(bytes_)} {what}"
        for bytes_, what in ((found.total, "in all"), (found.available, "free"), (found.limit, "allowed here"))
        if bytes_ is not None
    ]
    room = min((one for one in (found.available, found.limit) if one is not None), default=None)
    advice = None
    if room is not None and room < 2 << 30:
        advice = "under 2 GB: the built-in model fits; for Stable Diffusion close other programs"
    return Finding("memory", ", ".join(parts) or "not told", found._asdict(), advice)


def _gpu(_: Path | str | None) -> Finding:
    """torch asks the driver; without torch the driver's own notes are read."""
    told = sorted((device.PROC / "driver" / "nvidia" / "gpus").glob("*/information"))
    named = [_after(path.read_text(errors="replace"), "Model:") for path in told]
    facts: dict[str, Any] = {"driver": named, "torch": []}
    if _installed("torch"):
        import torch

        for i in range(torch.cuda.device_count()):
            one = torch.cuda.get_device_properties(i)
            facts["torch"].append({"name": one.name, "bytes": one.total_memory})
        if torch.backends.mps.is_available():
            facts["torch"].append({"name": "Apple (mps)", "bytes": None})
    if facts["torch"]:
        said = [one["name"] + (f", {_size(one['bytes'])}" if one["bytes"] else "") for one in facts["torch"]]
        return Finding("gpu", "; ".join(said), facts, "draw on it with `cartouche draw --engine torch ...`")
    if named:
        advice = "install a torch built for CUDA, then draw with `cartouche draw --engine torch ...`"
        return Finding("gpu", f"{'; '.join(named)}, which torch cannot use", facts, advice)
    return Finding("gpu", "none", facts)


def _torch(_: Path | str | None) -> Finding:
    if not _installed("torch"):
        wanted = "to train, or for models without graphs: pip install 'cartouche-ai[torch]'"
        return Finding("torch", "absent; drawing with graphs does without", {"version": None}, wanted)
    import torch

    facts: dict[str, Any] = {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
    }
    facts |= {"mkl": torch.backends.mkl.is_available(), "onednn": torch.backends.mkldnn.is_available()}
    built = f"for CUDA {facts['cuda']}" if facts["cuda"] else "for the CPU"
    libraries = " ".join(name for name in ("mkl", "onednn") if facts[name])
    old = tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH
    advice = f"older than {_dotted(OLDEST_TORCH)}: pip install -U torch, for pickles can get round it" if old else None
    return Finding("torch", f"{facts['version']} {built}, {facts['threads']} threads, {libraries}", facts, advice)


def _openvino(_: Path | str | None) -> Finding:
    version, native = importlib.metadata.version("openvino"), engine.openvino_has_bf16()
    text = f"{version}, computes in {'bf16' if native else 'fp32'} here"
    return Finding("openvino", text, {"version": version, "bf16": native})


def _disk(_: Path | str | None) -> Finding:
    cache = engine.CompileCache.default()
    place = next(one for one in (cache.folder, *cache.folder.parents) if one.exists())
    free, used = shutil.disk_usage(place).free, sum(one.stat().st_size for one in cache.folder.glob("*"))
    facts = {"cache": str(cache.folder), "free": free, "used": used, "limit": cache.limit}
    facts["writable"] = os.access(place, os.W_OK)
    text = f"{_size(free)} free at {cache.folder}, which keeps {_size(used)} of compiled graphs"
    if not facts["writable"]:
        return Finding("disk", text, facts, "graphs are compiled each time: set XDG_CACHE_HOME to a folder of yours")
    full = free + used < cache.limit
    return Finding(
        "disk", text, facts, "little room for compiled graphs: set XDG_CACHE_HOME elsewhere" if full else None
    )


def _model(_: Path | str | None) -> Finding:
    folder = builtin.builtin()
    harmed = builtin.damaged(folder)
    if harmed:
        text = f"damaged: {', '.join(harmed[:3])}{' ...' if len(harmed) > 3 else ''}"
        return Finding("model", text, {"whole": False, "damaged": harmed}, "pip install --force-reinstall cartouche-ai")
    from cartouche.draw.model import Model

    digest = Model(folder).hash
    return Finding("model", f"the built-in one, whole ({digest})", {"whole": True, "damaged": [], "hash": digest})


def _draws(model: Path | str | None) -> Finding:
    """Which engine and precision a drawing will take, and why: the same choice that drawing makes."""
    from cartouche.draw.model import Model

    chosen = Model(model)
    facts: dict[str, Any] = {"model": chosen.name, "engine": chosen.engine}
    if chosen.engine == "openvino":
        facts["precision"] = "bf16" if engine.openvino_has_bf16() else "fp32"
        why = "the model has its graphs"
        why += ", the processor has bf16" if facts["precision"] == "bf16" else ", the processor has no bf16"
        return Finding("draws", f"{chosen.name} by openvino in {facts['precision']}: {why}", facts)
    missing = chosen.without_graph
    why = f"it has no graph of {missing[0]}" if missing else "there is a GPU"
    if not _installed("torch"):
        text = f"{chosen.name} cannot be drawn: {why}, and torch is absent"
        return Finding("draws", text, facts | {"engine": None}, "pip install 'cartouche-ai[torch]'")
    place = device.choose("auto")
    facts |= {"device": str(place), "precision": "bf16" if device.has_bf16(place) else "fp32"}
    text = f"{chosen.name} by torch on {place} in {facts['precision']}: {why}"
    export = f"for OpenVINO: `cartouche weights export {chosen.folder}`"
    return Finding("draws", text, facts, export if missing and chosen.folder.is_dir() else None)


PROBES: dict[str, Callable[[Path | str | None], Finding]] = {
    "python": _python,
    "processor": _processor,
    "threads": _threads,
    "memory": _memory,
    "gpu": _gpu,
    "torch": _torch,
    "openvino": _openvino,
    "disk": _disk,
    "model": _model,
    "draws": _draws,
}


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _after(text: str, word: str) -> str:
    return next((line.partition(word)[2].strip() for line in text.splitlines() if line.startswith(word)), "a GPU")


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GB" if count >= 2**30 else f"{count / 2**20:.0f} MB"


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
