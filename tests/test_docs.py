"""The commands that the documentation shows are run, one after another, on small models."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from small_families import small
from small_readers import llava_folder, reading_model

from cartouche import images
from cartouche.cli import main
from cartouche.weights import safetensors

DOCS = Path(__file__).parents[1] / "docs"


def commands(page: str) -> list[list[str]]:
    """The arguments of every `cartouche` line in the shell blocks of a page."""
    blocks = re.findall(r"```sh\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("cartouche ")]


@pytest.fixture
def at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds all that the page about weights speaks of."""
    model = small("sd1")
    shutil.copytree(model.folder, tmp_path / "model-folder")
    shutil.copy(model.file, tmp_path / "model.safetensors")
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    lora = {f"{layer}.lora_down.weight": torch.randn(2, 32), f"{layer}.lora_up.weight": torch.randn(32, 2)}
    safetensors.save(tmp_path / "style.safetensors", lora)
    safetensors.save(tmp_path / "word.safetensors", {"<someone>": torch.randn(64)})
    torch.save({"state_dict": {"layer.weight": torch.ones(3, 4)}}, tmp_path / "old.ckpt")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    images.save_png(tmp_path / "photo.png", pixels)
    mask = np.zeros((64, 64, 3), np.uint8)
    mask[16:48, 16:48] = 255
    images.save_png(tmp_path / "mask.png", mask)
    reader = reading_model(tmp_path / "reader")
    for part, name in (("clip", "clip-folder"), ("detector", "owlvit-folder")):
        shutil.copytree(reader / part, tmp_path / name)
        shutil.copytree(reader / "tokenizer", tmp_path / name, dirs_exist_ok=True)
    llava_folder(tmp_path / "llava-folder")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_of_the_page_about_weights_does_what_it_says(at_hand: Path, capsys: pytest.CaptureFixture[str]):
    asked = commands("weights.md")
    assert len(asked) > 10
    for arguments in asked:
        assert main(arguments) == 0, f"cartouche {shlex.join(arguments)}: {capsys.readouterr().err}"
    drawn = {path.name for path in at_hand.glob("*.png")} - {"photo.png", "mask.png"}
    wanted = {words[words.index("--out") + 1] for words in asked if words[0] == "draw"}
    assert drawn == wanted
    before, after = (images.read_pixels(at_hand / name) for name in ("photo.png", "filled.png"))
    assert np.array_equal(before[:16], after[:16])
    assert not np.array_equal(before[20:40, 20:40], after[20:40, 20:40])
    assert safetensors.load(at_hand / "new.safetensors")["layer.weight"].shape == (3, 4)
