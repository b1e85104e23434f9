"""Settings and the device: closed forms of what is read, and what is refused with which words."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from cartouche import device
from cartouche.config import CartoucheError, fill, nearest, override, plain, read_toml, unknown


@dataclass(frozen=True)
class Rate:
    peak: float = 0.1
    warmup: int = 10
    betas: tuple[float, float] = (0.9, 0.99)


@dataclass(frozen=True)
class Everything:
    name: str = "plain"
    steps: int = 100
    fast: bool = False
    kind: Literal["cosine", "constant"] = "cosine"
    folder: Path = Path("runs")
    limit: float | None = None
    widths: tuple[int, ...] = (1, 2)
    rate: Rate = field(default_factory=Rate)


def test_a_value_goes_to_the_named_setting_and_the_rest_stays():
    changed = override(Everything(), ["steps=7", "rate.peak=0.5"])
    assert changed == Everything(steps=7, rate=Rate(peak=0.5))


def test_the_last_of_two_values_for_one_name_wins():
    assert override(Everything(), ["steps=7", "steps=8"]).steps == 8


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("steps=1_000", "steps", 1000),
        ("steps=2e4", "steps", 20000),
        ("fast=true", "fast", True),
        ("fast=no", "fast", False),
        ("kind=constant", "kind", "constant"),
        ("folder=a/b", "folder", Path("a/b")),
        ("limit=3", "limit", 3.0),
        ("limit=none", "limit", None),
        ("widths=3,4,5", "widths", (3, 4, 5)),
        ("widths=[6, 7]", "widths", (6, 7)),
        ("name=a=b", "name", "a=b"),
    ],
)
def test_text_is_read_as_the_type_of_its_setting(text: str, name: str, value: Any):
    assert getattr(override(Everything(), [text]), name) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("step=7", "'step'; did you mean 'steps'"),
        ("rate.peek=7", "'rate.peek'; did you mean 'rate.peak'"),
        ("kind=cosin", "'cosin'; did you mean 'cosine'"),
        ("steps=many", "steps='many': wanted a whole number"),
        ("steps=1.5", "wanted a whole number"),
        ("steps=1e400", "wanted a whole number"),
        ("fast=perhaps", "wanted true or false"),
        ("rate=3", "rate holds several settings"),
        ("rate.betas=0.9", "wanted 2 values, got 1"),
        ("steps.deep=3", "steps"),
        ("steps", "write name=value"),
        ("=3", "write name=value"),
    ],
)
def test_an_unknown_or_mistyped_setting_is_refused_with_what_was_wanted(text: str, words: str):
    with pytest.raises(CartoucheError, match=words.replace("(", r"\(")):
        override(Everything(), [text])


def test_a_toml_file_fills_settings_table_by_table(tmp_path: Path):
    path = tmp_path / "settings.toml"
    path.write_text('name = "x"\nwidths = [9]\n[rate]\nwarmup = 5\nbetas = [0.8, 0.9]\n')
    assert fill(Everything, read_toml(path)) == Everything(name="x", widths=(9,), rate=Rate(warmup=5, betas=(0.8, 0.9)))


def test_a_toml_number_of_the_wrong_kind_is_refused():
    with pytest.raises(CartoucheError, match="steps=1.5"):
        fill(Everything, {"steps": 1.5})
    with pytest.raises(CartoucheError, match="steps=True"):
        fill(Everything, {"steps": True})
    with pytest.raises(CartoucheError, match="name=3"):
        fill(Everything, {"name": 3})


def test_a_file_that_is_not_toml_or_not_there_is_refused(tmp_path: Path):
    (tmp_path / "bad.toml").write_text("a = = 3")
    for name in ("bad.toml", "absent.toml"):
        with pytest.raises(CartoucheError, match="cannot read settings"):
            read_toml(tmp_path / name)


def test_settings_come_back_from_their_plain_form():
    settings = Everything(limit=2.0, folder=Path("x"), rate=Rate(peak=0.3))
    assert fill(Everything, plain(settings)) == settings


def test_the_nearest_name_is_found_and_nonsense_has_none():
    assert nearest("eulr", ["euler", "heun"]) == "euler"
    assert nearest("DPM", ["ddpm", "heun"]) == "ddpm"
    assert nearest("qqqq", ["euler", "heun"]) is None
    assert "known: euler, heun" in str(unknown("sampler", "qqqq", ["euler", "heun"]))


def test_bf16_is_used_only_where_it_is_native(monkeypatch: pytest.MonkeyPatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(device, "processor_flags", lambda: frozenset({"avx512f"}))
    assert device.choose_precision("auto", cpu) == "fp32"
    monkeypatch.setattr(device, "processor_flags", lambda: frozenset({"avx512_bf16"}))
    assert device.choose_precision("auto", cpu) == "bf16"
    assert device.choose_precision("fp32", cpu) == "fp32"


def test_an_unknown_device_or_precision_is_refused():
    with pytest.raises(CartoucheError, match="did you mean 'cuda'"):
        device.choose("cud")
    with pytest.raises(CartoucheError, match="'bf16'"):
        device.choose_precision("bf61", torch.device("cpu"))  # type: ignore[arg-type]
    with pytest.raises(CartoucheError, match="threads=-1"):
        device.use_threads(-1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_refused_and_auto_does_without():
    assert device.choose("auto").type in ("cpu", "mps")
    with pytest.raises(CartoucheError, match="no GPU"):
        device.choose("cuda")


def test_threads_follow_the_setting_then_the_environment(monkeypatch: pytest.MonkeyPatch):
    before = torch.get_num_threads()
    try:
        assert device.use_threads(1) == 1
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        assert device.use_threads() == 1 == torch.get_num_threads()
        for many, wanted in (("2,1", 2), ("many", device.processors())):
            monkeypatch.setenv("OMP_NUM_THREADS", many)
            assert device.use_threads() == wanted
        monkeypatch.delenv("OMP_NUM_THREADS")
        assert device.use_threads() == device.processors() >= 1
    finally:
        torch.set_num_threads(before)


def test_settings_and_device_import_no_torch():
    code = (
        "import sys; from cartouche import config, device; device.processor_has_bf16(); print('torch' in sys.modules)"
    )
    here = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, env=os.environ)
    assert done.stdout.strip() == "False", done.stderr
