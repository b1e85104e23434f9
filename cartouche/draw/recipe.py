"""What a drawing is asked for, and what it takes to draw one picture again."""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Mapping
from typing import Any

from cartouche.config import CartoucheError, fill, plain
from cartouche.diffusion.noise import check_seed
from cartouche.diffusion.samplers import sampler

STEPS = 20
GUIDANCE_SCALE = 5.0
SAMPLER = "dpmpp_2m"
LARGEST_SEED = 2**32 - 1  # of seeds that are chosen for you: short enough to type


@dataclasses.dataclass(frozen=True)
class Request:
    """Everything a drawing can be asked for, in the ecosystem's words.

    guidance_scale: 1 is neutral, 0 ignores the prompt. guidance_rescale, guidance_interval: see diffusion/guidance.py.
    seed: None chooses one. index: which picture of the seed comes first; count: how many, from there on.
    width, height: pixels; None is the model's own size.
    """

    prompt: str
    negative_prompt: str = ""
    guidance_scale: float = GUIDANCE_SCALE
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    num_inference_steps: int = STEPS
    sampler: str = SAMPLER
    seed: int | None = None
    index: int = 0
    count: int = 1
    width: int | None = None
    height: int | None = None


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that draws one picture again: its request, and the model and the machinery that drew it.

    cut: the words of both prompts that did not fit the text tower and were left out.
    """

    prompt: str
    negative_prompt: str
    guidance_scale: float
    guidance_rescale: float
    guidance_interval: tuple[float, float]
    num_inference_steps: int
    sampler: str
    seed: int
    index: int
    width: int
    height: int
    model: str
    model_hash: str
    engine: str
    precision: str
    version: str
    cut: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return dict(plain(self))

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Recipe:
        """A recipe read from a picture. Raises CartoucheError where a part is missing, unknown or of another kind."""
        read: Recipe = fill(cls, given, "recipe.")  # type: ignore[arg-type]
        return read

    def request(self) -> Request:
        """What to ask for to get this one picture again."""
        return Request(**{field.name: getattr(self, field.name) for field in _asked if field.name != "count"})


_asked = dataclasses.fields(Request)


def checked(prompt: str, size: int | tuple[int, int] | None, settings: Mapping[str, Any], shrink: int) -> Request:
    """The request that these settings make, or a CartoucheError that says which of them cannot be.

    size: pixels, one number for a square or (width, height). shrink: pixels a latent cell is wide.
    """
    request: Request = fill(Request, {"prompt": prompt, **settings})  # type: ignore[arg-type]
    if size is not None:
        width, height = (size, size) if isinstance(size, int) else size
        request = dataclasses.replace(request, width=width, height=height)
    if not request.prompt.strip():
        raise CartoucheError("the prompt is empty; say what to draw")
    if request.num_inference_steps < 1:
        raise CartoucheError(f"steps={request.num_inference_steps} asked; choose 1 or more ({STEPS} is usual)")
    if request.count < 1:
        raise CartoucheError(f"count={request.count} asked; choose 1 or more")
    for name in ("width", "height"):
        pixels = getattr(request, name)
        if pixels is not None and (pixels < 1 or pixels % shrink):
            raise CartoucheError(f"size: {name}={pixels} is not a multiple of {shrink}; {_multiples(pixels, shrink)}")
    if not math.isfinite(request.guidance_scale):
        raise CartoucheError(f"guidance_scale={request.guidance_scale} given; choose 0 or more")
    sampler(request.sampler)
    seed = secrets.randbelow(LARGEST_SEED + 1) if request.seed is None else check_seed(request.seed)
    check_seed(request.index)
    return dataclasses.replace(request, seed=seed)


def _multiples(pixels: int, shrink: int) -> str:
    below = pixels // shrink * shrink
    return f"choose {shrink}" if below < shrink else f"choose {below} or {below + shrink}"
