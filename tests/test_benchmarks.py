"""The benchmarks at the smallest size: each measures what it says it does and returns the fields that its JSON has."""

import importlib.util
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy_pack import THINGS, write_pack

FOLDER = Path(__file__).parents[1] / "benchmarks"
QUIET = "ignore::cartouche.draw.paint.CutWarning"  # the tiny model takes 14 tokens


def script(name):
    """benchmarks/NAME.py as a module under a name of its own; it finds bench.py as it does when it is run."""
    known = f"benchmarks_{name}"
    if known not in sys.modules:
        spec = importlib.util.spec_from_file_location(known, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.path.insert(0, str(FOLDER))
        try:
            spec.loader.exec_module(module)
        finally:
            sys.path.remove(str(FOLDER))
        sys.modules[known] = module
    return sys.modules[known]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return write_pack(tmp_path_factory.mktemp("pack"))


def storable(report):
    """Whether the report goes into JSON and back, with no number that is not one."""
    text = json.dumps(script("bench").rounded(report), allow_nan=False)
    return isinstance(json.loads(text), dict)


# bench.py


def test_rivals_take_turns_and_change_places():
    order = []
    taken = script("bench").interleaved({n: lambda n=n: order.append(n) for n in "abc"}, rounds=2, warmup=1)
    assert "".join(order) == "abccbaabc"
    assert {name: len(seconds) for name, seconds in taken.items()} == {"a": 2, "b": 2, "c": 2}


def test_a_limit_ends_the_rounds_but_leaves_three():
    taken = script("bench").interleaved({"a": lambda: None}, rounds=50, warmup=2, limit=0.0)
    assert len(taken["a"]) == 3


def test_spread_and_speedups_are_those_of_the_rounds():
    bench = script("bench")
    assert bench.spread([3, 1, 2, 10]) == {"min": 1, "median": 2.5, "max": 10, "n": 4}
    times = bench.speedups({"slow": [2.0, 4.0, 6.0], "fast": [1.0, 1.0, 2.0]}, "slow")
    assert times["slow"]["median"] == 1.0
    assert times["fast"] == {"min": 2.0, "median": 3.0, "max": 4.0, "n": 3}


def test_a_target_is_met_at_its_very_value():
    bench = script("bench")
    assert bench.against(1.4, 1.4)["met"] and not bench.against(1.39, 1.4)["met"]
    assert bench.against(0.5, 0.6, least=False)["met"] and not bench.against(0.7, 0.6, least=False)["met"]


def test_the_machine_is_described_without_its_name_or_its_places():
    import platform

    told = json.dumps(script("bench").machine())
    for secret in (platform.node(), str(Path.home()), str(FOLDER)):
        assert len(secret) < 2 or secret not in told


def test_a_result_is_written_as_plain_json_of_six_digits(tmp_path):
    script("bench").write(tmp_path / "deep" / "x.json", {"a": np.float32(1 / 3), "b": (np.int64(2), True), "c": None})
    text = (tmp_path / "deep" / "x.json").read_text()
    assert json.loads(text) == {"a": 0.333333, "b": [2, True], "c": None}


def test_columns_stand_under_each_other():
    lines = script("bench").table(["name", "n"], [["a", 1.23456], ["long name", 12345.6]]).splitlines()
    assert lines == ["name           n", "a           1.23", "long name  12346"]


# the scripts


def test_training_steps_the_same_net_in_ours_and_in_diffusers():
    pytest.importorskip("diffusers")
    from cartouche.nets.unet import UNetConfig
    from cartouche.train.loop import TrainSettings

    config = UNetConfig(
        sample_size=8,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        cross_attention_dim=16,
        layers_per_block=1,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    settings = TrainSettings(batch=2, channels_last=True, device="cpu", threads=1)
    found = script("training").measure(config, settings, words=3, rounds=1)
    assert found["largest difference of predictions in fp32"] < 1e-5
    assert found["GFLOP an image"] > 0
    rows = found["rates"]
    assert {"cartouche", "diffusers fp32", "diffusers fp32, channels last"} <= set(rows)
    assert rows["diffusers fp32"]["precision"] == "fp32"
    assert rows["diffusers fp32"]["times diffusers fp32"]["median"] == 1.0
    for row in rows.values():
        assert row["images/s"] == pytest.approx(2 / row["seconds a step"]["median"])
        assert row["GFLOP/s"] == pytest.approx(row["images/s"] * found["GFLOP an image"])
    assert storable(found)


def test_the_larger_training_net_has_27_million_weights():
    import torch

    from cartouche.nets.unet import UNet2DConditionModel

    training = script("training")
    with torch.device("meta"):
        net = UNet2DConditionModel(training.LARGER)
    assert sum(one.numel() for one in net.parameters()) == pytest.approx(27.2e6, rel=2e-3)


def test_the_recipe_that_training_is_measured_with_can_be_read():
    from cartouche.train.drawing import Drawer
    from cartouche.train.run import load_recipe
    from cartouche.weights.builtin import builtin

    recipe = replace(load_recipe(script("training").RECIPE), start=str(builtin()))
    assert isinstance(recipe.build_net(), Drawer)
    assert recipe.settings.channels_last


@pytest.mark.filterwarnings(QUIET)
def test_latency_times_warm_pictures_and_whole_processes(tiny_model):
    found = script("latency").measure(tiny_model, count=2, rounds=1)
    kinds = {
        "warm picture",
        "python",
        "import cartouche",
        "cartouche --help",
        "cold, empty cache",
        "cold, filled cache",
        "diffusers, cold",
    }
    assert set(found["seconds"]) == kinds
    assert found["seconds"]["warm picture"]["n"] == 2
    assert found["seconds"]["cold, empty cache"]["median"] > found["seconds"]["python"]["median"]
    targets = {"warm picture", "cold, empty cache", "cold, filled cache", "cartouche --help"}
    assert set(found["targets"]) == targets | {"share of diffusers, cold"}
    assert storable(found)


def test_scenes_are_counted_by_the_second_and_held_against_the_need(toy):
    found = script("scenes").measure(toy, needs=50.0, chunk=5, rounds=2)
    rates = found["scenes a second on one core"]
    assert set(rates) == {"compose", "draw", "caption", "sample with caption", "sample cut to 64x64"}
    assert found["scenes"] == 10
    assert found["times what training needs"] == rates["sample with caption"]["median"] / 50
    assert storable(found)


def test_psnr_is_ten_log_of_peak_over_error():
    black = np.zeros((2, 4, 4, 3), np.uint8)
    found = script("autoencoder").psnr(black, np.stack([black[0] + 255, black[0] + 3]))
    np.testing.assert_allclose(found, [0.0, 20 * math.log10(255 / 3)], atol=1e-5)


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_the_autoencoder_is_measured_by_graph_and_by_torch(engine, tiny_model, toy):
    autoencoder = script("autoencoder")
    again, used = autoencoder.reconstruction(tiny_model / "vae", engine)
    assert used == ("torch" if engine == "torch" else "openvino")
    found, sheet = autoencoder.measure(again, toy, count=6, split="train")
    assert found["PSNR, dB"]["n"] == 6 == sum(row["n"] for row in found["by style"].values())
    assert found["PSNR, dB"]["5th percentile"] <= found["PSNR, dB"]["median"]
    assert sheet.shape == (2 * 128 + 2, 6 * 128 + 5 * 2, 3)  # originals above what came back
    assert storable(found)


def test_an_autoencoder_that_changes_nothing_has_the_highest_psnr(toy):
    found, sheet = script("autoencoder").measure(lambda x: x, toy, count=3, split="train")
    assert found["PSNR, dB"]["mean"] > 70
    np.testing.assert_array_equal(sheet[:128], sheet[130:])


@pytest.fixture(scope="module")
def clip():
    import torch

    from cartouche.nets.clip import CLIPModel
    from cartouche.nets.clip_config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
    from cartouche.text import Tokenizer

    tokenizer = Tokenizer.train([name for thing in THINGS.values() for name in thing[:2]], vocab_size=600, context=60)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": tokenizer.start_id, "eos_token_id": tokenizer.end_id}
    text = CLIPTextConfig(vocab_size=tokenizer.vocab_size, max_position_embeddings=60, **small, **ends)
    torch.manual_seed(0)
    net = CLIPModel(
        CLIPConfig(text_config=text, vision_config=CLIPVisionConfig(image_size=128, patch_size=32, **small))
    )
    return script("clip").Clip(net.eval(), tokenizer)


def test_recall_counts_a_right_column_among_the_best():
    scores = np.array([[3.0, 2, 1, 0, -1, -2], [0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]])
    right = np.zeros((3, 6), bool)
    right[0, 0] = right[1, 1] = right[2, 5] = True  # best, fifth, last
    found = script("clip").recall(scores, right)
    assert found["@1"]["rate"] == pytest.approx(1 / 3)
    assert found["@5"]["rate"] == pytest.approx(2 / 3)
    assert found["@1"]["low"] < 1 / 3 < found["@1"]["high"]


def test_clip_is_asked_about_scenes_and_single_drawings(clip, toy):
    from cartouche.data.emoji import Pack

    found = script("clip").measure(clip, Pack(toy), count=6, splits=["pairs"])
    assert set(found["scenes"]) == {f"{m}, {lang}" for m in ("full", "everyday") for lang in ("en", "fr", "mixed")}
    for one in found["scenes"].values():
        assert one["captions"] == 6 >= one["different captions"]
        for way in ("image to text", "text to image"):
            assert one[way]["@5"]["rate"] >= one[way]["@1"]["rate"]
            assert one[way]["@1"]["n"] == 6
    pairs = found["drawings"]["pairs"]
    assert pairs["drawings"] == 1
    assert pairs["among its own names, en"]["image to text"]["@1"]["rate"] == 1.0  # one name only
    assert pairs["among all names, fr"]["names"] == len(THINGS)
    assert storable(found)


def test_a_drawing_stands_alone_on_white(toy):
    from cartouche.data.emoji import Pack

    pack = Pack(toy)
    pixels = script("clip").alone(pack, pack.of("train")[0])
    assert pixels.shape == (128, 128, 3)
    assert pixels[0, 0].tolist() == [252, 252, 252]
    x0, y0, x1, y1 = pack.of("train")[0].bbox
    assert (pixels[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2] == THINGS["c1"][3]).all()


@pytest.mark.filterwarnings(QUIET)
def test_engines_are_timed_and_their_pictures_compared(tiny_model):
    engines = script("engines")
    found = engines.measure(tiny_model, rounds=1)
    assert set(found["steps"]) == {"batch of 2", "batch of 16"}
    for rows in found["steps"].values():
        assert {"openvino fp32", "torch fp32"} <= set(rows)
        assert rows["torch fp32"]["times torch fp32"]["median"] == 1.0
    apart = found["differences from torch fp32, of 255"]
    assert apart["openvino fp32"]["mean"] <= found["target"]["target"] and found["target"]["met"]
    assert storable(found)


def test_a_rival_in_a_process_of_its_own_steps_and_says_its_memory(tmp_path):
    rivals, engines = script("rivals"), script("engines")
    folder = tmp_path / "model"
    counts = rivals.write_model(folder, small=True)
    assert set(counts) == {"unet", "vae", "text_encoder"} and min(counts.values()) > 10_000
    assert engines.operations(folder) > 1e6
    with rivals.Process("cartouche openvino fp32", folder) as rival:
        assert rival.ask("step") == "step" and rival.ask("picture 2") is True
        rival.ask(f"save {tmp_path}/found.npy")
        assert rival.ask("memory")["VmHWM"] > 1e7
    net = rivals.RIVALS["cartouche torch fp32"](folder)[0]
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), net(), atol=1e-3)


# options.py


@pytest.mark.filterwarnings(QUIET)
def test_options_are_measured_against_plain_drawing(tiny_model, tmp_path):
    options = script("options")
    found = options.measured(tiny_model, "openvino", rounds=1)
    assert found["plain"]["difference"] == 0 and found["plain"]["times as fast"]["median"] == 1
    assert found["guidance_interval 0.4-1"]["difference"] > 0
    assert not any("cache" in name for name in found)  # which torch alone has
    (row,) = options.decoding(tiny_model, [72], tmp_path)
    assert row["whole"]["seconds"] > 0 and row["tiled"]["seconds"] > 0 and 0 <= row["difference"] < 64
    assert storable(found) and storable(row)
