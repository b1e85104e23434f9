"""Stored latents and captions are those of the scenes, and a denoiser's batches come from them in a fixed order."""

import numpy as np
import pytest
import torch
from toy_pack import write_pack

from cartouche.config import CartoucheError
from cartouche.data.emoji import Pack
from cartouche.data.scenes import Composer
from cartouche.data.streams import Scenes
from cartouche.nets.autoencoder import AutoencoderConfig, AutoencoderKL
from cartouche.text import Tokenizer
from cartouche.train import latents
from cartouche.train.looks import Looks
from cartouche.train.sources import Cached, Tokenized, Turns


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    pack = Pack(write_pack(tmp_path_factory.mktemp("pack")))
    stream = Scenes(pack, Composer(pack.of("train"), seed=1))
    tokenizer = Tokenizer.train([stream[i]["caption"] for i in range(30)], 560, 24)
    torch.manual_seed(0)
    vae = AutoencoderKL(AutoencoderConfig(block_out_channels=(8, 8), norm_num_groups=4, scaling_factor=0.5))
    return stream, tokenizer, vae.eval()


def test_what_is_stored_is_what_the_scenes_are(parts, tmp_path):
    stream, tokenizer, vae = parts
    latents.compute(tmp_path, vae, tokenizer, stream, count=5, captions=2, batch=2)
    source, empty = latents.opened(tmp_path)
    with torch.no_grad():
        image = torch.from_numpy(stream[3]["image"])[None]
        wanted = vae.encode(image).chunk(2, 1)[0] * 0.5
    said = tokenizer.batch([stream.caption(stream.composer[3], 3, which=1)])[0]
    np.testing.assert_allclose(source[3]["latents"], wanted[0], atol=0.02)
    np.testing.assert_array_equal(source[5 + 3]["prompt"], said)  # the second time round, the second caption
    np.testing.assert_array_equal(empty, tokenizer.batch([""])[0])


def test_a_finished_set_is_not_computed_again(parts, tmp_path):
    stream, tokenizer, vae = parts
    latents.compute(tmp_path, vae, tokenizer, stream, count=2, captions=1, batch=2)
    before = (tmp_path / "latents.npy").stat().st_mtime_ns
    latents.compute(tmp_path, vae, tokenizer, stream, count=2, captions=1, batch=2)
    assert (tmp_path / "latents.npy").stat().st_mtime_ns == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(latents.FILES)


def test_a_set_of_other_scenes_words_or_nets_is_refused_and_left_alone(parts, tmp_path):
    stream, tokenizer, vae = parts
    latents.compute(tmp_path, vae, tokenizer, stream, count=3, captions=1)
    before = (tmp_path / "latents.npy").read_bytes()
    torch.manual_seed(1)
    other = AutoencoderKL(vae.config).eval()
    elsewhere = Scenes(stream.pack, Composer(stream.pack.of("train"), seed=2))
    for nets, words, scenes, count, said in [
        (vae, tokenizer, stream, 4, "holds 3 scenes"),
        (other, tokenizer, stream, 3, "of another autoencoder"),
        (vae, tokenizer, elsewhere, 3, "other scenes"),
        (vae, Tokenizer.train(["one"], 514, 24), stream, 3, "other scenes, captions or words"),
    ]:
        with pytest.raises(CartoucheError, match=said):
            latents.compute(tmp_path, nets, words, scenes, count, captions=1)
    assert (tmp_path / "latents.npy").read_bytes() == before
    (tmp_path / "ids.npy").write_bytes(b"")
    with pytest.raises(CartoucheError, match="no latents that can be read"):
        latents.compute(tmp_path, vae, tokenizer, stream, count=3, captions=1)


def test_a_gathered_batch_is_its_samples_and_captions_take_turns():
    source = Cached(np.arange(3.0).reshape(3, 1, 1, 1), np.arange(6).reshape(6, 1))
    batch = source.gather(list(range(7)))
    assert batch["latents"].ravel().tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert batch["prompt"].ravel().tolist() == [0, 2, 4, 1, 3, 5, 0]
    assert source[4]["prompt"].ravel().tolist() == [3]


def test_the_scale_makes_latents_unit(parts):
    stream, _, vae = parts
    factor = latents.latent_scale(vae, stream, count=64)
    with torch.no_grad():
        means = vae.encode(torch.stack([torch.from_numpy(stream[i]["image"]) for i in range(64)])).chunk(2, 1)[0]
    assert float((means * factor).std()) == pytest.approx(1, abs=1e-3)


def test_captions_become_ids_and_nothing_else_changes(parts):
    stream, tokenizer, _ = parts
    sample = Tokenized(stream, tokenizer)[7]
    np.testing.assert_array_equal(sample["ids"], tokenizer.batch([stream[7]["caption"]])[0])
    np.testing.assert_array_equal(sample["image"], stream[7]["image"])
    assert "caption" not in sample


def test_sources_take_turns_in_runs_and_keep_their_own_order():
    turns = Turns([[{"n": i} for i in range(10)], [{"n": -i} for i in range(10)]], run=2)
    assert [turns[i]["n"] for i in range(10)] == [0, 1, 0, -1, 2, 3, -2, -3, 4, 5]


def test_what_makes_no_samples_is_refused(parts, tmp_path):
    stream, tokenizer, vae = parts
    with pytest.raises(CartoucheError, match="runs of 0 samples"):
        Turns([stream], 0)
    with pytest.raises(CartoucheError, match="crop=999 given for pictures of 128 pixels"):
        Scenes(stream.pack, stream.composer, crop=999)[0]
    with pytest.raises(CartoucheError, match="0 scenes asked"):
        latents.compute(tmp_path, vae, tokenizer, stream, count=0)
    with pytest.raises(CartoucheError, match="captions=3 asked in batches of 4"):
        Looks.of(stream, tokenizer, lambda placed: np.zeros(2), count=3, batch=4)
