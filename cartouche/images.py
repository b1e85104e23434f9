"""Pictures between numbers and files: the only place where pixels are bytes.

Everywhere else a picture is (B, 3, H, W) float in [-1, 1]. Here it becomes 8 bits a channel, a PNG with its recipe,
a contact sheet, or coloured characters in a terminal; and files become floats again.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cartouche.config import CartoucheError

if TYPE_CHECKING:
    from PIL import Image, PngImagePlugin

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 64_000_000
"""A picture of more pixels is refused before it is decoded: a small file can hold a huge one."""

RECIPE_KEY = "cartouche"
XMP_KEY = "XML:com.adobe.xmp"
AI_MARK = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    f'Iptc4xmpExt:DigitalSourceType="{AI_MARK}"/></rdf:RDF></x:xmpmeta>'
)
"""Says that a machine drew the picture (IPTC's word for it), and nothing else. It stays when the recipe is left out."""

A1111_SAMPLERS = {
    "ddpm": "DDPM",
    "ddim": "DDIM",
    "euler": "Euler",
    "euler_a": "Euler a",
    "heun": "Heun",
    "dpmpp_2m": "DPM++ 2M",
}


# numbers <-> bytes


def to_uint8(images: np.ndarray) -> np.ndarray:
    """(B, 3, H, W) float in [-1, 1] to (B, H, W, 3) uint8: -1 is 0, 1 is 255, beyond is clipped, halves go to even.

    Raises CartoucheError for another shape, and for a picture with a NaN in it.
    """
    images = np.asarray(images, np.float32)
    if images.ndim != 4 or images.shape[1] != 3:
        raise CartoucheError(f"pictures of shape {images.shape}; wanted (B, 3, H, W) in [-1, 1]")
    if np.isnan(images).any():
        raise CartoucheError("the picture holds NaN: the net that drew it has overflowed; try --engine torch")
    return np.rint((images.clip(-1, 1) + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)


def from_uint8(pixels: np.ndarray) -> np.ndarray:
    """(B, H, W, 3) uint8 to (B, 3, H, W) float32 in [-1, 1]; `to_uint8` gives the same bytes back."""
    if pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.dtype != np.uint8:
        raise CartoucheError(f"pixels of shape {pixels.shape}, {pixels.dtype}; wanted (B, H, W, 3) uint8")
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32) / np.float32(127.5) - 1


# files


def read_image(path: Path | str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A PNG, JPEG or WebP file as (1, 3, H, W) float32 in [-1, 1], turned as its camera says, transparency on white."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(_decoded(path, max_pixels))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return from_uint8(np.asarray(image.convert("RGB"))[None])


def read_pixels(path: Path | str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The very bytes of a file's pixels, (H, W, 3) uint8, neither turned nor blended: to compare two pictures."""
    return np.asarray(_decoded(path, max_pixels).convert("RGB"))


def save_png(
    path: Path | str,
    pixels: np.ndarray,
    recipe: Mapping[str, Any] | None = None,
    *,
    force: bool = False,
    metadata: bool = True,
) -> Path:
    """Write (H, W, 3) uint8 as a PNG, whole or not at all, and never over another file unless `force`.

    recipe: what draws it again; it goes in as the text `parameters` (the A1111 form) and as JSON under `cartouche`,
    unless `metadata` is off. The mark of machine-made pictures is always there. The file gets the ordinary mode (0666
    less the umask).
    Raises CartoucheError where the file exists or the disk refuses; nothing half-written is left then.
    """
    from PIL import Image

    data = BytesIO()
    text = _text_chunks(recipe if metadata else None)
    Image.fromarray(np.ascontiguousarray(pixels)).save(data, "PNG", pnginfo=text)
    return write_whole(Path(path), data.getvalue(), force=force)


def write_whole(path: Path, data: bytes, *, force: bool = False) -> Path:
    """Put `data` at `path` in one stroke: temporary file beside it, fsync, link or rename, fsync of the folder."""
    if path.is_dir():
        raise CartoucheError(f"{path} is a folder; give the name of a file in it")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if force:
            os.replace(temporary, path)
        else:
            _name_if_free(temporary, path)
        _sync_folder(path.parent)
    except FileExistsError:
        raise CartoucheError(f"{path} exists already; choose another name, or --force to write over it") from None
    except OSError as error:
        raise CartoucheError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


def read_recipe(path: Path | str) -> dict[str, Any]:
    """The recipe that `save_png` put in. Raises CartoucheError for a file without one."""
    text = _decoded(path, MAX_PIXELS).info.get(RECIPE_KEY)
    if text is None:
        raise CartoucheError(f"{path} carries no recipe: it was drawn with --no-metadata, or by another program")
    try:
        recipe = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        recipe = None
    if not isinstance(recipe, dict):
        raise CartoucheError(f"{path} carries a recipe that is damaged; wanted a JSON object under {RECIPE_KEY!r}")
    return recipe


def parameters(recipe: Mapping[str, Any]) -> str:
    """A recipe in the A1111 form, which others read: the prompt, the negative prompt, then `Name: value, ...`."""
    height, width, version = (recipe.get(name) for name in ("height", "width", "version"))
    sampler = str(recipe.get("sampler", ""))
    entries = {
        "Steps": recipe.get("num_inference_steps"),
        "Sampler": A1111_SAMPLERS.get(sampler, sampler) or None,
        "CFG scale": recipe.get("guidance_scale"),
        "Seed": recipe.get("seed"),
        "Size": f"{width}x{height}" if height and width else None,
        "Model hash": recipe.get("model_hash"),
        "Model": recipe.get("model"),
        "Version": f"cartouche {version}" if version else None,
    }
    lines = [str(recipe.get("prompt", ""))]
    if negative := recipe.get("negative_prompt"):
        lines.append(f"Negative prompt: {negative}")
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in entries.items() if value is not None))
    return "\n".join(lines)


# sheets


def grid(images: np.ndarray, columns: int | None = None, gap: int = 2) -> np.ndarray:
    """(B, 3, H, W) on one sheet, (1, 3, h, w), row by row, `gap` white pixels between; nearly square by default."""
    B, _, H, W = images.shape
    columns = min(B, columns or int(np.ceil(np.sqrt(B))))
    rows = -(-B // columns)
    sheet = np.ones((1, 3, rows * (H + gap) - gap, columns * (W + gap) - gap), np.float32)
    for i, image in enumerate(images):
        top, left = i // columns * (H + gap), i % columns * (W + gap)
        sheet[0, :, top : top + H, left : left + W] = image
    return sheet


def film_strip(moments: Sequence[np.ndarray], gap: int = 2) -> np.ndarray:
    """N moments of the same B pictures, each (B, 3, H, W), as (1, 3, h, w): a row a picture, time to the right."""
    frames = np.stack([np.asarray(one, np.float32) for one in moments], 1)  # (B, N, 3, H, W)
    return grid(frames.reshape(-1, *frames.shape[2:]), columns=len(moments), gap=gap)


def half_blocks(pixels: np.ndarray, columns: int = 64) -> str:
    """(H, W, 3) uint8 as text for a terminal with 24-bit colour: a character is two pixels, one on the other."""
    from PIL import Image

    H, W = pixels.shape[:2]
    columns = max(1, min(columns, W))
    rows = max(2, 2 * round(H * columns / W / 2))
    image = Image.fromarray(np.ascontiguousarray(pixels))
    small = np.asarray(image.resize((columns, rows), Image.Resampling.BOX)).astype(int)
    lines = []
    for top, bottom in zip(small[::2], small[1::2], strict=True):
        cells = (
            "\x1b[38;2;{};{};{};48;2;{};{};{}m\N{UPPER HALF BLOCK}".format(*upper, *lower)
            for upper, lower in zip(top, bottom, strict=True)
        )
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines)


# inside


def _decoded(path: Path | str, max_pixels: int) -> Image.Image:
    """A picture of a known format and a bearable size, decoded. Raises CartoucheError for everything else."""
    import warnings

    from PIL import Image, UnidentifiedImageError

    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes that our own limit refuses, and of damage that we need not show
            image = Image.open(file, formats=FORMATS)
            if image.width * image.height > max_pixels:
                raise CartoucheError(f"{path} has {image.width}x{image.height} pixels; wanted at most {max_pixels:,}")
            image.load()
    except FileNotFoundError:
        raise CartoucheError(f"no picture at {path}") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError) as error:
        raise CartoucheError(f"{path} is not a picture that can be read; wanted PNG, JPEG or WebP") from error
    except (OSError, ValueError) as error:
        if isinstance(error, CartoucheError):
            raise
        raise CartoucheError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    return image


def _text_chunks(recipe: Mapping[str, Any] | None) -> PngImagePlugin.PngInfo:
    from PIL import PngImagePlugin

    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt(XMP_KEY, XMP)
    if recipe is not None:
        chunks.add_text("parameters", _storable(parameters(recipe)))
        chunks.add_text(RECIPE_KEY, json.dumps(recipe))
    return chunks


def _storable(text: str) -> str:
    """Text that a PNG can hold: no NUL, no half characters."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ',:\n"') else text


def _name_if_free(temporary: Path, path: Path) -> None:
    """Give the file its name, unless another has it: a hard link is refused by the system itself, without a race."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if path.exists():
            raise FileExistsError(path) from None
        os.replace(temporary, path)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
