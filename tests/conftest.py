"""What several rooms' tests share: a whole model, tiny and random, in the layout of real ones."""

import pytest
from hypothesis import settings

settings.register_profile("house", deadline=None, derandomize=True)  # the same examples everywhere, however slow
settings.load_profile("house")

WIDTH = 32
CONTEXT = 16
CAPTIONS = ("a red apple on a blue background, flat style", "two green frogs", "une pomme rouge", "a cat left of a dog")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A diffusers-layout folder of random nets with their graphs: pictures of 16x16 and up, milliseconds a step."""
    import torch

    from cartouche.nets.autoencoder import AutoencoderConfig, AutoencoderKL
    from cartouche.nets.clip import CLIPTextConfig, CLIPTextModel
    from cartouche.nets.unet import UNet2DConditionModel, UNetConfig
    from cartouche.text import Tokenizer
    from cartouche.weights import folder, graph

    path = tmp_path_factory.mktemp("tiny") / "model"
    tokenizer = Tokenizer.train(CAPTIONS, vocab_size=600, context=CONTEXT)
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.start_id,
        eos_token_id=tokenizer.end_id,
    )
    unet = UNetConfig(
        sample_size=8,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        cross_attention_dim=WIDTH,
        layers_per_block=1,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    vae = AutoencoderConfig(block_out_channels=(8, 16), norm_num_groups=4, sample_size=16)
    ladder = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    nets = UNet2DConditionModel(unet), AutoencoderKL(vae), CLIPTextModel(text)
    folder.save_pipeline(path, *nets, tokenizer, {**ladder, "prediction_type": "v_prediction"})
    graph.export(path)
    return path


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Compiled graphs of tests go to a folder of theirs, not to the user's."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture
def one_thread():
    """torch on one thread: sums in one order, whatever the machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
