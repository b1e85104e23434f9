"""What this machine has: the device to compute on, the threads and the memory to use, whether bf16 is worth using.

torch is imported only inside the functions that need it, so asking about the processor is free.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from cartouche.config import CartoucheError, unknown

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "fp32", "bf16"]
EXACT = 1e-5  # relative error of a product of 512 x 512 float32 matrices: bfloat16 would leave 3e-3
PROC, SYS = Path("/proc"), Path("/sys")
"""Where Linux tells about itself; elsewhere they are missing, and everything here does without."""


class Memory(NamedTuple):
    """Bytes: of the machine, free for a new program, and what a container may take; None where nobody says."""

    total: int | None
    available: int | None
    limit: int | None


@lru_cache(maxsize=1)
def processor_flags() -> frozenset[str]:
    """The instruction sets that the first processor reports; empty where the system does not say."""
    return frozenset((_told("cpuinfo", "flags") or _told("cpuinfo", "Features") or "").split())


def processor_name() -> str:
    """The processor's own name; what the system calls its kind where it does not give one."""
    import platform

    return _told("cpuinfo", "model name") or platform.processor() or platform.machine()


def processor_has_bf16() -> bool:
    """True where the processor multiplies bf16 natively (elsewhere it is emulated and slower than fp32)."""
    return not processor_flags().isdisjoint({"avx512_bf16", "amx_bf16"})


def processors() -> int:
    """Processors this process may use: taskset's limit counts, and a container's share of time, rounded up."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, processor_share() or allowed))


@lru_cache(maxsize=1)
def processor_share() -> int | None:
    """How many processors' time a container may take, rounded up; None where there is no limit."""
    shares = []
    for folder in _groups("cpu"):
        with suppress(OSError, ValueError):
            if (folder / "cpu.max").is_file():
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
            if quota not in ("max", "-1"):
                shares.append(max(1, math.ceil(int(quota) / int(period))))
    return min(shares, default=None)


def cores() -> int | None:
    """Cores of the machine, each of which may be several processors; None where the system does not say."""
    found = SYS.glob("devices/system/cpu/cpu[0-9]*/topology/thread_siblings_list")
    return len({path.read_text() for path in found}) or None


def memory() -> Memory:
    """The machine's memory and the container's limit."""
    total, available = (_told("meminfo", name) for name in ("MemTotal", "MemAvailable"))
    limits = []
    for folder in _groups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with suppress(OSError, ValueError):
                limits.append(int((folder / name).read_text()))
    whole = _kilobytes(total)
    if whole is None and "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = min((one for one in limits if whole is None or one < whole), default=None)  # "none" may be a huge number
    return Memory(whole, _kilobytes(available), limit)


def choose(name: str = "auto") -> torch.device:
    """The torch device for "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1" or "mps"."""
    import torch

    kind = name.partition(":")[0]
    if kind not in ("auto", "cpu", "cuda", "mps"):
        raise unknown("device", name, ["auto", "cpu", "cuda", "mps"])
    if kind == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if kind == "cuda" and not torch.cuda.is_available():
        raise CartoucheError(f"device={name} but torch sees no GPU; use device=cpu or device=auto")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise CartoucheError(f"device={name} but torch has no mps here; use device=cpu or device=auto")
    return torch.device(name)


def gpu() -> bool:
    """Whether torch is here and has a GPU. torch is only asked where a driver says that there may be one."""
    import importlib.util

    drivers = (PROC / "driver" / "nvidia" / "version", SYS / "module" / "amdgpu")
    if sys.platform != "darwin" and not any(path.exists() for path in drivers):
        return False
    return importlib.util.find_spec("torch") is not None and choose("auto").type != "cpu"


def has_bf16(device: torch.device) -> bool:
    """True where bf16 is native on `device`, and so faster than fp32."""
    import torch

    if device.type == "cpu":
        return processor_has_bf16()
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


@contextmanager
def exact_matrices(device: torch.device) -> Iterator[None]:
    """While inside, torch multiplies float32 matrices on a CPU by oneDNN, where that is as exact as its usual library.

    On some processors that library is slow; the switch to the other one is called "bf16", and elsewhere it means that.
    """
    import torch

    if device.type != "cpu" or not _onednn_is_exact():
        yield
        return
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before, matmul.fp32_precision = matmul.fp32_precision, "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


@lru_cache(maxsize=1)
def _onednn_is_exact() -> bool:
    """Whether a product of float32 matrices through oneDNN keeps its precision; False where there is no such switch."""
    import torch

    matmul: Any = getattr(torch.backends.mkldnn, "matmul", None)
    if not hasattr(matmul, "fp32_precision") or not processor_has_bf16():
        return False
    a, b = torch.randn(2, 512, 512, generator=torch.Generator().manual_seed(0))
    before, matmul.fp32_precision = matmul.fp32_precision, "bf16"
    try:
        found = a @ b
    finally:
        matmul.fp32_precision = before
    wanted = a.double() @ b.double()
    return float((found - wanted).norm() / wanted.norm()) < EXACT


def choose_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """ "auto" becomes bf16 where the device has it and fp32 elsewhere; the others stay as asked."""
    if precision not in ("auto", "fp32", "bf16"):
        raise unknown("precision", precision, ["auto", "fp32", "bf16"])
    if precision == "auto":
        return "bf16" if has_bf16(device) else "fp32"
    return precision


def use_threads(count: int = 0) -> int:
    """Let torch compute with `count` threads; 0 asks OMP_NUM_THREADS, else every processor. Returns the number."""
    import torch

    if count < 0:
        raise CartoucheError(f"threads={count}; wanted a number of threads, or 0 for every processor")
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # a list is of nested levels
    count = count or (int(asked) if asked.isdecimal() else 0) or processors()
    torch.set_num_threads(count)
    return count


def _told(file: str, name: str) -> str | None:
    """What a file of /proc says after `name:`, the first time."""
    try:
        text = (PROC / file).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(rf"^{re.escape(name)}[ \t]*:[ \t]*(.*)$", text, re.MULTILINE)
    return found[1].strip() if found else None


def _kilobytes(text: str | None) -> int | None:
    return int(text.split()[0]) * 1024 if text else None


def _groups(controller: str) -> Iterator[Path]:
    """The folders of the control groups that this process is in, inner ones first: in one tree, or one of the kind."""
    try:
        lines = (PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, kinds, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" or controller in kinds.split(","):
            root = SYS / "fs" / "cgroup" / ("" if number == "0" else controller)
            folder = root / path.strip("/")
            yield from (one for one in (folder, *folder.parents) if one == root or root in one.parents)
