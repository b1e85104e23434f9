"""From a source of samples to batches: sample i of a training is a pure function of i, whoever computes it.

So a resumed training starts at the very next sample, and the number of worker processes changes nothing but speed.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cartouche.config import CartoucheError
from cartouche.data import shuffle

TRIES = 100  # bad samples in a row before a source is called broken


class Source(Protocol):
    """The training stream: `source[i]` is its i-th sample, always the same for the same i.

    A source may also have `gather(indices) -> dict of stacked arrays`, which is used for whole batches where present.
    It raises CartoucheError for a sample that cannot be read; the next good one then stands in.
    """

    def __getitem__(self, index: int) -> dict[str, Any]: ...


@dataclass
class Batch:
    """The samples `first` .. `first + size - 1`: stacked `values`, the `skipped` (bad) ones, and why, if it failed."""

    first: int
    size: int
    values: dict[str, Any]
    skipped: list[int] = field(default_factory=list)
    problem: str = ""


@dataclass(frozen=True)
class Shuffled:
    """An endless stream over a finite source: every epoch is another permutation, found without storing any."""

    source: Any
    seed: int = 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample: dict[str, Any] = self.source[self.place(index)]
        return sample

    def place(self, index: int) -> int:
        """Where in the source the index-th sample of the stream lies."""
        epoch, position = divmod(index, len(self.source))
        return shuffle.place(position, len(self.source), self.seed, epoch)

    @property
    def gather(self) -> Callable[[Sequence[int]], dict[str, Any]] | None:
        """The source's own way to fetch a whole batch, if it has one."""
        gather = getattr(self.source, "gather", None)
        if gather is None:
            return None
        return lambda indices: gather([self.place(index) for index in indices])


def batches(
    source: Source, first: int, batch: int, count: int, workers: int = 0, prefetch: int = 4, pinned: bool = False
) -> Generator[Batch, None, None]:
    """`count` batches of `batch` samples from sample `first` on, in order, whatever the number of workers.

    Closing the generator ends the workers.
    """
    check_length(source, first + batch * count)
    starts = range(first, first + batch * count, batch)
    reader = _Reader(source, batch)
    if workers == 0:
        for start in starts:
            yield reader[start]
        return
    yield from DataLoader(
        reader,
        batch_size=None,
        sampler=starts,
        num_workers=workers,
        prefetch_factor=prefetch,
        persistent_workers=True,  # so that torch ends them at exit, should nobody close this generator
        worker_init_fn=_leave_signals_to_parent,
        pin_memory=pinned,
        collate_fn=_as_is,
    )


def check_length(source: Source, wanted: int) -> None:
    """A finite source must hold every sample that is asked of it; CartoucheError says how to make it endless."""
    held = getattr(source, "__len__", None)
    if held is not None and held() < wanted:
        raise CartoucheError(
            f"the source holds {held()} samples and this training reads {wanted}; "
            "make it endless with cartouche.train.stream.Shuffled(source, seed)"
        )


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack the arrays, tensors and numbers of the samples; lists of anything else stay lists."""
    return {name: stacked([sample[name] for sample in samples]) for name in samples[0]}


def stacked(values: list[Any]) -> Any:
    """(B, ...) tensor of arrays, tensors or numbers; the list itself otherwise."""
    first = values[0]
    if isinstance(first, Tensor):
        return torch.stack(values)
    if isinstance(first, np.ndarray):
        return torch.from_numpy(np.stack(values))
    if isinstance(first, (bool, int, float, np.generic)):
        return torch.from_numpy(np.asarray(values, dtype=np.float32 if isinstance(first, float) else None))
    return values


class _Reader(Dataset[Batch]):
    """Reads one whole batch at a time, so that a worker hands over few large objects."""

    def __init__(self, source: Source, batch: int) -> None:
        self.source, self.batch = source, batch

    def __getitem__(self, first: int) -> Batch:
        indices = list(range(first, first + self.batch))
        try:
            gather = getattr(self.source, "gather", None)
            if gather is not None:
                values = gather(indices)
                tensors = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in values.items()}
                return Batch(first, self.batch, tensors)
            skipped: list[int] = []
            samples = [self._good(index, skipped) for index in indices]
            return Batch(first, self.batch, collate(samples), skipped)
        except CartoucheError as error:
            return Batch(first, self.batch, {}, problem=str(error))

    def _good(self, index: int, skipped: list[int]) -> dict[str, Any]:
        """Sample `index`, or the next good one after it; what was passed over is noted in `skipped`."""
        for after in range(TRIES):
            try:
                sample = self.source[index + after]
            except CartoucheError as error:
                problem = error
                if after == 0:
                    skipped.append(index)
            else:
                return sample
        raise CartoucheError(f"samples {index} to {index + TRIES - 1} are all bad; the last says: {problem}")


def _leave_signals_to_parent(_: int) -> None:
    """Ctrl-C and SIGTERM may reach the whole process group; only the training process answers, by saving.

    A worker that was told to end, and whose parent has not ended it within a minute, ends by itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(60))


def _as_is(batch: Any) -> Any:
    return batch
