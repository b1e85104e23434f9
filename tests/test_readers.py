"""Three readers of one picture prefer what is true of it, and the drawer's error is that of its own training."""

from types import SimpleNamespace

import numpy as np
import pytest
from toy_pack import MORE_THINGS, write_pack

from cartouche.config import CartoucheError
from cartouche.data.emoji import Pack
from cartouche.data.graphs import Lexicon
from cartouche.diffusion.prediction import target
from cartouche.diffusion.schedule import from_config
from cartouche.draw.model import Model
from cartouche.measure import readers

PICTURE = np.zeros((3, 16, 16), np.float32)


class Knowing:
    """A drawer that takes all noise out where the prompt is 1, and leaves what belongs to it where it is not."""

    sized = edits = False
    kind = "v_prediction"
    name = "knowing"

    def __init__(self):
        self.x0 = np.random.default_rng(0).normal(size=(1, 4, 8, 8)).astype(np.float32)
        ladder = {"num_train_timesteps": 100, "beta_schedule": "linear", "beta_start": 1e-3, "beta_end": 0.1}
        self.rungs = from_config(ladder)
        self.seen = []

    def latents(self, images):
        return self.x0

    def encode(self, prompt):
        return SimpleNamespace(context=np.full((1, 1, 1), float(prompt), np.float32))

    def ladder(self, sampler):
        return self.rungs

    def net(self, part):
        def unet(sample, timestep, encoder_hidden_states):
            level = min((one for one in self.rungs.levels(4)), key=lambda one: abs(one.t - timestep[0]))
            eps = (sample - level.alpha * self.x0) / level.sigma
            self.seen.append(eps)
            off = 1 - encoder_hidden_states.reshape(-1, 1, 1, 1)
            return target(self.kind, self.x0, eps, level) + off

        return unet


def test_the_drawers_error_is_how_far_its_prediction_is_off():
    scores = readers.denoising(Knowing(), PICTURE, ["1", "0.5", "0"], levels=4)
    np.testing.assert_allclose(scores, [0, -0.25, -1], atol=1e-5)


def test_all_prompts_hear_the_same_noise_and_every_level_another():
    model = Knowing()
    readers.denoising(model, PICTURE, ["1", "0"], levels=4)
    assert len(model.seen) == 4
    for eps in model.seen:
        np.testing.assert_allclose(eps[0], eps[1], atol=1e-4)
    assert not np.allclose(model.seen[0], model.seen[1], atol=0.1)
    again = Knowing()
    readers.denoising(again, PICTURE, ["0", "1", "1"], levels=4)
    np.testing.assert_allclose(again.seen[2][0], model.seen[2][0], atol=1e-4)


def test_a_real_model_scores_a_prompt_alike_in_any_company(tiny_model):
    model = Model(tiny_model, precision="fp32")
    picture = np.random.default_rng(1).uniform(-1, 1, (3, 16, 16)).astype(np.float32)
    alone = readers.denoising(model, picture, ["a red apple"], levels=3)
    both = readers.denoising(model, picture, ["two green frogs", "a red apple"], levels=3)
    np.testing.assert_allclose(both[1], alone[0], rtol=1e-4)
    assert both[0] != both[1]


def test_a_model_that_wants_more_than_a_prompt_is_refused():
    model = Knowing()
    model.sized = True
    with pytest.raises(CartoucheError, match="plain text-to-image"):
        readers.denoising(model, PICTURE, ["1"])


def test_the_describing_reader_prefers_the_prompt_that_says_what_it_says(tmp_path):
    lexicon = Lexicon(Pack(write_pack(tmp_path, MORE_THINGS)).drawings)
    describer = SimpleNamespace(
        caption=lambda pictures, language: [SimpleNamespace(text="two red cherries on a blue background, flat style")]
    )
    prompts = ["two red cherries on blue", "two kites on blue", "a cherry on green"]
    scores = readers.describing(describer, lexicon, PICTURE, prompts)
    assert scores.argmax() == 0
    assert scores[0] == pytest.approx(2 * 4 / (4 + 5))


def test_the_contrastive_reader_gives_cosines():
    units = {"a": [1.0, 0.0], "b": [0.0, 1.0]}
    matcher = SimpleNamespace(
        texts=lambda texts: np.array([units[one] for one in texts]), images=lambda pictures: np.array([[0.8, 0.6]])
    )
    np.testing.assert_allclose(readers.contrastive(matcher, PICTURE, ["a", "b"]), [0.8, 0.6])


def test_preference_is_the_share_that_is_beaten_and_agreement_their_mean():
    assert readers.preference(np.array([2.0, 1.0, 3.0, 2.0])) == pytest.approx(0.5)
    assert readers.agreement({"x": np.array([1.0, 0.0]), "y": np.array([0.0, 1.0])}) == 0.5
    with pytest.raises(CartoucheError, match="nothing to prefer"):
        readers.preference(np.array([1.0]))
