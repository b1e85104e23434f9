"""Three independent readers of one picture: which of several prompts is it of, and do they agree?

Each gives every candidate prompt a number, the higher the likelier: the contrastive reader the likeness of picture and
prompt; the describing reader how many facts of its own caption the prompt shares; and the drawer how well it takes
noise out of the picture while it listens to the prompt (Li et al. 2023, "Your Diffusion Model is Secretly a Zero-Shot
Classifier"; Clark and Jaini 2023). They were trained apart, for different things, so where they agree there is reason
to believe them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cartouche.config import CartoucheError
from cartouche.data.graphs import Lexicon, graph_f1
from cartouche.diffusion.noise import NoiseSource
from cartouche.diffusion.prediction import target
from cartouche.draw.model import Model
from cartouche.measure.reading import Describes
from cartouche.read.match import Matcher

LEVELS = 12
NOISE_SEED = 303


def contrastive(matcher: Matcher, picture: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    """Cosine of the picture (3, H, W) in [-1, 1] with every prompt: (C,)."""
    likeness: np.ndarray = matcher.texts(prompts) @ matcher.images(picture[None])[0]
    return likeness


def describing(
    describer: Describes, lexicon: Lexicon, picture: np.ndarray, prompts: Sequence[str], language: str = "en"
) -> np.ndarray:
    """Graph-F1 of the describer's caption of the picture with every prompt: (C,)."""
    said = lexicon.parse(describer.caption(picture[None], language)[0].text, language)
    return np.array([graph_f1(said, lexicon.parse(prompt, language)) for prompt in prompts])


def denoising(
    model: Model, picture: np.ndarray, prompts: Sequence[str], levels: int = LEVELS, seed: int = NOISE_SEED
) -> np.ndarray:
    """Less the drawer's mean squared error under every prompt, (C,): the loss it learned by (Li et al. 2023, eq. 5).

    Over `levels` rungs of the ladder, each with noise of its own that all prompts share: what remains of the difference
    between two prompts is the prompts' (section 3.3 there). Raises CartoucheError for a model of another layout.
    """
    if model.sized or model.edits:
        raise CartoucheError(f"{model.name} is told more than a prompt; give a plain text-to-image model")
    x0 = model.latents(picture[None])
    states = np.concatenate([model.encode(prompt).context for prompt in prompts])  # (C, N, D)
    noise = NoiseSource(seed=seed, indices=[0], shape=x0.shape[1:])
    net, errors = model.net("unet"), np.zeros(len(prompts))
    rungs = [one for one in model.ladder("ddim").levels(levels) if float(one.sigma) > 0]
    for step, level in enumerate(rungs):
        eps = np.asarray(noise(step), np.float32)
        x = np.repeat(np.asarray(level.alpha * x0 + level.sigma * eps, np.float32), len(prompts), axis=0)
        timestep = np.full(len(prompts), level.t, np.float32)
        out = net(sample=x, timestep=timestep, encoder_hidden_states=states)
        wanted = target(model.kind, x0, eps, level)
        errors += np.square(out - wanted).mean(axis=(1, 2, 3)) / len(rungs)
    return -errors


def preference(scores: np.ndarray) -> float:
    """How far the first candidate is preferred: the share of the others that it beats, ties counting one half."""
    first, others = scores[0], scores[1:]
    if not len(others):
        raise CartoucheError("one candidate given; there is nothing to prefer it to")
    return float(((first > others) + 0.5 * (first == others)).mean())


def agreement(readers: Mapping[str, np.ndarray]) -> float:
    """How far the readers agree that the picture is of the first candidate: the mean of their preferences, 0 to 1."""
    return float(np.mean([preference(scores) for scores in readers.values()]))
