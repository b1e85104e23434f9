"""Every recipe takes a step on a toy pack and exports what it learned."""

from pathlib import Path

import pytest
from toy_pack import write_pack

from cartouche.data.captions import STYLES
from cartouche.data.palette import COLOURS
from cartouche.train.run import train
from cartouche.weights.builtin import builtin

RECIPES = Path(__file__).parents[1] / "recipes"
NAMES = "bell boat book drum fork harp lamp leaf mask nail pear pipe ring rope vase".split()
FEW = ["steps=1", "warmup=0", "cooldown=0", "batch=4", "workers=0", "threads=1", "save_every=1", "sample_every=0"]
FROM = {  # what each goes on from, in the folder of the built-in model
    "clip": {"tokenizer": "clip"},
    "looks": {"clip": "clip"},
    "denoiser": {"start": ".", "autoencoder": "vae", "clip": "clip"},
    "detector": {"clip": "clip"},
    "segmenter": {"clip": "clip"},
    "captioner": {"clip": "clip"},
    "binding": {"clip": "clip"},
}
MORE = {"looks": ["captions=8"], "denoiser": ["scenes=8"]}


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    colours = [(name, colour.rgb) for name, colour in COLOURS.items()]
    things = {name: (name, name, *colours[i % len(colours)]) for i, name in enumerate(NAMES)}
    return write_pack(tmp_path_factory.mktemp("pack"), things, tuple(STYLES))


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.py") if path.stem != "common"))
def test_a_recipe_takes_a_step_and_exports(name: str, pack: Path, tmp_path: Path):
    given = [f"{what}={builtin() / folder}" for what, folder in FROM.get(name, {}).items()]
    given += [f"cache={tmp_path / 'latents'}"] if name == "denoiser" else []
    assert (
        train(RECIPES / f"{name}.py", [f"pack={pack}", f"out={tmp_path / 'run'}", *FEW, *given, *MORE.get(name, [])])
        == 0
    )
    assert list((tmp_path / "run" / "export").rglob("*.safetensors"))
