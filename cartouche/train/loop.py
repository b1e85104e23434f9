"""The training loop: an iterator of progress. Bars, journals, plots and sample sheets are its consumers.

    for progress in fit(settings, net, task, source, out):
        print(progress.step, progress.loss)

Everything random in step k comes from a generator seeded with (seed, k), and sample i is a pure function of i. So the
state of a training is its weights, their average, the optimizer's memory and two integers, and a resumed training
repeats the uninterrupted one bit for bit.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Generator, Tensor, nn

from cartouche import device as devices
from cartouche.config import CartoucheError, plain
from cartouche.train import checkpoint, optim
from cartouche.train.stream import Batch, Source, batches
from cartouche.weights import safetensors

Task = Callable[[Any, dict[str, Any], Generator], tuple[Tensor, Mapping[str, Any]]]


@dataclass(frozen=True)
class TrainSettings:
    """How to train; what is trained, on what and for which loss stand apart.

    steps, warmup, cooldown, save_every, log_every, sample_every: in optimizer steps (save_every=0: only at the end).
    floor: the last learning rate as a share of the peak. ema: the most decay of the weights' moving average.
    clip: the longest gradient norm let through, 0 for any. threads, limit_minutes: 0 for no limit. keep: checkpoints
    kept, 0 for all. bad_rate: the share of unreadable samples that is borne. init_from: weights to start from, a
    safetensors file, a checkpoint, or a run's folder (its newest average).
    """

    steps: int = 1000
    batch: int = 32
    learning_rate: float = 1e-3
    warmup: int = 100
    decay: Literal["cosine", "constant"] = "cosine"
    floor: float = 0.02
    cooldown: int = 0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    optimizer: Literal["adamw", "muon"] = "adamw"
    clip: float = 1.0
    ema: float = 0.999
    precision: devices.Precision = "auto"
    channels_last: bool = False
    compile: bool = False
    device: str = "auto"
    threads: int = 0
    workers: int = 1
    prefetch: int = 4
    seed: int = 0
    save_every: int = 1000
    keep: int = 2
    log_every: int = 20
    sample_every: int = 0
    limit_minutes: float = 0.0
    bad_rate: float = 0.01
    init_from: str = ""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "prefetch"):
            if getattr(self, name) < 1:
                raise CartoucheError(f"{name}={getattr(self, name)}; wanted at least 1")
        for name in ("workers", "save_every", "keep", "warmup", "cooldown", "limit_minutes", "threads", "clip"):
            if getattr(self, name) < 0:
                raise CartoucheError(f"{name}={getattr(self, name)}; wanted 0 or more")
        if not self.weight_decay >= 0:
            raise CartoucheError(f"weight_decay={self.weight_decay}; wanted 0 or more")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise CartoucheError(f"betas={self.betas}; wanted two decays of at least 0 and below 1, as in 0.9,0.99")
        if not 0 <= self.seed < 2**32:
            raise CartoucheError(f"seed={self.seed}; wanted 0 to {2**32 - 1}")
        if not 0 <= self.ema < 1:
            raise CartoucheError(f"ema={self.ema}; wanted a decay of at least 0 and below 1, as in 0.999")
        if not self.learning_rate > 0:
            raise CartoucheError(f"learning_rate={self.learning_rate}; wanted more than 0")


@dataclass
class Progress:
    """One finished step. `step` counts from 1; `saved` is the checkpoint written just after it, if one was.

    `net` and `average` are the live weights and their moving average: look, do not change.
    """

    step: int
    steps: int
    loss: float
    notes: dict[str, float]
    rate: float
    norm: float
    images_per_second: float
    seconds: float
    left: float
    skipped: int
    net: nn.Module
    average: nn.Module
    saved: Path | None = None
    stopped: str = ""


@dataclass
class State:
    """What a checkpoint holds."""

    net: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    samples: int = 0
    skipped: int = 0
    saved: Path | None = None
    loss: float = math.nan


@dataclass
class Clock:
    """Images a second over the recent steps, and the time left."""

    started: float = field(default_factory=time.monotonic)
    per_step: float = 0.0
    last: float = field(default_factory=time.monotonic)

    def tick(self) -> None:
        now = time.monotonic()
        took, self.last = now - self.last, now
        self.per_step = took if self.per_step == 0 else 0.95 * self.per_step + 0.05 * took

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started


def fit(
    settings: TrainSettings,
    net: nn.Module,
    task: Task,
    source: Source,
    out: Path,
    stop: Callable[[], bool] = lambda: False,
    note: Callable[[Progress], object] = lambda progress: None,
) -> Iterator[Progress]:
    """Train `net`, yielding after every step; resumes by itself from the newest whole checkpoint in `out`.

    `stop` is asked after every step: when it says so the state is saved and the iteration ends. `note` is told of every
    step before its checkpoint is written, so that what it keeps is never behind one, whenever the power fails.
    Raises CartoucheError for a loss or gradient that is not finite (nothing is saved then), for too many bad samples,
    and for a full disk.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        checkpoint.clean(out)
        target = devices.choose(settings.device)
        devices.use_threads(settings.threads)
        state = prepare(settings, net, out, target)
        if settings.compile:
            state.net.compile()
        region = autocast(settings, target)
        count = settings.steps - state.step
        pinned = target.type == "cuda"
        stream = batches(source, state.samples, settings.batch, count, settings.workers, settings.prefetch, pinned)
        clock = Clock()
        with closing(stream):
            for batch in stream:
                progress = one_step(settings, state, task, batch, region, target, clock)
                progress.stopped = why_stop(settings, state, stop, clock)
                due = progress.stopped or (settings.save_every and state.step % settings.save_every == 0)
                progress.saved = out / checkpoint.name_of(state.step) if due else None
                note(progress)
                if due:
                    save(settings, state, out)
                yield progress
                if progress.stopped:
                    return
                clock.last = time.monotonic()  # what a consumer does is not the training's speed


def one_step(
    settings: TrainSettings,
    state: State,
    task: Task,
    batch: Batch,
    region: Callable[[], AbstractContextManager[Any]],
    target: torch.device,
    clock: Clock,
) -> Progress:
    """Forward, backward, check, move the weights, move their average."""
    count_bad(settings, state, batch)
    rate = optim.learning_rate(settings, state.step)
    optim.set_rate(state.optimizer, rate)
    state.optimizer.zero_grad(set_to_none=True)
    with memory_in_words(state, batch):
        with region():
            loss, notes = task(state.net, to_device(batch.values, target), generator(settings.seed, state.step, target))
        worth = float(loss.detach())
        check_finite(state, batch, "loss", worth)
        loss.backward()
    norm = optim.clip_gradient(state.net, settings.clip)
    check_finite(state, batch, "gradient norm", norm)
    state.optimizer.step()
    optim.update_average(state.average, state.net, optim.ema_decay(settings.ema, state.step))
    state.step, state.samples, state.loss = state.step + 1, state.samples + batch.size, worth
    clock.tick()
    return Progress(
        step=state.step,
        steps=settings.steps,
        loss=worth,
        notes={name: float(value.detach() if isinstance(value, Tensor) else value) for name, value in notes.items()},
        rate=rate,
        norm=norm,
        images_per_second=batch.size / max(clock.per_step, 1e-9),
        seconds=clock.elapsed,
        left=clock.per_step * (settings.steps - state.step),
        skipped=state.skipped,
        net=state.net,
        average=state.average,
    )


def prepare(settings: TrainSettings, net: nn.Module, out: Path, target: torch.device) -> State:
    """The net on its device, with the state of the newest checkpoint, or of `init_from`, or as it came."""
    found = checkpoint.newest(out)
    if found is None and settings.init_from:
        load_weights(net, Path(settings.init_from))
    net = net.to(target).train()
    if settings.channels_last:
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(net).eval().requires_grad_(False)
    kind = optim.Muon if settings.optimizer == "muon" else optim.adamw
    optimizer = kind(net, settings.learning_rate, settings.betas, settings.weight_decay)
    state = State(net, average, optimizer)
    if found is not None:
        put(net, found.tensors("net"), str(found.folder))
        put(average, found.tensors("ema"), str(found.folder))
        optim.restore_optimizer(net, optimizer, found.tensors("optimizer"))
        state.step, state.samples = found.step, int(found.state["samples"])
        state.skipped, state.saved = int(found.state["skipped"]), found.folder
    return state


def save(settings: TrainSettings, state: State, out: Path) -> Path:
    """Write a checkpoint of `state`; refuses weights that are not finite."""
    weights = state.net.state_dict()
    for name, value in weights.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CartoucheError(f"{name} is not finite after step {state.step}; not saved; {last_good(state)}")
    tensors = {
        "net": weights,
        "ema": state.average.state_dict(),
        "optimizer": optim.optimizer_tensors(state.net, state.optimizer),
    }
    about = {
        "step": state.step,
        "samples": state.samples,
        "skipped": state.skipped,
        "loss": state.loss,
        "settings": plain(settings),
        "torch": torch.__version__,
    }
    state.saved = checkpoint.save(out, tensors, about, settings.keep)
    return state.saved


def load_weights(net: nn.Module, path: Path) -> None:
    """Start from a safetensors file, a checkpoint (its average), a run's folder (its newest), or a net's folder."""
    if path.is_dir():
        if (found := checkpoint.newest(path)) is not None:
            return put(net, found.tensors("ema"), str(found.folder))
        names = ("ema.safetensors", "diffusion_pytorch_model.safetensors", "model.safetensors")
        path = next((path / name for name in names if (path / name).is_file()), path / names[0])
    put(net, safetensors.load(path), str(path))


@torch.no_grad()
def put(net: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Copy tensors into the net by name, all of them and no others; CartoucheError lists what does not fit."""
    mine = net.state_dict()
    missing, extra = sorted(mine.keys() - tensors.keys()), sorted(tensors.keys() - mine.keys())
    wrong = [name for name in mine.keys() & tensors.keys() if mine[name].shape != tensors[name].shape]
    if missing or extra or wrong:
        raise CartoucheError(
            f"the weights of {where} do not fit the net: missing {missing[:5]}, left over {extra[:5]}, "
            f"of another shape {sorted(wrong)[:5]}; is it the same net and the same settings?"
        )
    for name, value in mine.items():
        value.copy_(tensors[name])


def generator(seed: int, step: int, target: torch.device) -> Generator:
    """The randomness of one step, a function of (seed, step) alone; dropout's global generator is set with it."""
    key = int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)
    torch.manual_seed(key)
    return Generator(device=target).manual_seed(key)


def autocast(settings: TrainSettings, target: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """The region the forward pass runs in: bf16 where asked or worth it."""
    if devices.choose_precision(settings.precision, target) == "fp32":
        return nullcontext
    return lambda: torch.autocast(target.type, dtype=torch.bfloat16)


def to_device(values: dict[str, Any], target: torch.device) -> dict[str, Any]:
    """Tensors go to the device; lists stay."""
    return {k: v.to(target, non_blocking=True) if isinstance(v, Tensor) else v for k, v in values.items()}


def count_bad(settings: TrainSettings, state: State, batch: Batch) -> None:
    """Bad samples are counted; more than `bad_rate` of all (and more than eight) end the training."""
    if batch.problem:
        raise CartoucheError(f"{batch.problem}; {last_good(state)}")
    state.skipped += len(batch.skipped)
    seen = state.samples + batch.size
    if state.skipped > 8 + settings.bad_rate * seen:
        raise CartoucheError(
            f"{state.skipped} of {seen} samples could not be read, more than bad_rate={settings.bad_rate} allows "
            f"(the last: sample {batch.skipped[-1] if batch.skipped else '?'}); {last_good(state)}"
        )


def check_finite(state: State, batch: Batch, what: str, value: float) -> None:
    """Stop before a loss or gradient that is not a number reaches the weights."""
    if not math.isfinite(value):
        raise CartoucheError(
            f"the {what} of step {state.step + 1} is {value} (samples {batch.first} to {batch.first + batch.size - 1});"
            f" stopped, nothing saved; {last_good(state)}; try a lower learning_rate or precision=fp32"
        )


@contextmanager
def memory_in_words(state: State, batch: Batch) -> Iterator[None]:
    """Say which step ran out of memory and what to do, instead of a trace."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        short = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
        if not short:
            raise
        raise CartoucheError(
            f"out of memory in step {state.step + 1} (samples {batch.first} to {batch.first + batch.size - 1}); "
            f"{last_good(state)}; try a smaller batch or precision=bf16"
        ) from error


def last_good(state: State) -> str:
    """Where to go back to."""
    return f"the last good checkpoint is {state.saved}" if state.saved else "there is no checkpoint yet"


def why_stop(settings: TrainSettings, state: State, stop: Callable[[], bool], clock: Clock) -> str:
    """ "done", "asked", "time", or "" to go on."""
    if state.step >= settings.steps:
        return "done"
    if stop():
        return "asked"
    return "time" if 0 < settings.limit_minutes * 60 <= clock.elapsed else ""


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """One training per folder; the lock goes with the process, however it dies, and workers do not inherit it."""
    with open(out / ".lock", "w", encoding="utf-8") as file:
        try:
            import fcntl
        except ImportError:  # Windows has none; there the user must see to it
            yield
            return
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CartoucheError(f"another training is writing in {out}; wait for it or choose another out=") from error
        yield
