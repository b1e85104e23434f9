"""What this machine has: the device to compute on, the threads to use, and whether bf16 is worth using.

torch is imported only inside the functions that need it, so asking about the processor is free.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cartouche.config import CartoucheError, unknown

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "fp32", "bf16"]


@lru_cache(maxsize=1)
def processor_flags() -> frozenset[str]:
    """The instruction sets that the first processor reports; empty where the system does not say."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def processor_has_bf16() -> bool:
    """True where the processor multiplies bf16 natively (elsewhere it is emulated and slower than fp32)."""
    return not processor_flags().isdisjoint({"avx512_bf16", "amx_bf16"})


def processors() -> int:
    """Processors this process may run on (a container's or taskset's limit counts)."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return max(1, os.cpu_count() or 1)


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


def has_bf16(device: torch.device) -> bool:
    """True where bf16 is native on `device`, and so faster than fp32."""
    import torch

    if device.type == "cpu":
        return processor_has_bf16()
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


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
    count = count or int(os.environ.get("OMP_NUM_THREADS", "0") or 0) or processors()
    torch.set_num_threads(count)
    return count
