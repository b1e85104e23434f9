"""Configurations made to do harm are refused before anything is made of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import small_tower
from small_tower import TEXT

from cartouche.config import CartoucheError, read_json
from cartouche.draw.model import Model
from cartouche.nets.unet_config import UNetConfig
from cartouche.text import Tokenizer
from cartouche.weights import folder
from cartouche.weights.builtin import builtin

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole, small net."""
    return small_tower.save(tmp_path_factory.mktemp("tower"))


def changed(**settings: Any) -> dict[str, Any]:
    return TEXT.to_dict() | settings


TRAPS: dict[str, Any] = {
    "unknown class": {"architectures": ["posix.system"]},
    "class that is a list": {"architectures": [["CLIPTextModel"]]},
    "class that is a number": {"architectures": 7},
    "no class": {"architectures": None, "model_type": None},
    "target": changed(_target_="os.system"),
    "partial": changed(_partial_=True),
    "auto_map": changed(auto_map={"AutoModel": "modeling_evil.Evil"}),
    "custom code": changed(trust_remote_code=True),
    "wide": changed(hidden_size=10**9, num_attention_heads=1),
    "wider than 64 bits": changed(hidden_size=10**30),
    "as wide as may be": changed(hidden_size=2**20, intermediate_size=2**20, vocab_size=2**20),
    "deep": changed(num_hidden_layers=10**9),
    "none": changed(hidden_size=0),
    "negative": changed(num_hidden_layers=-5),
    "no heads": changed(num_attention_heads=0),
    "a text": changed(hidden_size="16"),
    "a flag": changed(hidden_size=True),
    "a list": changed(hidden_size=[16] * 1000),
    "a table": changed(hidden_size={"a": 1}),
    "fraction": changed(hidden_size=16.5),
}
WIDE = 10**9
UNETS = {
    "channels": {"block_out_channels": [WIDE] * 4},
    "channels in": {"in_channels": WIDE},
    "words": {"cross_attention_dim": WIDE},
    "blocks": {"layers_per_block": WIDE},
    "transformers": {"transformer_layers_per_block": [500] * 4, "layers_per_block": [500] * 4},
    "levels": {"block_out_channels": [32] * 1000, "down_block_types": ["DownBlock2D"] * 1000},
    "not a number": {"norm_eps": float("nan")},
    "infinite": {"norm_eps": float("inf")},
    "three sizes": {"sample_size": [1, 2, 3]},
    "no sizes": {"block_out_channels": None},
    "class": {"_class_name": "../../evil"},
    "a class in a list": {"_class_name": ["diffusers", "UNet2DConditionModel"]},
}


def refusal(path: Path, config: Any) -> str:
    """Why a net with this config.json is refused."""
    text = config if isinstance(config, str) else json.dumps(config)
    (path / "config.json").write_text(text)
    with pytest.raises(CartoucheError) as caught:
        folder.load_net(path)
    return str(caught.value)


LIMITED = """
import json, resource, sys, time
from pathlib import Path
import torch
from cartouche.config import CartoucheError
from cartouche.weights import folder
path, traps = Path(sys.argv[1]), json.loads(sys.stdin.read())
folder.load_net(path)
mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + (200 << 20),) * 2)
found = {}
for name, text in traps.items():
    (path / "config.json").write_text(text)
    start = time.process_time()
    try:
        folder.load_net(path)
        found[name] = "taken"
    except CartoucheError as error:
        found[name] = "refused" if time.process_time() - start < 2 and len(str(error)) < 4000 else str(error)
    except Exception as error:
        found[name] = repr(error)
print(json.dumps(found))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux, to count memory")
def test_hostile_configurations_are_refused_at_once_and_before_any_memory_is_taken(tower, tmp_path):
    shutil.copytree(tower, tmp_path / "net")
    traps = {name: json.dumps(config) for name, config in TRAPS.items()}
    traps |= {f"unet: {name}": json.dumps({"_class_name": "UNet2DConditionModel"} | one) for name, one in UNETS.items()}
    traps |= {
        "depth": "[" * 10_000 + "]" * 10_000,
        "depth of tables": '{"a":' * 10_000 + "1" + "}" * 10_000,
        "NaN": '{"architectures": ["CLIPTextModel"], "layer_norm_eps": NaN}',
        "infinity": '{"architectures": ["CLIPTextModel"], "layer_norm_eps": 1e999}',
        "digits": '{"architectures": ["CLIPTextModel"], "hidden_size": ' + "9" * 5000 + "}",
        "not an object": "[1]",
        "half": '{"a"',
        "nothing": "",
    }
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "net")],
        input=json.dumps(traps),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(HERE.parent)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert {name: said for name, said in json.loads(done.stdout).items() if said != "refused"} == {}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (TRAPS["target"], "_target_"),
        (TRAPS["auto_map"], "auto_map"),
        (TRAPS["unknown class"], "posix.system"),
        (TRAPS["wide"], "hidden_size=1000000000"),
        (TRAPS["deep"], "num_hidden_layers=1000000000"),
        (TRAPS["as wide as may be"], "of another shape"),
        ("[" * 10_000, "nested too deeply"),
        ('{"a": NaN}', "NaN is not a finite number"),
    ],
)
def test_the_refusal_says_what_is_wrong(tower, tmp_path, config, said):
    shutil.copytree(tower, tmp_path / "net")
    assert said in refusal(tmp_path / "net", config)


def test_a_json_of_more_bytes_than_any_configuration_is_not_read(tmp_path):
    path = tmp_path / "config.json"
    with open(path, "wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(CartoucheError, match="1,073,741,824 bytes"):
        read_json(path)


def edited(place: Path, name: str, **settings: Any) -> Path:
    """A copy of the built-in model's settings, without weights, one of its files changed."""
    shutil.copytree(builtin(), place, ignore=shutil.ignore_patterns("*.safetensors"))
    path = place / name
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return place


MODELS: list[tuple[str, dict[str, Any]]] = [
    ("unet/config.json", {"sample_size": WIDE}),
    ("unet/config.json", {"sample_size": 2**20}),
    ("unet/config.json", {"sample_size": [16, -16]}),
    ("unet/config.json", {"in_channels": WIDE}),
    ("unet/config.json", {"in_channels": None}),
    ("unet/config.json", {"_class_name": "Evil"}),
    ("unet/config.json", {"_target_": "os.system"}),
    ("vae/config.json", {"block_out_channels": [8] * 10_000}),
    ("vae/config.json", {"block_out_channels": 5}),
    ("vae/config.json", {"latent_channels": "4"}),
    ("vae/config.json", {"scaling_factor": [1]}),
    ("text_encoder/config.json", {"num_hidden_layers": WIDE}),
    ("text_encoder/config.json", {"auto_map": {"AutoModel": "evil.Evil"}}),
    ("scheduler/scheduler_config.json", {"num_train_timesteps": WIDE}),
    ("scheduler/scheduler_config.json", {"num_train_timesteps": "1000"}),
    ("scheduler/scheduler_config.json", {"trained_betas": ["x"]}),
    ("scheduler/scheduler_config.json", {"beta_end": -1}),
    ("scheduler/scheduler_config.json", {"steps_offset": WIDE}),
    ("scheduler/scheduler_config.json", {"prediction_type": ["epsilon"]}),
    ("tokenizer/tokenizer_config.json", {"model_max_length": "77"}),
    ("tokenizer/tokenizer_config.json", {"model_max_length": -1}),
    ("tokenizer/special_tokens_map.json", {"pad_token": {"no": "content"}}),
]


@pytest.mark.parametrize(("name", "settings"), MODELS, ids=lambda one: str(one)[:60])
def test_a_model_with_a_hostile_setting_is_refused_before_it_draws(tmp_path, name, settings):
    path = edited(tmp_path / "model", name, **settings)
    with pytest.raises(CartoucheError) as caught:
        Model(path, engine="openvino").ladder("ddim")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 4000


def test_code_beside_a_model_is_not_looked_at(tmp_path):
    canary = tmp_path / "canary"
    place = edited(
        tmp_path / "model", "model_index.json", _class_name=["pipeline", "Evil"], custom_pipeline="pipeline.py"
    )
    for name in ("pipeline.py", "unet/modeling_evil.py", "__init__.py", "sitecustomize.py"):
        (place / name).write_text(f"open({str(canary)!r}, 'w')\n")
    Model(place, engine="openvino").ladder("ddim")
    assert not canary.exists()


def test_shards_lie_beside_their_index_and_nowhere_else(tower, tmp_path):
    shutil.copytree(tower, tmp_path / "net")
    (tmp_path / "net" / "model.safetensors").rename(tmp_path / "secret.safetensors")
    for place in ("../secret.safetensors", str(tmp_path / "secret.safetensors"), "..", "a/../../secret.safetensors"):
        index = {"weight_map": {"text_model.final_layer_norm.bias": place}}
        (tmp_path / "net" / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(CartoucheError, match="names no shards"):
            folder.load_net(tmp_path / "net")


def test_settings_made_in_python_meet_the_same_bounds():
    with pytest.raises(CartoucheError, match="is not finite"):
        UNetConfig(norm_eps=float("nan"))
    with pytest.raises(CartoucheError, match="is no size of a network"):
        UNetConfig(cross_attention_dim=2**21)
    with pytest.raises(CartoucheError, match="no known network is so deep"):
        UNetConfig(layers_per_block=100, transformer_layers_per_block=100)


def test_a_tokenizer_of_a_hostile_folder_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("[" * 100_000)
    with pytest.raises(CartoucheError):
        Tokenizer.load(tmp_path)
