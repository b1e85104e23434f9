"""Training: the loop repeats itself bit for bit, stops when it must, and the losses are what their equations say."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cartouche.config import CartoucheError
from cartouche.train import checkpoint, journal, run, sheets, stream
from cartouche.train.loop import TrainSettings, fit

HERE = Path(__file__).resolve().parent
SETTINGS = TrainSettings(
    steps=12, batch=4, warmup=3, ema=0.9, precision="fp32", workers=0, threads=1, save_every=5, log_every=1,
    device="cpu",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Sample i is drawn from the generator of seed i; the samples named in `bad` cannot be read."""

    bad: tuple[int, ...] = ()

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index in self.bad:
            raise CartoucheError(f"sample {index} is broken")
        x = np.random.default_rng(index).standard_normal(5).astype(np.float32)
        return {"x": x, "index": index, "name": f"sample {index}"}


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 5))


def task(model: Any, batch: dict[str, Any], generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
    noise = torch.randn(batch["x"].shape, generator=generator)
    loss = (model(batch["x"] + noise) - batch["x"]).square().mean()
    return loss, {f"at{place}": float(index) for place, index in enumerate(batch["index"])}


def losses(out: Path, source: Any = None, **changes: Any) -> list[tuple[str, dict[str, float]]]:
    settings = dataclasses.replace(SETTINGS, **changes)
    return [(one.loss.hex(), one.notes) for one in fit(settings, net(), task, source or Numbers(), out)]


def sums(out: Path) -> dict[str, str]:
    found = checkpoint.newest(out)
    assert found is not None
    return dict(found.state["sha256"])


# --- the loop repeats itself


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What came of a training killed twelve times, see killed_training.py; in memory where there is such a folder."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory)) if os.access(memory, os.W_OK) else tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-W", "error", str(HERE / "killed_training.py"), str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr
    yield dict(json.loads((folder / "report.json").read_text()))
    shutil.rmtree(folder)


def test_a_training_killed_twelve_times_ends_as_if_it_never_was(report: dict[str, Any]):
    assert report["deaths"] == [signal.SIGKILL] * 12
    assert len(set(report["resumed"])) >= 4  # the kills fell in different places
    assert report["exits"] == [0, 0] and report["left"] == []
    assert len(report["straight"]["steps"]) == 400
    # losses, rates, gradient norms, the order of samples, and the final files: bit for bit
    assert report["killed"]["steps"] == report["straight"]["steps"]
    assert report["killed"]["sums"] == report["straight"]["sums"]


def test_a_step_is_noted_before_its_checkpoint_is_there(tmp_path: Path):
    noted = []

    def note(progress: Any) -> None:
        noted.append((progress.step, bool(progress.saved), progress.saved is not None and progress.saved.exists()))

    seen = [(one.step, one.saved) for one in fit(SETTINGS, net(), task, Numbers(), tmp_path, note=note)]
    assert [step for step, _, _ in noted] == [step for step, _ in seen]
    assert any(due for _, due, _ in noted) and not any(there for _, _, there in noted)
    assert seen[-1][1] is not None and seen[-1][1].exists()


def test_a_second_signal_leaves_at_once(report: dict[str, Any]):
    assert report["second"] == 128 + signal.SIGINT


def test_two_trainings_never_share_a_folder(report: dict[str, Any]):
    assert report["two"] == 7


def test_the_number_of_workers_changes_nothing(tmp_path: Path):
    alone = losses(tmp_path / "alone")
    first = losses(tmp_path / "mixed", workers=2, limit_minutes=1e-9)
    then = losses(tmp_path / "mixed", workers=1)
    assert len(first) == 1
    assert first + then == alone
    assert sums(tmp_path / "alone") == sums(tmp_path / "mixed")


def test_samples_come_in_order_once_each(tmp_path: Path):
    seen = [int(notes[f"at{place}"]) for _, notes in losses(tmp_path) for place in range(4)]
    assert seen == list(range(48))


def test_a_finished_training_goes_on_only_when_given_more_steps(tmp_path: Path):
    assert len(losses(tmp_path)) == 12
    assert losses(tmp_path) == []
    assert len(losses(tmp_path, steps=14)) == 2


def test_a_training_stopped_and_resumed_is_the_same_with_muon(tmp_path: Path):
    same: dict[str, Any] = {"optimizer": "muon", "decay": "constant"}
    whole = losses(tmp_path / "whole", **same)
    assert whole == losses(tmp_path / "parts", **same, steps=7) + losses(tmp_path / "parts", **same)
    assert sums(tmp_path / "whole") == sums(tmp_path / "parts")
    assert whole != losses(tmp_path / "other", decay="constant")


@pytest.mark.parametrize("kinds", [("muon", "adamw"), ("adamw", "muon")])
def test_a_training_goes_on_with_another_optimizer(tmp_path: Path, kinds: tuple[str, str]):
    losses(tmp_path / "out", steps=5, optimizer=kinds[0])
    assert len(losses(tmp_path / "out", optimizer=kinds[1])) == 7
    found = checkpoint.newest(tmp_path / "out")
    assert found is not None
    alone = losses(tmp_path / "alone", optimizer=kinds[1])
    assert len(alone) == 12
    other = checkpoint.newest(tmp_path / "alone")
    assert other is not None and found.tensors("optimizer").keys() == other.tensors("optimizer").keys()


def test_a_damaged_checkpoint_is_not_started_from(tmp_path: Path):
    losses(tmp_path / "first", steps=12, save_every=6)
    newest = checkpoint.folders(tmp_path / "first")[-1] / "ema.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"\x7f")
    with pytest.warns(checkpoint.DamagedWarning, match="going back to step-00000006"):
        losses(tmp_path / "second", steps=1, init_from=str(tmp_path / "first"))


def test_another_seed_is_another_training(tmp_path: Path):
    assert losses(tmp_path / "a") != losses(tmp_path / "b", seed=1)


def test_a_training_starts_from_given_weights_and_refuses_those_of_another_net(tmp_path: Path):
    losses(tmp_path / "first", steps=30, learning_rate=0.02)
    again = losses(tmp_path / "second", steps=1, init_from=str(tmp_path / "first"))
    assert float.fromhex(again[0][0]) != float.fromhex(losses(tmp_path / "third", steps=1)[0][0])
    other = nn.Linear(5, 5)
    settings = dataclasses.replace(SETTINGS, init_from=str(tmp_path / "first"))
    with pytest.raises(CartoucheError, match=r"do not fit the net: missing \['bias', 'weight'\]"):
        list(fit(settings, other, task, Numbers(), tmp_path / "fourth"))


# --- it stops when it must


def failing_at(step: int, how: str) -> Any:
    def broken(model: Any, batch: dict[str, Any], generator: torch.Generator) -> Any:
        loss, notes = task(model, batch, generator)
        if int(batch["index"][0]) == 4 * (step - 1):
            # the root has an endless slope at 0: the loss is finite and its gradient is not
            loss = loss * float("nan") if how == "loss" else loss + (0 * next(model.parameters()).sum()).sqrt()
        return loss, notes

    return broken


@pytest.mark.parametrize(("how", "words"), [("loss", "loss of step 8"), ("gradient", "gradient norm of step 8")])
def test_a_number_that_is_not_finite_stops_with_step_samples_and_the_last_good_checkpoint(
    tmp_path: Path, how: str, words: str
):
    with pytest.raises(CartoucheError, match=rf"{words} .*samples 28 to 31.*step-00000005"):
        list(fit(SETTINGS, net(), failing_at(8, how), Numbers(), tmp_path))
    found = checkpoint.newest(tmp_path)
    assert found is not None and found.step == 5
    assert all(bool(one.isfinite().all()) for one in found.tensors("net").values())


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path):
    model = nn.Linear(5, 5)
    model.register_buffer("unused", torch.zeros(2))

    def spoiling(*arguments: Any) -> Any:
        model.unused.fill_(float("inf"))
        return task(*arguments)

    with pytest.raises(CartoucheError, match=r"unused is not finite after step 5"):
        list(fit(SETTINGS, model, spoiling, Numbers(), tmp_path))
    assert checkpoint.newest(tmp_path) is None


def test_running_out_of_memory_is_told_in_words(tmp_path: Path):
    def greedy(*_: Any) -> Any:
        raise torch.OutOfMemoryError("too much")

    with pytest.raises(CartoucheError, match="out of memory in step 1 .*smaller batch"):
        list(fit(SETTINGS, net(), greedy, Numbers(), tmp_path))


def recipe(job: Any = task, **changes: Any) -> run.TrainRecipe:
    return run.TrainRecipe("tiny", net, lambda: job, Numbers, dataclasses.replace(SETTINGS, **changes))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_saves_after_the_step_and_leaves(tmp_path: Path, number: int, code: int):
    def interrupted(model: Any, batch: dict[str, Any], generator: torch.Generator) -> Any:
        if int(batch["index"][0]) == 4 * 6:
            os.kill(os.getpid(), number)
        return task(model, batch, generator)

    before = signal.getsignal(number)
    assert run.train(recipe(interrupted), [f"out={tmp_path}"]) == code
    found = checkpoint.newest(tmp_path)
    assert found is not None and found.step == 7
    assert signal.getsignal(number) == before


def test_a_time_limit_saves_and_leaves(tmp_path: Path):
    steps = list(fit(dataclasses.replace(SETTINGS, limit_minutes=1e-9), net(), task, Numbers(), tmp_path))
    assert [one.stopped for one in steps] == ["time"] and steps[0].saved == tmp_path / "step-00000001"


@pytest.mark.parametrize(
    "name", ["steps", "batch", "ema", "learning_rate", "workers", "prefetch", "weight_decay", "seed"]
)
def test_settings_that_cannot_be_are_refused(name: str):
    with pytest.raises(CartoucheError, match=f"{name}=-1"):
        dataclasses.replace(SETTINGS, **{name: -1})
    with pytest.raises(CartoucheError, match=r"betas=\(0\.9, 1\.0\)"):
        dataclasses.replace(SETTINGS, betas=(0.9, 1.0))


# --- the data


def test_a_bad_sample_is_skipped_and_counted_and_the_others_keep_their_place(tmp_path: Path):
    steps = list(fit(SETTINGS, net(), task, Numbers(bad=(5, 6)), tmp_path))
    seen = [int(one.notes[f"at{place}"]) for one in steps for place in range(4)]
    assert seen == [*range(5), 7, 7, *range(7, 48)]
    assert steps[-1].skipped == 2
    assert checkpoint.verify(tmp_path / "step-00000012").state["skipped"] == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_samples_end_the_training(tmp_path: Path, workers: int):
    source, settings = Numbers(bad=tuple(range(20, 40, 2))), dataclasses.replace(SETTINGS, workers=workers)
    with pytest.raises(CartoucheError, match=r"10 of 40 samples could not be read.*step-00000005"):
        list(fit(settings, net(), task, source, tmp_path))
    with pytest.raises(CartoucheError, match="samples 0 to 99 are all bad; the last says: sample 99 is broken"):
        list(fit(settings, net(), task, Numbers(bad=tuple(range(200))), tmp_path / "b"))


def test_a_finite_source_that_is_too_short_is_refused_with_the_cure(tmp_path: Path):
    with pytest.raises(CartoucheError, match=r"holds 3 samples and this training reads 48.*Shuffled"):
        losses(tmp_path, source=[{"x": 1}] * 3)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 64, 1000])
def test_every_epoch_of_a_shuffled_source_holds_every_sample_once(count: int):
    shuffled = stream.Shuffled(range(count), seed=3)
    epochs = [[shuffled[epoch * count + place] for place in range(count)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    if count >= 64:
        assert epochs[0] != epochs[1] and epochs[0] != list(range(count))


def test_a_source_that_gathers_is_asked_for_whole_batches():
    class Whole:
        def __getitem__(self, index: int) -> dict[str, Any]:
            raise AssertionError("asked one by one")

        def __len__(self) -> int:
            return 6

        def gather(self, indices: list[int]) -> dict[str, Any]:
            return {"i": np.array(indices)}

    got = [one.values["i"].tolist() for one in stream.batches(Whole(), 0, 2, 3)]
    assert got == [[0, 1], [2, 3], [4, 5]]
    mixed = [one.values["i"].tolist() for one in stream.batches(stream.Shuffled(Whole()), 0, 2, 3)]
    assert sorted(one for pair in mixed for one in pair) == [0, 1, 2, 3, 4, 5]
    assert stream.Shuffled([1, 2]).gather is None


def test_collating_stacks_numbers_and_keeps_words():
    batch = stream.collate([{"a": np.ones(2), "b": 3, "c": 0.5, "d": "x", "e": torch.zeros(1)} for _ in range(2)])
    assert batch["a"].shape == (2, 2) and batch["b"].tolist() == [3, 3] and batch["d"] == ["x", "x"]
    assert batch["c"].dtype == torch.float32 and batch["e"].shape == (2, 1)


# --- recipes, journal, screen, sheets


def test_a_run_leaves_checkpoints_journal_plot_samples_and_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def sample(average: nn.Module, path: Path, step: int) -> None:
        assert not average.training
        sheets.save_png(sheets.sheet(torch.zeros(2, 3, 8, 8)), path)

    def export(average: nn.Module, folder: Path) -> None:
        folder.mkdir()
        assert torch.equal(average[0].weight, checkpoint.newest(tmp_path).tensors("ema")["0.weight"])  # type: ignore

    whole = dataclasses.replace(recipe(sample_every=6), sample=sample, export=export)
    assert run.train(whole, [f"out={tmp_path}", "learning_rate=0.01", "settings.steps=11"]) == 0
    names = {one.name for one in tmp_path.iterdir() if not one.name.startswith(".")}
    assert names == {"step-00000010", "step-00000011", "journal.jsonl", "loss.png", "samples", "export"}
    assert sorted(one.name for one in (tmp_path / "samples").iterdir()) == ["step-00000006.png", "step-00000011.png"]
    lines = list(journal.read(tmp_path / "journal.jsonl"))
    assert [one["step"] for one in lines] == list(range(1, 12))
    assert all(float.fromhex(one["hex"]) == one["loss"] for one in lines)
    words = capsys.readouterr().err
    assert "83 weights" not in words and "82 weights" in words and "images/s" in words and "exported to" in words


RECIPE = """
from __future__ import annotations
from dataclasses import dataclass
from torch import nn
from cartouche.train.loop import TrainSettings

@dataclass(frozen=True)
class Mine:
    name: str = "mine"
    width: int = 3
    settings: TrainSettings = TrainSettings(steps=2, batch=2, workers=0, threads=1, device="cpu")
    def build_net(self): return nn.Linear(1, self.width)
    def task(self): return lambda net, batch, generator: (net(batch["x"]).square().mean(), {})
    def source(self): return [{"x": __import__("numpy").ones(1, "float32")}] * 4

def settings():
    return Mine()
"""


def test_a_recipe_file_is_run_with_its_own_settings_changed(tmp_path: Path):
    (tmp_path / "mine.py").write_text(RECIPE)
    assert run.train(tmp_path / "mine.py", [f"out={tmp_path / 'out'}", "width=9", "save_every=1"]) == 0
    found = checkpoint.newest(tmp_path / "out")
    assert found is not None and found.tensors("net")["weight"].shape == (9, 1)


def test_settings_may_stand_in_a_file_and_a_name_of_its_own_is_a_folder_of_its_own(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(RECIPE)
    Path("small.toml").write_text('name = "other"\nwidth = 9\n[settings]\nbetas = [0.8, 0.9]\ncompile = false\n')
    assert run.train("mine.py", ["small.toml", "steps=1"]) == 0
    found = checkpoint.newest(Path("runs") / "other")
    assert found is not None and found.step == 1 and found.tensors("net")["weight"].shape == (9, 1)
    assert found.state["settings"]["betas"] == [0.8, 0.9]
    with pytest.raises(CartoucheError, match="cannot read settings from gone.toml"):
        run.train("mine.py", ["gone.toml"])


def test_unknown_recipes_and_settings_are_refused_with_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.py").write_text(RECIPE)
    (tmp_path / "empty.py").write_text("")
    for name, assignments, words in [
        ("mien", [], "did you mean 'mine'"),
        ("mine", ["widht=3"], "did you mean 'width'"),
        ("mine", ["stesp=3"], "did you mean 'steps'"),
        ("mine", ["steps=x"], "wanted a whole number"),
        ("mine", ["steps"], "write name=value"),
        ("empty.py", [], r"no function settings\(\)"),
    ]:
        with pytest.raises(CartoucheError, match=words):
            run.train(name, assignments)
