"""Words to pictures: the prompt becomes states, noise becomes latents step by step, latents become pixels.

As a program says it:

    painter = Painter()                                  # the built-in model
    for step in painter.trace("a red apple", seed=7):    # every step: noise, clean estimate, both guidance passes
        show(step.images())
    picture = painter.draw("a red apple", seed=7)[0]     # the last of the same steps, decoded
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

import cartouche
from cartouche import images
from cartouche.config import CartoucheError
from cartouche.diffusion import guidance, samplers, schedule
from cartouche.diffusion.noise import NoiseSource
from cartouche.draw.edit import Given, Original, Way, into, opened
from cartouche.draw.model import Context, Model
from cartouche.draw.recipe import Recipe, Request, checked
from cartouche.draw.reuse import Reused
from cartouche.engine import Net
from cartouche.prompt import CHUNKS
from cartouche.text import CutWarning as CutWarning


class Told(NamedTuple):
    """What the U-Net is told with the prompt, and without it; cut: the words of both that did not fit."""

    words: Context
    empty: Context
    cut: tuple[str, ...]


@dataclass(frozen=True)
class Picture:
    """One finished drawing. pixels: (H, W, 3) uint8."""

    pixels: np.ndarray
    recipe: Recipe


@dataclass(frozen=True)
class Step:
    """One finished step of a drawing of B pictures; arrays are latents (B, C, h, w).

    level: where the step began. x: where it ended, still noisy but for the last. x0: the clean estimate made at its
    beginning.
    conditional, unconditional: the clean estimates of the two guidance passes, None for one that was not made.
    """

    index: int
    total: int
    level: schedule.Level
    x: np.ndarray
    x0: np.ndarray
    conditional: np.ndarray | None
    unconditional: np.ndarray | None
    painter: Painter = field(repr=False)
    recipes: tuple[Recipe, ...] = field(repr=False)
    original: Original | None = field(default=None, repr=False)

    @property
    def last(self) -> bool:
        """Whether x is the drawing itself."""
        return self.index == self.total - 1

    def images(self, latents: np.ndarray | None = None) -> np.ndarray:
        """The clean estimate as an image, or other latents of this step: (B, 3, H, W) in about [-1, 1].

        By the model's preview, if it was opened with one.
        """
        return self.painter.glance(self.x0 if latents is None else latents, self.recipes[0].tiled)

    def pictures(self) -> list[Picture]:
        """x decoded, with the recipe of each picture: of the last step, the finished drawings."""
        pixels = images.to_uint8(self.painter.decode(self.x, self.recipes[0].tiled))
        pixels = self.original.paste(pixels) if self.original else pixels
        return [Picture(one, recipe) for one, recipe in zip(pixels, self.recipes, strict=True)]


class Painter(Model):
    """A model that draws; opened as `model.Model` says."""

    def trace(
        self,
        prompt: str,
        *,
        size: int | tuple[int, int] | None = None,
        image: Given | None = None,
        mask: Given | None = None,
        **settings: Any,
    ) -> Iterator[Step]:
        """Every step of a drawing, as it is made; closing the iterator ends the drawing.

        size: pixels, one number or (width, height). image: a picture to draw into, as far as strength=0.6 says; mask:
        what of it is painted; see edit.py. settings: the fields of `recipe.Request`, as in seed=7, count=4,
        negative_prompt="grey", guidance_scale=5, num_inference_steps=20, sampler="ddim". They are checked now, not at
        the first step.
        Raises CartoucheError for a setting that cannot be; warns with CutWarning where a prompt was too long.
        """
        request = checked(prompt, size, settings, self.shrink, self.size)
        original, request = self._original(request, image, mask)
        levels = self.ladder(request.sampler).levels(request.num_inference_steps)
        told = self._told(request)
        recipes = self._recipes(request, told.cut, original)
        noise = self._noise(recipes)
        step = samplers.sampler(request.sampler)
        if original is None:
            return self._walk(Way(noise(0), levels, step), told, request, recipes, noise)
        known = self.latents(original.images)
        if original.strength == 0:
            x = np.repeat(known, request.count, axis=0)
            return iter([Step(0, 1, schedule.CLEAN, x, x, None, None, self, recipes, original)])
        masked = self.latents(original.without()) if self.edits else None
        way = into(original, known, noise(0), levels, step, self.shrink, masked)
        return self._walk(way, told, request, recipes, noise)

    def draw(self, prompt: str, **settings: Any) -> list[Picture]:
        """The finished drawings: the last item of `trace`, decoded. Takes what `trace` takes."""
        last = deque(self.trace(prompt, **settings), maxlen=1)  # of a thousand pictures no other step fits in memory
        return last[0].pictures()

    def redraw(self, recipe: Recipe, image: Given | None = None, mask: Given | None = None) -> Picture:
        """The picture of a recipe again: the same pixels on the same engine and machine.

        image, mask: what it was drawn into. Raises CartoucheError where the recipe was made with another model, other
        adapters or another picture.
        """
        if recipe.vae != self.vae_hash:
            asked = f"autoencoder {recipe.vae}; give it with --vae" if recipe.vae else "the model's own autoencoder"
            raise CartoucheError(f"the recipe is of a drawing with {asked}, not {self.vae_hash or 'the own one'}")
        if recipe.model_hash != self.hash:
            asked, here = f"{recipe.model} ({recipe.model_hash})", f"{self.name} ({self.hash})"
            raise CartoucheError(f"the recipe is of model {asked}, this is {here}; open that one")
        recipe.check_given({"image": image is not None, "mask": mask is not None}, self.adapters.used)
        if recipe.prediction != self.prediction:
            raise CartoucheError(f"the recipe is of a drawing with prediction={recipe.prediction or None}; give that")
        request = recipe.request()
        original, _ = self._original(request, image, mask)
        if original is not None:
            recipe.check_hashes({"image": original.picture_hash, "mask": original.mask_hash})
        settings = {name: value for name, value in vars(request).items() if name != "prompt"}
        return self.draw(request.prompt, image=image, mask=mask, **settings)[0]

    def _original(self, request: Request, image: Given | None, mask: Given | None) -> tuple[Original | None, Request]:
        """What is drawn into, if anything, and the request as it then is. CartoucheError where that cannot be."""
        taken = int(self._unet.get("in_channels", 4))
        if taken not in (self.channels, 2 * self.channels + 1):
            raise CartoucheError(f"this U-Net takes {taken} channels, latents have {self.channels}; open another model")
        if image is not None:
            return opened(image, mask, request, self.size, self.shrink)
        if self.edits:
            raise CartoucheError(f"this U-Net takes {taken} channels: it draws into pictures; give it one, and a mask")
        if mask is not None or request.strength is not None:
            given = "strength" if mask is None else "mask"
            raise CartoucheError(f"{given} given, and no picture to draw into; give image too, or leave it out")
        return None, request

    def _told(self, request: Request) -> Told:
        """What the two passes are told of the prompts and the size."""
        words, empty = self.both(request.prompt, request.negative_prompt, request.clip_skip)
        for cut in filter(None, (words.cut, empty.cut)):
            most = CHUNKS * (self.tokenizer.context - 2)
            said = f"the prompt is longer than {most} tokens; left out: {' '.join(cut)}"
            warnings.warn(said, CutWarning, stacklevel=3)
        told = Told(words.context, empty.context, words.cut + empty.cut)
        if not self.sized:
            return told
        width, height = self._size(request)
        sizes = {"time_ids": np.array([[height, width, 0, 0, height, width]])}  # of the source, its corner, as wanted
        return told._replace(words=told.words | sizes, empty=told.empty | sizes)

    def _size(self, request: Request) -> tuple[int, int]:
        """(width, height) in pixels."""
        return request.width or self.size[0], request.height or self.size[1]

    def _recipes(self, request: Request, cut: tuple[str, ...], original: Original | None) -> tuple[Recipe, ...]:
        shared = {name: value for name, value in vars(request).items() if name not in ("count", "index")}
        shared["width"], shared["height"] = self._size(request)
        shared |= {"model": self.name, "model_hash": self.hash, "engine": self.engine, "cut": cut}
        shared |= {"precision": self.net("unet").precision, "version": cartouche.__version__}
        shared |= {"adapters": self.adapters.used, "vae": self.vae_hash, "prediction": self.prediction}
        if original is not None:
            shared |= {"image": original.picture_hash, "mask": original.mask_hash}
        return tuple(Recipe(index=request.index + i, **shared) for i in range(request.count))

    def _noise(self, recipes: Sequence[Recipe]) -> NoiseSource:
        """The noise of these pictures: (B, C, h, w) for each step, that of step 0 being the start."""
        shape = self.channels, recipes[0].height // self.shrink, recipes[0].width // self.shrink
        return NoiseSource(seed=recipes[0].seed, indices=[one.index for one in recipes], shape=shape)

    def _walk(
        self, way: Way, told: Told, request: Request, recipes: tuple[Recipe, ...], noise: NoiseSource
    ) -> Iterator[Step]:
        """The steps from the beginning of a way down to the drawing."""
        seen: list[guidance.Passes] = []
        denoise = guidance.guided(
            self._predict(len(way.x), way.beside, request.cache_interval),
            self.kind,
            told.words,
            told.empty,
            request.guidance_scale,
            request.guidance_rescale,
            request.guidance_interval,
            seen.append,
        )
        steps = samplers.sample(denoise, way.x, way.levels, way.step, noise)
        return self._steps(guidance.attach(steps, seen), recipes, way.original)

    def _predict(self, count: int, beside: np.ndarray | None, interval: int) -> guidance.ConditionalNet:
        """The U-Net for a batch of `count` pictures, or of both passes of each, `batch` pictures at a time.

        beside: (1, E, h, w), further channels that it sees of each picture. interval: of its deep part, see reuse.py.
        However many are drawn, a picture goes through the net in the same company, so its numbers stay the same to the
        last bit.
        """
        nets = [self._denoiser(interval) for _ in range(0, count, self.batch)]

        def predict(x: np.ndarray, t: float, context: Context) -> np.ndarray:
            told = context if isinstance(context, dict) else {"encoder_hidden_states": context}
            out = np.empty_like(x)
            passes = np.arange(len(x)).reshape(-1, count)  # (passes, pictures)
            for start, net in zip(range(0, count, self.batch), nets, strict=True):
                rows = passes[:, start : start + self.batch].ravel()
                timestep = np.full(len(rows), t, np.float32)
                own = {name: part[rows] for name, part in told.items()}
                seen = [x[rows]] if beside is None else [x[rows], np.repeat(beside, len(rows), axis=0)]
                out[rows] = net(sample=np.concatenate(seen, axis=1), timestep=timestep, **own)
            return out

        return predict

    def _denoiser(self, interval: int) -> Net:
        """The U-Net, or the one that reuses what it found. Raises CartoucheError where that cannot be."""
        if interval == 1:
            return self.net("unet")
        if self.engine == "openvino" or self.sized:
            what = "a U-Net that is told sizes" if self.sized else f"the engine {self.engine}"
            raise CartoucheError(f"cache_interval={interval} given for {what}; use engine=torch and SD 1 or 2, or 1")
        return Reused(self.net("unet", "deep"), self.net("unet", "shallow"), interval)

    def _steps(
        self, steps: Iterator[samplers.Step], recipes: tuple[Recipe, ...], original: Original | None
    ) -> Iterator[Step]:
        with closing(steps) as walk:  # type: ignore[type-var]
            for one in walk:
                passes = one.passes.conditional, one.passes.unconditional
                yield Step(one.number - 1, one.total, one.here, one.x, one.x0, *passes, self, recipes, original)
