"""LoRA: every dialect is read, gives what its own library gives, and leaves no bit changed when it is taken away."""

import json
import re
import warnings

import numpy as np
import pytest
import torch

from cartouche.config import CartoucheError
from cartouche.nets.clip import CLIPTextConfig, CLIPTextModel
from cartouche.nets.unet import UNet2DConditionModel, UNetConfig
from cartouche.weights import lora, names, safetensors
from cartouche.weights.lora import Change

UNET = {
    "block_out_channels": (16, 32),
    "norm_num_groups": 8,
    "cross_attention_dim": 24,
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}
TEXT = {
    "vocab_size": 600,
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "bos_token_id": 598,
    "eos_token_id": 599,
}
LINEAR = r".*\.(to_q|to_k|to_v|to_out\.0|proj|net\.2)"
CONVOLUTIONS = r".*\.(conv1|conv2|conv_shortcut|proj_in|proj_out|conv)"


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(UNetConfig(**UNET)).eval()


@pytest.fixture(scope="module")
def text():
    torch.manual_seed(1)
    return CLIPTextModel(CLIPTextConfig(**TEXT)).eval()


@pytest.fixture(scope="module")
def their_unet(unet):
    import diffusers

    theirs = diffusers.UNet2DConditionModel(**UNET)
    theirs.load_state_dict(unet.state_dict())
    return theirs.eval()


def shapes(net):
    return {name: tuple(one.shape) for name, one in net.state_dict().items()}


def drawn(unet):
    generator = torch.Generator().manual_seed(5)
    x, words = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 7, 24, generator=generator)
    with torch.no_grad():
        out = unet(x, torch.tensor([300, 20]), words)
    return (out if isinstance(out, torch.Tensor) else out.sample).numpy()


def read_states(text):
    ids = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        return text(ids)[0].numpy()


def bits(net):
    return {name: one.numpy().tobytes() for name, one in net.state_dict().items()}


def adapted(net, targets, alpha=6, rank=4, seed=0, **settings):
    """A copy of a net with a random LoRA in it, by peft."""
    import copy

    import peft

    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, init_lora_weights=False, **settings)
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = peft.get_peft_model(copy.deepcopy(net), config)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "lora_" in name:
                weight.normal_(0, 0.2)
    return made.eval()


def peft_tensors(made):
    """As `get_peft_model_state_dict` names them, without the beginning."""
    import peft

    tensors = peft.get_peft_model_state_dict(made)
    return {name.removeprefix("base_model.model."): one.clone() for name, one in tensors.items()}


def files(folder, made, part, alpha=6, rank=4):
    """The same LoRA in every dialect, two of them written by their own libraries."""
    import diffusers

    tensors = peft_tensors(made)
    made.save_pretrained(folder / "peft")
    settings = {"r": rank, "lora_alpha": alpha, "target_modules": sorted({name.split(".lora_")[0] for name in tensors})}
    said = {f"{part}_lora_layers": tensors, f"{part}_lora_adapter_metadata": settings}
    diffusers.StableDiffusionPipeline.save_lora_weights(folder, weight_name="new.safetensors", **said)
    scaled = {f"{part}.{name}": one * (alpha / rank if "lora_B" in name else 1) for name, one in tensors.items()}
    older = {"unet": ("lora.down", "lora.up"), "text_encoder": ("lora_linear_layer.down", "lora_linear_layer.up")}[part]
    replaced = {re.sub("lora_(A|B)", lambda m: older["AB".index(m[1])], name): one for name, one in scaled.items()}
    safetensors.save(folder / "diffusers.safetensors", replaced)
    prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[part]
    kohya = {}
    for name, one in tensors.items():
        layer, _, end = name.rpartition(".lora_")
        spelled = prefix + layer.replace(".", "_")
        kohya[spelled + {"A.weight": ".lora_down.weight", "B.weight": ".lora_up.weight"}[end]] = one
        kohya[f"{spelled}.alpha"] = torch.tensor(float(alpha))
    safetensors.save(folder / "kohya.safetensors", kohya)
    return [folder / name for name in ("peft", "new.safetensors", "diffusers.safetensors", "kohya.safetensors")]


@pytest.fixture(scope="module")
def unet_lora(unet, tmp_path_factory):
    made = adapted(unet, f"({LINEAR}|{CONVOLUTIONS})")
    return made, files(tmp_path_factory.mktemp("unet"), made, "unet")


@pytest.fixture(scope="module")
def text_lora(text, tmp_path_factory):
    made = adapted(text, ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"], seed=3)
    return made, files(tmp_path_factory.mktemp("text"), made, "text_encoder")


# equal to peft


@pytest.mark.parametrize("dialect", range(4))
@pytest.mark.parametrize("live", [False, True])
def test_every_dialect_draws_what_peft_draws(unet, unet_lora, dialect, live):
    made, paths = unet_lora
    changes = lora.read(paths[dialect]).fitted("unet", shapes(unet))
    assert any(".conv1." in name for name in changes) and any(".to_out.0." in name for name in changes)
    plain, before = drawn(unet), bits(unet)
    undo = (lora.attach if live else lora.merge)(unet, [(changes, 1.0)])
    np.testing.assert_allclose(drawn(unet), drawn(made), atol=1e-4)
    assert np.abs(drawn(unet) - plain).max() > 0.01
    undo()
    assert bits(unet) == before and (drawn(unet) == plain).all()


@pytest.mark.parametrize("dialect", range(4))
def test_every_dialect_reads_words_as_peft_does(text, text_lora, dialect):
    made, paths = text_lora
    changes = lora.read(paths[dialect]).fitted("text_encoder", shapes(text))
    before = bits(text)
    undo = lora.merge(text, [(changes, 1.0)])
    np.testing.assert_allclose(read_states(text), read_states(made), atol=1e-4)
    undo()
    assert bits(text) == before


def test_several_at_once_have_their_own_strengths(unet, tmp_path):
    made = [adapted(unet, LINEAR, seed=seed, rank=2 + seed) for seed in (1, 2)]
    loras = []
    for i, one in enumerate(made):
        one.save_pretrained(tmp_path / str(i))
        loras.append(lora.read(tmp_path / str(i)).fitted("unet", shapes(unet)))
    both = adapted(unet, LINEAR, seed=1, rank=3)
    both.load_adapter(tmp_path / "1", adapter_name="second")
    both.base_model.add_weighted_adapter(["default", "second"], [0.7, -0.4], "mixed", combination_type="cat")
    both.set_adapter("mixed")
    chosen = list(zip(loras, (0.7, -0.4), strict=True))
    before = bits(unet)
    for way in (lora.merge, lora.attach):
        undo = way(unet, chosen)
        np.testing.assert_allclose(drawn(unet), drawn(both.eval()), atol=1e-4)
        undo()
    assert bits(unet) == before


def test_strength_nought_changes_nothing(unet, unet_lora):
    changes = lora.read(unet_lora[1][0]).fitted("unet", shapes(unet))
    before = bits(unet)
    undo = lora.merge(unet, [(changes, 0.0)])
    assert bits(unet) == before
    undo()


@pytest.mark.parametrize("settings", [{"use_rslora": True}, {"alpha_pattern": {"to_q": 1, "net.2": 12}}])
def test_alpha_is_taken_as_peft_takes_it(unet, tmp_path, settings):
    made = adapted(unet, LINEAR, **settings)
    made.save_pretrained(tmp_path)
    undo = lora.merge(unet, [(lora.read(tmp_path).fitted("unet", shapes(unet)), 1.0)])
    np.testing.assert_allclose(drawn(unet), drawn(made), atol=1e-4)
    undo()


def test_diffusers_opens_the_same_files_and_draws_the_same(unet, their_unet, unet_lora):
    import copy

    _, paths = unet_lora
    for path in paths[1:3]:
        theirs = copy.deepcopy(their_unet)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            said = json.loads(safetensors.metadata(path).get(lora.DIFFUSERS_METADATA, "{}"))
            theirs.load_lora_adapter(safetensors.load(path), prefix="unet", metadata=said or None)
        undo = lora.merge(unet, [(lora.read(path).fitted("unet", shapes(unet)), 1.0)])
        np.testing.assert_allclose(drawn(unet), drawn(theirs), atol=1e-4)
        undo()


# spellings


def test_kohya_files_in_the_names_of_single_files_are_read(unet, tmp_path):
    """As SDXL's are: input_blocks, middle_block, output_blocks."""
    dialect = names.ldm_unet(unet.config.layers, [False, True])
    tensors, wanted = {}, {}
    for name, shape in shapes(unet).items():
        if re.fullmatch(f"({LINEAR}|{CONVOLUTIONS})\\.weight", name):
            layer = dialect(name).name.removesuffix(".weight").replace(".", "_")
            down, up = torch.randn(2, *shape[1:]), torch.randn(shape[0], 2, *[1] * (len(shape) - 2))
            tensors |= {f"lora_unet_{layer}.lora_down.weight": down, f"lora_unet_{layer}.lora_up.weight": up}
            wanted[name] = (up.flatten(1) @ down.flatten(1)).reshape(shape).numpy()
    safetensors.save(tmp_path / "xl.safetensors", tensors)
    changes = lora.read(tmp_path / "xl.safetensors").fitted("unet", shapes(unet), lambda name: dialect(name).name)
    assert changes.keys() == wanted.keys()
    assert any(name.startswith("up_blocks.0") for name in changes)
    for name, change in changes.items():
        np.testing.assert_allclose(change.delta(wanted[name].shape), wanted[name], atol=1e-5)


@pytest.mark.parametrize(
    ("spelled", "part", "weight"),
    [
        ("unet.{0}.processor.to_q_lora.{{}}.weight", "unet", "{0}.to_q.weight"),
        ("unet.{0}.processor.to_out_lora.{{}}.weight", "unet", "{0}.to_out.0.weight"),
        ("{0}.processor.to_v_lora.{{}}.weight", "unet", "{0}.to_v.weight"),
        ("text_encoder.{1}.to_q_lora.{{}}.weight", "text_encoder", "{1}.q_proj.weight"),
        ("text_encoder.{2}.q_proj.lora_linear_layer.{{}}.weight", "text_encoder", "{1}.q_proj.weight"),
        ("lora_te1_{3}_q_proj.lora_{{}}.weight", "text_encoder", "{1}.q_proj.weight"),
        ("lora_te2_{3}_q_proj.lora_{{}}.weight", "text_encoder_2", "{1}.q_proj.weight"),
    ],
)
def test_older_spellings_name_the_same_layers(unet, text, tmp_path, spelled, part, weight):
    places = (
        "mid_block.attentions.0.transformer_blocks.0.attn1",
        "text_model.encoder.layers.0.self_attn",
        "encoder.layers.0.self_attn",
        "text_model_encoder_layers_0_self_attn",
    )
    name, spelled = weight.format(*places), spelled.format(*places)
    size = (unet if part == "unet" else text).get_parameter(name).shape
    tensors = {spelled.format("down"): torch.ones(2, size[1]), spelled.format("up"): torch.ones(size[0], 2)}
    safetensors.save(tmp_path / "x.safetensors", tensors)
    changes = lora.read(tmp_path / "x.safetensors").fitted(part, shapes(unet if part == "unet" else text))
    assert list(changes) == [name] and changes[name].scale == 1


def test_a_convolution_in_three_steps_is_the_convolutions_one_after_another():
    generator = torch.Generator().manual_seed(0)
    down, mid, up = (torch.randn(*size, generator=generator) for size in ((3, 8, 1, 1), (3, 3, 3, 3), (6, 3, 1, 1)))
    layer = torch.nn.Conv2d(8, 6, 3, stride=2, padding=1)
    net = torch.nn.ModuleDict({"conv": layer})
    change = Change(down.numpy(), up.numpy(), 0.5, mid.numpy())
    assert change.fits((6, 8, 3, 3)) and not change.fits((6, 8, 1, 1))
    x = torch.randn(1, 8, 6, 6, generator=generator)
    run = torch.nn.functional.conv2d
    expected = layer(x) + 0.5 * run(run(run(x, down), mid, stride=2, padding=1), up)
    for way in (lora.merge, lora.attach):
        undo = way(net, [({"conv.weight": change}, 1.0)])
        np.testing.assert_allclose(layer(x).detach(), expected.detach(), atol=1e-4)
        undo()


# refused


LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
GOOD = {f"{LAYER}.lora_A.weight": torch.ones(2, 32), f"{LAYER}.lora_B.weight": torch.ones(32, 2)}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "holds no tensors"),
        ({f"{LAYER}.lora_A.weight": torch.ones(2, 32)}, "no up matrix"),
        ({"first_stage_model.x": torch.ones(1)}, "is no LoRA: it holds first_stage_model.x"),
        ({f"{LAYER}.hada_w1_a": torch.ones(1, 1)}, "LoHa, which is not known"),
        (GOOD | {f"{LAYER}.dora_scale": torch.ones(32)}, "DoRA"),
        (GOOD | {name.removeprefix("unet."): one for name, one in GOOD.items()}, "two spellings"),
        (GOOD | {f"{LAYER}.alpha": torch.ones(3)}, "wanted one number"),
        (GOOD | {f"{LAYER}.alpha": torch.tensor(float("nan"))}, "not finite"),
        ({name: one.flatten() for name, one in GOOD.items()}, "has matrices"),
        (GOOD | {f"{LAYER}.lora_A.weight": torch.ones(0, 32)}, "has matrices"),
    ],
)
def test_what_is_no_whole_lora_is_refused(tmp_path, tensors, message):
    safetensors.save(tmp_path / "x.safetensors", tensors)
    with pytest.raises(CartoucheError, match=message):
        lora.read(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({name.replace("to_q", "to_x"): one for name, one in GOOD.items()}, "layers that this model's unet has not"),
        ({name: torch.ones(2, 8) for name in GOOD}, "made for a unet of another size"),
        ({name: torch.ones(one.shape[0], 3) for name, one in GOOD.items()}, "another size"),
        (
            GOOD | {f"lora_{name[:-14].replace('.', '_')}{name[-14:]}": one for name, one in GOOD.items()},
            "two spellings",
        ),
        ({name: torch.ones(10**5, 2) if "_B" in name else torch.ones(2, 10**5) for name in GOOD}, "another size"),
    ],
)
def test_a_lora_of_another_model_is_refused_before_anything_is_computed(unet, tmp_path, tensors, message):
    safetensors.save(tmp_path / "x.safetensors", tensors)
    with pytest.raises(CartoucheError, match=message):
        lora.read(tmp_path / "x.safetensors").fitted("unet", shapes(unet))


def test_a_pickle_is_refused_and_peft_without_its_settings_too(unet_lora, tmp_path):
    (tmp_path / "x.pt").write_bytes(b"\x80\x04.")
    with pytest.raises(CartoucheError, match="pickle"):
        lora.read(tmp_path / "x.pt")
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((unet_lora[1][0] / lora.PEFT_WEIGHTS).read_bytes())
    with pytest.raises(CartoucheError, match="adapter_config.json beside it"):
        lora.read(alone)


@pytest.mark.parametrize(
    "said",
    [
        "{",
        "[]",
        "3",
        '{"unet.lora_alpha": "x"}',
        '{"unet.lora_alpha": NaN}',
        '{"unet.lora_alpha": 1' + "0" * 400 + "}",  # no float holds it
        '{"unet.use_dora": true}',
    ],
)
def test_damaged_or_foreign_settings_are_refused(tmp_path, said):
    safetensors.save(tmp_path / "x.safetensors", GOOD, {lora.DIFFUSERS_METADATA: said})
    with pytest.raises(CartoucheError):
        lora.read(tmp_path / "x.safetensors")


def test_the_hash_is_that_of_the_file(unet_lora):
    import hashlib

    _, paths = unet_lora
    assert lora.read(paths[3]).hash == hashlib.sha256(paths[3].read_bytes()).hexdigest()[:10]
    assert lora.read(paths[0]).hash != lora.read(paths[1]).hash
