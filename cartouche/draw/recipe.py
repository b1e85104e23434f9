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
from cartouche.images import MAX_PIXELS
from cartouche.weights.adapters import Used

STEPS = 20
STRENGTH = 0.75
GUIDANCE_SCALE = 5.0
SAMPLER = "dpmpp_2m"
MOST_AT_ONCE = 8 * MAX_PIXELS  # pixels of all pictures that are drawn together: 3 GB of numbers when decoded
LARGEST_SEED = 2**32 - 1  # of seeds that are chosen for you: short enough to type


@dataclasses.dataclass(frozen=True)
class Request:
    """Everything a drawing can be asked for, in the ecosystem's words.

    guidance_scale: 1 is neutral, 0 ignores the prompt. guidance_rescale, guidance_interval: see diffusion/guidance.py.
    seed: None chooses one. index: which picture of the seed comes first; count: how many, from there on.
    width, height: pixels; None is the model's own size.
    clip_skip: how many layers of the text tower earlier than usual its states are taken.
    cache_interval: the deep part of the U-Net is computed at every so many steps, see reuse.py; 1 is always.
    tiled: decode large pictures tile by tile, see tiles.py.
    strength: of a drawing into a picture, see edit.py; None is 1 where a mask says what is painted, else STRENGTH.
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
    clip_skip: int = 0
    cache_interval: int = 1
    tiled: bool = False
    strength: float | None = None


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that draws one picture again: its request, and the model and the machinery that drew it.

    cut: the words of both prompts that did not fit the text tower and were left out.
    image, mask: hashes of the picture that was drawn into and of its mask, "" where there was none. adapters: LoRAs and
    learned words. vae: the hash of another autoencoder than the model's own; prediction: what the U-Net was said to
    predict; "" where nothing was given.
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
    clip_skip: int = 0
    cache_interval: int = 1
    tiled: bool = False
    strength: float | None = None
    vae: str = ""
    prediction: str = ""
    image: str = ""
    mask: str = ""
    adapters: tuple[Used, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return dict(plain(self))

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Recipe:
        """A recipe read from a picture. Raises CartoucheError where a part is missing, unknown or of another kind."""
        read: Recipe = fill(cls, given, "recipe.")  # type: ignore[arg-type]
        return read

    def check_given(self, given: Mapping[str, bool], adapters: tuple[Used, ...]) -> None:
        """Raises CartoucheError where what is given and opened to draw this again is not what it was drawn with.

        given: whether there is an "image" and a "mask".
        """
        for name, there in given.items():
            if wanted := str(getattr(self, name)):
                if not there:
                    raise CartoucheError(f"the recipe is of a drawing with {name} {wanted}; give it with --{name} FILE")
            elif there:
                raise CartoucheError(f"the recipe is of a drawing without {name}; leave it out")
        if [one.same for one in adapters] != [one.same for one in self.adapters]:
            asked, here = (", ".join(map(str, used)) or "none" for used in (self.adapters, adapters))
            raise CartoucheError(f"the recipe is of a drawing with adapters {asked}; those given are {here}")

    def check_hashes(self, hashes: Mapping[str, str]) -> None:
        """Raises CartoucheError where a picture or mask is not the one that was drawn into. hashes: by field."""
        for name, here in hashes.items():
            if here != getattr(self, name):
                asked = getattr(self, name)
                raise CartoucheError(f"the {name} given is {here}, the recipe is of {asked}; give that one")

    def request(self) -> Request:
        """What to ask for to get this one picture again."""
        return Request(**{field.name: getattr(self, field.name) for field in _asked if field.name != "count"})


_asked = dataclasses.fields(Request)


def checked(
    prompt: str,
    size: int | tuple[int, int] | None,
    settings: Mapping[str, Any],
    shrink: int,
    usual: tuple[int, int],
) -> Request:
    """The request that these settings make, or a CartoucheError that says which of them cannot be.

    size: pixels, one number for a square or (width, height). shrink: pixels a latent cell is wide. usual: (width,
    height) of the model.
    """
    if size is not None:
        sides = size if isinstance(size, (tuple, list)) else (size, size)
        if len(sides) != 2:
            raise CartoucheError(f"size={size}; wanted pixels, one number or (width, height)")
        settings = {**settings, "width": sides[0], "height": sides[1]}
    request: Request = fill(Request, {"prompt": prompt, **settings})  # type: ignore[arg-type]
    if not request.prompt.strip():
        raise CartoucheError("the prompt is empty; say what to draw")
    if request.num_inference_steps < 1:
        raise CartoucheError(f"steps={request.num_inference_steps} asked; choose 1 or more ({STEPS} is usual)")
    if request.cache_interval < 1:
        raise CartoucheError(f"cache_interval={request.cache_interval} given; choose 1 (off) or more, 2 or 3 is usual")
    if request.count < 1:
        raise CartoucheError(f"count={request.count} asked; choose 1 or more")
    for name in ("width", "height"):
        pixels = getattr(request, name)
        if pixels is not None and (pixels < 1 or pixels % shrink):
            raise CartoucheError(f"size: {name}={pixels} is not a multiple of {shrink}; {_multiples(pixels, shrink)}")
    pixels = (request.width or usual[0]) * (request.height or usual[1])
    if pixels > MAX_PIXELS:
        raise CartoucheError(f"size: {pixels:,} pixels asked; choose at most {MAX_PIXELS:,}")
    if pixels * request.count > MOST_AT_ONCE:
        most = MOST_AT_ONCE // pixels
        raise CartoucheError(f"count={request.count} of {pixels:,} pixels each asked; choose at most {most} at once")
    if not math.isfinite(request.guidance_scale):
        raise CartoucheError(f"guidance_scale={request.guidance_scale} given; choose 0 or more")
    if request.strength is not None and not 0 <= request.strength <= 1:
        raise CartoucheError(f"strength={request.strength} given; choose 0 (the picture itself) to 1 (nothing of it)")
    sampler(request.sampler)
    seed = secrets.randbelow(LARGEST_SEED + 1) if request.seed is None else check_seed(request.seed)
    check_seed(request.index)
    return dataclasses.replace(request, seed=seed)


def _multiples(pixels: int, shrink: int) -> str:
    below = pixels // shrink * shrink
    return f"choose {shrink}" if below < shrink else f"choose {below} or {below + shrink}"
