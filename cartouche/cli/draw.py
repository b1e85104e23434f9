"""`cartouche draw PROMPT` and `cartouche redraw FILE`: what was asked, where it goes, what is written."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cartouche.cli.app import Engine, Force, Json, Model, Out, Preview, app
from cartouche.cli.screen import Screen
from cartouche.config import CartoucheError

if TYPE_CHECKING:
    import numpy as np

    from cartouche.draw.paint import Picture, Step

Prompt = Annotated[str, typer.Argument(help="What to draw, in English or French.", show_default=False)]
Negative = Annotated[str, typer.Option(help="What to keep away from.", show_default=False)]
Guidance = Annotated[float | None, typer.Option(help="How strongly to follow the prompt: 1 is neutral, 0 ignores it.")]
Steps = Annotated[int | None, typer.Option(help="Steps from noise to picture.")]
Sampler = Annotated[str | None, typer.Option(help="ddpm, ddim, euler, euler_a, heun, dpmpp_2m or pndm.")]
Seed = Annotated[int | None, typer.Option(help="A seed is one picture; without it, one is chosen.")]
Count = Annotated[int, typer.Option(help="How many pictures of this seed.", min=1, max=10_000)]
Size = Annotated[str | None, typer.Option(metavar="WxH", help="Pixels, as 128 or 96x128; without it, the model's own.")]
Into = Annotated[Path | None, typer.Option(metavar="FILE", help="A picture to draw into.")]
Mask = Annotated[Path | None, typer.Option(metavar="FILE", help="What of it is painted: white, or transparent.")]
Strength = Annotated[float | None, typer.Option(help="How much of it is new: 0 nothing, 1 everything.")]
Interval = Annotated[
    str | None,
    typer.Option("--guidance-interval", metavar="LOW-HIGH", help="Guide only at these shares of noise: 0.2-0.8."),
]
ClipSkip = Annotated[int | None, typer.Option(help="How many layers of the text tower earlier its states are taken.")]
CacheInterval = Annotated[
    int | None, typer.Option(help="Compute the deep part of the U-Net every so many steps (torch).")
]
Tiled = Annotated[bool, typer.Option("--tiled", help="Decode a large picture by tiles, in less memory.")]
Vae = Annotated[Path | None, typer.Option(metavar="VAE", help="Another autoencoder: a folder or a .safetensors file.")]
PreviewVae = Annotated[Path | None, typer.Option(metavar="VAE", help="A tiny autoencoder for the film strip alone.")]
Prediction = Annotated[str | None, typer.Option(help="What a file's U-Net predicts: epsilon or v_prediction.")]
Lora = Annotated[list[str] | None, typer.Option(metavar="FILE[:WEIGHT]", help="A LoRA to draw with; several may be.")]
Embedding = Annotated[list[Path] | None, typer.Option(metavar="FILE", help="A learned word; several may be.")]
Grid = Annotated[bool, typer.Option("--grid", help="Also write one sheet with all pictures.")]
FilmStrip = Annotated[str | None, typer.Option(metavar="STEPS", help="Also write how it came about: 8, or 1,2,5,20.")]
NoMetadata = Annotated[bool, typer.Option("--no-metadata", help="Leave the recipe out of the files.")]
Drawn = Annotated[Path, typer.Argument(metavar="FILE", help="A picture that carries its recipe.", show_default=False)]


@app.command()
def draw(
    prompt: Prompt,
    negative: Negative = "",
    guidance: Guidance = None,
    steps: Steps = None,
    sampler: Sampler = None,
    seed: Seed = None,
    count: Count = 1,
    size: Size = None,
    image: Into = None,
    mask: Mask = None,
    strength: Strength = None,
    interval: Interval = None,
    clip_skip: ClipSkip = None,
    cache_interval: CacheInterval = None,
    tiled: Tiled = False,
    model: Model = None,
    vae: Vae = None,
    prediction: Prediction = None,
    preview_vae: PreviewVae = None,
    lora: Lora = None,
    embedding: Embedding = None,
    out: Out = None,
    grid: Grid = False,
    film_strip: FilmStrip = None,
    as_json: Json = False,
    no_metadata: NoMetadata = False,
    force: Force = False,
    engine: Engine = None,
    preview: Preview = None,
) -> None:
    """Draw a picture from words and say where it is."""
    import cartouche

    seed = secrets.randbelow(2**32) if seed is None else seed
    names, sheets = places(out, prompt, seed, count, {"grid": grid, "film": film_strip is not None}, force)
    settings = _given(
        negative_prompt=negative,
        guidance_scale=guidance,
        num_inference_steps=steps,
        sampler=sampler,
        seed=seed,
        count=count,
        size=parse_size(size),
        image=image,
        mask=mask,
        strength=strength,
        guidance_interval=parse_interval(interval),
        clip_skip=clip_skip,
        cache_interval=cache_interval,
        tiled=tiled,
    )
    if preview_vae is not None and film_strip is None:
        raise CartoucheError("--preview-vae shows the moments of a film strip; give --film-strip too")
    opening: dict[str, Any] = {"vae": vae, "prediction": prediction, "preview": preview_vae}
    opening["embeddings"] = embedding or []
    with Screen(as_json, preview) as screen:
        painter = cartouche.load(model, engine or "auto", loras=parse_loras(lora or []), **opening)
        pictures, moments = watch(painter.trace(prompt, **settings), screen, film_strip)
    save(dict(zip(names, pictures, strict=True)), sheets, moments, screen, metadata=not no_metadata, force=force)


@app.command()
def redraw(
    file: Drawn,
    image: Into = None,
    mask: Mask = None,
    model: Model = None,
    vae: Vae = None,
    lora: Lora = None,
    embedding: Embedding = None,
    out: Out = None,
    as_json: Json = False,
    force: Force = False,
    engine: Engine = None,
    preview: Preview = None,
) -> int:
    """Draw a picture again from the recipe it carries, and say whether the pixels are the same (exit code 1: no)."""
    import cartouche
    from cartouche.draw.recipe import Recipe
    from cartouche.images import read_pixels, read_recipe

    recipe = Recipe.from_dict(read_recipe(file))
    if out is not None:
        places(out, recipe.prompt, recipe.seed, 1, {}, force)
    with Screen(as_json, preview) as screen:
        loras = parse_loras(lora or [], [used.weight for used in recipe.adapters if used.kind == "lora"])
        options: dict[str, Any] = {"precision": recipe.precision, "loras": loras, "embeddings": embedding or []}
        options |= {"vae": vae, "prediction": recipe.prediction or None}
        picture = cartouche.load(model, engine or recipe.engine, **options).redraw(recipe, image, mask)
    if out is not None:
        names, sheets = places(out, recipe.prompt, recipe.seed, 1, {}, force)
        save({names[0]: picture}, sheets, [], screen, metadata=True, force=force)
    differ, largest = difference(read_pixels(file), picture.pixels)
    same = f"{file}: the same pixels" if not differ else f"{file}: {differ} pixels differ, by at most {largest} of 255"
    screen.say(same, event="redraw", path=str(file), same=differ == 0, differ=differ, largest=largest)
    return 1 if differ else 0


# what was asked


def _given(**options: Any) -> dict[str, Any]:
    """Without the options that were not given, so that the painter's own defaults hold."""
    return {name: value for name, value in options.items() if value is not None}


def parse_size(text: str | None) -> tuple[int, int] | None:
    """(width, height) from "128" or "96x128"."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", text.strip().lower())
    if found is None:
        raise CartoucheError(f"--size {text} is not a size; write 128, or WIDTHxHEIGHT as in 96x128")
    return int(found[1]), int(found[2] or found[1])


def parse_interval(text: str | None) -> tuple[float, float] | None:
    """(low, high) from "0.2-0.8"."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d*\.?\d+)-(\d*\.?\d+)", text)
    if found is None:
        raise CartoucheError(
            f"--guidance-interval {text} is no interval; write LOW-HIGH, shares of noise as in 0.2-0.8"
        )
    return float(found[1]), float(found[2])


def parse_loras(texts: Sequence[str], weights: Sequence[float] = ()) -> list[tuple[Path, float]]:
    """Files and their weights from FILE or FILE:WEIGHT; one without takes its place's of `weights`, or 1."""
    found = []
    for i, text in enumerate(texts):
        match = re.fullmatch(r"(.+):([+-]?(?:\d+\.?\d*|\.\d+))", text, re.DOTALL)
        usual = weights[i] if i < len(weights) else 1.0
        found.append((Path(match[1]), float(match[2])) if match else (Path(text), usual))
    return found


def chosen_steps(text: str, total: int) -> set[int]:
    """The steps, from 1, of a film strip: "8" is that many, evenly from the first to the last; "1,2,5,20" are these."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise CartoucheError(f"--film-strip {text} is neither a number of moments, as 8, nor steps, as 1,2,5,20")
    steps = {int(part) for part in parts}
    if len(parts) == 1 and min(steps) > 0:
        moments = min(*steps, total)
        return {total - round(i * (total - 1) / max(moments - 1, 1)) for i in range(moments)}
    if min(steps) < 1 or max(steps) > total:
        raise CartoucheError(f"--film-strip {text} asked of {total} steps; choose steps from 1 to {total}")
    return steps


def places(
    out: Path | None, prompt: str, seed: int, count: int, wanted: dict[str, bool], force: bool
) -> tuple[list[Path], dict[str, Path]]:
    """Where `count` pictures and the wanted sheets go. Raises CartoucheError where one exists, or cannot be there."""
    stem = _stem(out, f"{_words(prompt)}-{seed}")
    names = [Path(f"{stem}.png")] if count == 1 else [Path(f"{stem}-{i}.png") for i in range(count)]
    sheets = {kind: Path(f"{stem}-{kind}.png") for kind, yes in wanted.items() if yes}
    taken = [name for name in [*names, *sheets.values()] if name.exists()]
    if taken and not force:
        raise CartoucheError(f"{taken[0]} exists already; choose another --out, or --force to write over it")
    if not os.access(names[0].parent, os.W_OK):
        raise CartoucheError(f"{names[0].parent} is not a folder that can be written; choose another --out")
    return names, sheets


def _stem(out: Path | None, name: str) -> Path:
    """The path of the pictures, less what follows the name: `-0.png`, `-grid.png`."""
    if out is None or out.is_dir():
        return (out or Path()) / name
    if out.suffix.lower() == ".png":
        return out.with_suffix("")
    raise CartoucheError(f"--out {out} is neither NAME.png nor a folder that exists")


def _words(prompt: str, longest: int = 48) -> str:
    """A prompt as part of a file name."""
    return re.sub(r"\W+", "-", prompt.lower())[:longest].strip("-") or "picture"


# what is made of it


def watch(trace: Iterator[Step], screen: Screen, film_strip: str | None) -> tuple[list[Picture], list[np.ndarray]]:
    """Pull the steps out of a drawing; returns its pictures, and the clean estimates of the chosen steps as images."""
    moments: list[np.ndarray] = []
    for step in trace:
        screen.step(step)
        if film_strip is not None and step.index + 1 in chosen_steps(film_strip, step.total):
            moments.append(step.images())
    return step.pictures(), moments


def save(
    pictures: dict[Path, Picture],
    sheets: dict[str, Path],
    moments: Sequence[np.ndarray],
    screen: Screen,
    *,
    metadata: bool,
    force: bool,
) -> None:
    """Write the pictures and the sheets that are wanted, and say where they are."""
    from cartouche import images

    for path, picture in pictures.items():
        images.save_png(path, picture.pixels, picture.recipe.to_dict(), metadata=metadata, force=force)
        screen.picture(picture.pixels)
        screen.say(str(path), event="picture", path=str(path), seed=picture.recipe.seed, index=picture.recipe.index)
    made = {
        "grid": lambda: images.grid(images.from_uint8(_stack(picture.pixels for picture in pictures.values()))),
        "film": lambda: images.film_strip(moments),
    }
    for kind, path in sheets.items():
        images.save_png(path, images.to_uint8(made[kind]())[0], force=force)
        screen.say(str(path), event=kind, path=str(path))


def difference(one: np.ndarray, other: np.ndarray) -> tuple[int, int]:
    """How many pixels of two pictures (H, W, 3) differ, and the largest difference; of two sizes, all by 255."""
    import numpy as np

    if one.shape != other.shape:
        return max(one.size, other.size) // 3, 255
    apart = np.abs(one.astype(int) - other).max(-1)
    return int((apart > 0).sum()), int(apart.max())


def _stack(pixels: Iterable[np.ndarray]) -> np.ndarray:
    import numpy as np

    return np.stack(list(pixels))
