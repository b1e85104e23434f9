"""Words to pictures: the prompt becomes states, noise becomes latents step by step, latents become pixels.

As a program says it:

    painter = Painter()                                  # the built-in model
    for step in painter.trace("a red apple", seed=7):    # every step: noise, clean estimate, both guidance passes
        show(step.images())
    picture = painter.draw("a red apple", seed=7)[0]     # the last of the same steps, decoded
"""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import cartouche
from cartouche import images
from cartouche.config import CartoucheError, unknown
from cartouche.device import Precision
from cartouche.diffusion import guidance, samplers, schedule
from cartouche.diffusion.noise import NoiseSource
from cartouche.diffusion.prediction import kind_of
from cartouche.draw.recipe import Recipe, Request, checked
from cartouche.engine import PRECISIONS, Net, OpenVINONet, TorchNet
from cartouche.text import Tokenizer
from cartouche.weights import folder as folders
from cartouche.weights.builtin import builtin

ENGINES = ("auto", "openvino", "torch")
GRAPHS = {"text_encoder": "graph.onnx", "unet": "graph.onnx", "vae": "decoder.onnx"}
REMEMBERED = 256  # prompts whose states are kept


class CutWarning(UserWarning):
    """The end of a prompt did not fit the text tower and was left out."""


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

    @property
    def last(self) -> bool:
        """Whether x is the drawing itself."""
        return self.index == self.total - 1

    def images(self, latents: np.ndarray | None = None) -> np.ndarray:
        """The clean estimate decoded, or other latents of this step: (B, 3, H, W) in about [-1, 1]."""
        return self.painter.decode(self.x0 if latents is None else latents)

    def pictures(self) -> list[Picture]:
        """x decoded, with the recipe of each picture: of the last step, the finished drawings."""
        pixels = images.to_uint8(self.painter.decode(self.x))
        return [Picture(one, recipe) for one, recipe in zip(pixels, self.recipes, strict=True)]


class Painter:
    """An opened model: any folder in diffusers' Stable Diffusion layout.

    folder: None is the built-in model. engine: "openvino" runs the graphs beside the weights, "torch" builds the nets
    from the weights, "auto" takes openvino where the folder has graphs. precision: "auto" is bf16 where the processor
    has it.
    device: for torch, as in device.py. batch: how many pictures go through the nets together; at 1 a picture's
    pixels do not depend on its neighbours by a single bit, more may be faster on a GPU.
    Nets are opened when first needed. Raises CartoucheError where the folder or an option cannot be used.
    """

    def __init__(
        self,
        folder: Path | str | None = None,
        engine: str = "auto",
        precision: Precision = "auto",
        device: str = "auto",
        batch: int = 1,
    ) -> None:
        self.folder = builtin() if folder is None else Path(folder)
        self.engine = _engine(self.folder, engine)
        self.asked_precision = precision
        self.device = device
        self.batch = batch
        if precision not in PRECISIONS:
            raise unknown("precision", precision, PRECISIONS)
        if batch < 1:
            raise CartoucheError(f"batch={batch} given; choose 1 or more")
        self._scheduler = folders.read_json(self.folder / "scheduler" / "scheduler_config.json")
        self._unet = folders.read_json(self.folder / "unet" / "config.json")
        self._vae = folders.read_json(self.folder / "vae" / "config.json")
        _check_drawable(self._unet, self._vae)
        self.kind = kind_of(self._scheduler)
        self.tokenizer = Tokenizer.load(self.folder / "tokenizer")
        self.shrink = 2 ** (len(self._vae["block_out_channels"]) - 1)
        self._states: dict[str, tuple[np.ndarray, tuple[str, ...]]] = {}
        self._opening = threading.RLock()
        self._nets: dict[str, Net] = {}

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels that the model was trained for."""
        cells = self._unet.get("sample_size") or 64
        height, width = (cells, cells) if isinstance(cells, int) else cells
        return width * self.shrink, height * self.shrink

    @property
    def name(self) -> str:
        """The model's name, without the place where it lies."""
        return self.folder.resolve().name

    @cached_property
    def hash(self) -> str:
        """Ten hexadecimal digits of a sha256 over all that shapes a picture: weights, ladder, vocabulary."""
        parts = [folders.weights_file(self.folder / part) for part in GRAPHS]
        parts += sorted([*self.folder.glob("scheduler/*.json"), *self.folder.glob("tokenizer/*.json")])
        digest = hashlib.sha256()
        for path in parts:
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:10]

    def trace(self, prompt: str, *, size: int | tuple[int, int] | None = None, **settings: Any) -> Iterator[Step]:
        """Every step of a drawing, as it is made; closing the iterator ends the drawing.

        size: pixels, one number or (width, height). settings: the fields of `recipe.Request`, as in seed=7, count=4,
        negative_prompt="grey", guidance_scale=5, num_inference_steps=20, sampler="ddim". They are checked now, not at
        the first step.
        Raises CartoucheError for a setting that cannot be; warns with CutWarning where a prompt was too long.
        """
        request = checked(prompt, size, settings, self.shrink)
        levels = self._ladder(request.sampler).levels(request.num_inference_steps)
        states, cut = self._encoded(request.prompt)
        empty, cut_too = self._encoded(request.negative_prompt)
        recipes = self._recipes(request, (*cut, *cut_too))
        noise = NoiseSource(
            seed=recipes[0].seed,
            indices=[one.index for one in recipes],
            shape=(self._unet["in_channels"], recipes[0].height // self.shrink, recipes[0].width // self.shrink),
        )
        seen: list[guidance.Passes] = []
        denoise = guidance.guided(
            self._predict(request.count),
            self.kind,
            states,
            empty,
            request.guidance_scale,
            request.guidance_rescale,
            request.guidance_interval,
            seen.append,
        )
        steps = samplers.sample(denoise, noise(0), levels, samplers.sampler(request.sampler), noise)
        return self._steps(guidance.attach(steps, seen), recipes)

    def draw(self, prompt: str, *, size: int | tuple[int, int] | None = None, **settings: Any) -> list[Picture]:
        """The finished drawings: the last item of `trace`, decoded. Takes what `trace` takes."""
        *_, last = self.trace(prompt, size=size, **settings)
        return last.pictures()

    def redraw(self, recipe: Recipe) -> Picture:
        """The picture of a recipe again: the same pixels on the same engine and machine.

        Raises CartoucheError where the recipe was made with another model.
        """
        if recipe.model_hash != self.hash:
            asked, here = f"{recipe.model} ({recipe.model_hash})", f"{self.name} ({self.hash})"
            raise CartoucheError(f"the recipe is of model {asked}, this is {here}; open that one")
        request = recipe.request()
        settings = {name: value for name, value in vars(request).items() if name != "prompt"}
        return self.draw(request.prompt, **settings)[0]

    def encode(self, prompt: str) -> tuple[np.ndarray, tuple[str, ...]]:
        """The states of a prompt, (1, N, D), and the words that did not fit. Remembered for the next time."""
        if prompt not in self._states:
            encoded = self.tokenizer.encode(prompt)
            states, _ = self.net("text_encoder")(ids=encoded.ids[None])
            while len(self._states) >= REMEMBERED:
                self._states.pop(next(iter(self._states)), None)
            self._states[prompt] = states, encoded.cut
        return self._states[prompt]

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Latents (B, C, h, w) as the U-Net knows them to images (B, 3, H, W) in about [-1, 1]."""
        z = latents / self._vae.get("scaling_factor", 0.18215) + (self._vae.get("shift_factor") or 0.0)
        z = np.asarray(z, np.float32)
        parts = [self.net("vae")(z=z[i : i + self.batch]) for i in range(0, len(z), self.batch)]
        return np.concatenate(parts)

    def net(self, part: str) -> Net:
        """One of the model's nets, opened the first time: "text_encoder", "unet" or "vae" (its decoder)."""
        with self._opening:
            if part not in self._nets:
                self._nets[part] = self._open(part)
            return self._nets[part]

    def _open(self, part: str) -> Net:
        precision = self.asked_precision
        if part == "text_encoder" and precision == "auto":
            precision = "fp32"  # it runs once a prompt: nothing to gain
        if self.engine == "openvino":
            return OpenVINONet(self.folder / part / GRAPHS[part], precision)
        from cartouche.device import choose

        module = folders.load_net(self.folder / part, choose(self.device))
        return TorchNet(module, precision, "decode" if part == "vae" else "forward")

    def _encoded(self, prompt: str) -> tuple[np.ndarray, tuple[str, ...]]:
        states, cut = self.encode(prompt)
        if cut:
            room = self.tokenizer.context - 2
            said = f"the prompt is longer than {room} tokens; left out: {' '.join(cut)}"
            warnings.warn(said, CutWarning, stacklevel=3)
        return states, cut

    def _ladder(self, name: str) -> schedule.Ladder:
        """The model's ladder, walked as the scheduler class of this sampler walks it."""
        own = str(self._scheduler.get("_class_name", ""))
        classes = {sampler: kind for kind, sampler in reversed(samplers.ALIASES.items()) if not kind.startswith("Flow")}
        straight = self.kind == "flow" or samplers.ALIASES.get(own) == name
        return schedule.from_config(self._scheduler, None if straight else classes[samplers.ALIASES.get(name, name)])

    def _recipes(self, request: Request, cut: tuple[str, ...]) -> tuple[Recipe, ...]:
        shared = {name: value for name, value in vars(request).items() if name not in ("count", "index")}
        shared["width"], shared["height"] = (request.width or self.size[0], request.height or self.size[1])
        shared |= {"model": self.name, "model_hash": self.hash, "engine": self.engine, "cut": cut}
        shared |= {"precision": self.net("unet").precision, "version": cartouche.__version__}
        return tuple(Recipe(index=request.index + i, **shared) for i in range(request.count))

    def _predict(self, count: int) -> guidance.ConditionalNet:
        """The U-Net for a batch of `count` pictures, or of both passes of each, `batch` pictures at a time.

        However many are drawn, a picture goes through the net in the same company, so its numbers stay the same to the
        last bit.
        """
        net = self.net("unet")

        def predict(x: np.ndarray, t: float, context: np.ndarray) -> np.ndarray:
            out = np.empty_like(x)
            passes = np.arange(len(x)).reshape(-1, count)  # (passes, pictures)
            for start in range(0, count, self.batch):
                rows = passes[:, start : start + self.batch].ravel()
                timestep = np.full(len(rows), t, np.float32)
                out[rows] = net(sample=x[rows], timestep=timestep, encoder_hidden_states=context[rows])
            return out

        return predict

    def _steps(self, steps: Iterator[samplers.Step], recipes: tuple[Recipe, ...]) -> Iterator[Step]:
        with closing(steps) as opened:  # type: ignore[type-var]
            for one in opened:
                conditional, unconditional = one.passes.conditional, one.passes.unconditional
                yield Step(
                    one.number - 1, one.total, one.here, one.x, one.x0, conditional, unconditional, self, recipes
                )


def _check_drawable(unet: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    """Refuse models that need more than a prompt to draw."""
    latent, taken = vae.get("latent_channels", 4), unet.get("in_channels", 4)
    if taken != latent:
        raise CartoucheError(
            f"this U-Net takes {taken} channels, latents have {latent}: it edits pictures; open another"
        )
    if unet.get("addition_embed_type"):
        raise CartoucheError(
            "this U-Net wants sizes and a second text tower (SDXL), which is not drawn yet; open another"
        )


def _engine(folder: Path, engine: str) -> str:
    """The engine for this folder, or a CartoucheError where it cannot be: no folder, no graphs."""
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if not (folder / "model_index.json").is_file():
        what = "holds no model" if folder.is_dir() else "does not exist"
        raise CartoucheError(f"model folder {folder} {what}; wanted model_index.json, unet/, vae/, text_encoder/")
    missing = [f"{part}/{graph}" for part, graph in GRAPHS.items() if not (folder / part / graph).is_file()]
    if engine == "openvino" and missing:
        raise CartoucheError(f"{folder} has no {missing[0]}; write the graphs with `cartouche weights export {folder}`")
    return "torch" if engine == "torch" or missing else "openvino"
