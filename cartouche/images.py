"""Pictures between numbers and files: the only place where pixels are bytes.

Everywhere else a picture is (B, 3, H, W) float in [-1, 1]. Here it becomes 8 bits a channel, a PNG with its recipe,
a contact sheet, or coloured characters in a terminal; and files become floats again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cartouche.config import CartoucheError
from cartouche.files import write_whole

if TYPE_CHECKING:
    from PIL import Image, PngImagePlugin

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 7680 * 4320
"""A picture of more pixels is refused before it is decoded: a small file can hold a huge one."""
MAX_BYTES = 256 << 20
"""A longer file is refused: an uncompressed picture of MAX_PIXELS has 200 MB at 16 bits."""
MAX_SCANS = 100
"""A JPEG of more passes is refused: a pass may have 60 bytes and cost as much as the whole picture. Cameras make 1 to
10."""

_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")
"""What begins a segment of a JPEG: neither a stuffed FF, nor a restart inside a pass, nor the beginning of the file."""

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
    "pndm": "PLMS",
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
    x = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32)
    x /= np.float32(127.5)
    x -= 1
    return x


# files


def read_image(source: Path | str | bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A PNG, JPEG or WebP, as a file or as its bytes, as (1, 3, H, W) float32 in [-1, 1], read as `decode` reads it."""
    return from_uint8(decode(source, max_pixels)[None])


def decode(source: Path | str | bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A PNG, JPEG or WebP, as a file or as its bytes, as (H, W, 3) uint8, as a person would see it.

    Turned as its camera says, transparency on white, of 16 bits the upper 8, of an animation the first picture. The one
    way in which pictures from outside are opened: every limit is checked on the header, before anything is decoded.
    Raises CartoucheError for whatever is no such picture, is damaged or too large, and nothing else.
    """
    image = opened(source, max_pixels)
    try:
        return np.asarray(_on_white(_eight_bits(_turned(image))).convert("RGB"))
    except Exception as error:  # a library may fail in any way on hostile bytes
        raise _refused(source, error) from error


def opened(source: Path | str | bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture of a known format and a bearable size, decoded, as Pillow has it: for those who need its transparency.

    Raises CartoucheError for everything else.
    """
    from PIL import Image, UnidentifiedImageError

    data = source if isinstance(source, bytes) else _bytes_of(source)
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise CartoucheError(f"{_named(source)} is far too large; wanted at most {max_pixels:,} pixels") from error
    except (UnidentifiedImageError, SyntaxError) as error:
        raise CartoucheError(f"{_named(source)} is not a picture that can be read; wanted PNG, JPEG or WebP") from error
    except Exception as error:  # a library may fail in any way on hostile bytes
        raise _refused(source, error) from error
    if image.width * image.height > max_pixels:
        size = f"{image.width}x{image.height}"
        raise CartoucheError(f"{_named(source)} has {size} pixels; wanted at most {max_pixels:,}")
    if image.format in ("JPEG", "MPO") and _scans(data) > MAX_SCANS:
        raise CartoucheError(f"{_named(source)} is a JPEG of over {MAX_SCANS} passes, made to be slow; save it anew")
    try:
        image.load()
    except Exception as error:
        raise _refused(source, error) from error
    return image


def read_pixels(source: Path | str | bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The very bytes of a picture's pixels, (H, W, 3) uint8, neither turned nor blended: to compare two pictures."""
    return np.asarray(opened(source, max_pixels).convert("RGB"))


def read_mask(source: Path | str | bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A mask from a PNG, JPEG or WebP, (H, W) uint8: white is 255; if anything is transparent, that is 255."""
    image = opened(source, max_pixels)
    try:
        image = _eight_bits(_turned(image))
        clear = 255 - np.asarray(image.convert("RGBA"))[:, :, 3]
        return clear if clear.any() else np.asarray(image.convert("L"))
    except Exception as error:  # a library may fail in any way on hostile bytes
        raise _refused(source, error) from error


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
    return write_whole(path, data.getvalue(), force=force)


def read_recipe(path: Path | str) -> dict[str, Any]:
    """The recipe that `save_png` put in. Raises CartoucheError for a file without one."""
    text = opened(path, MAX_PIXELS).info.get(RECIPE_KEY)
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
        "Denoising strength": recipe.get("strength"),
        "Lora hashes": _hashes(recipe, "lora"),
        "TI hashes": _hashes(recipe, "embedding"),
        "Model hash": recipe.get("model_hash"),
        "Model": recipe.get("model"),
        "Version": f"cartouche {version}" if version else None,
    }
    lines = [str(recipe.get("prompt", ""))]
    if negative := recipe.get("negative_prompt"):
        lines.append(f"Negative prompt: {negative}")
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in entries.items() if value is not None))
    return "\n".join(lines)


# sizes


def fitted(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """(H, W, 3) or (H, W) uint8 in another size: the largest centred part of that shape, resampled.

    Pictures by Lanczos' filter; masks, of two axes, by a triangle, which adds no ripples.
    """
    from PIL import Image

    H, W = pixels.shape[:2]
    if (width, height) == (W, H):
        return pixels
    scale = min(W / width, H / height)
    x, y = (W - width * scale) // 2, (H - height * scale) // 2
    box = (x, y, min(x + width * scale, W), min(y + height * scale, H))
    smooth = Image.Resampling.BILINEAR if pixels.ndim == 2 else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize((width, height), smooth, box=box))


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


def _scans(jpeg: bytes) -> int:
    """How many passes a JPEG has, by its markers, which a decoder finds in the same way (ITU T.81, B.1.1)."""
    at = scans = 0
    while (marker := _MARKER.search(jpeg, at)) and marker[0] != b"\xff\xd9" and scans <= MAX_SCANS:
        scans += marker[0] == b"\xff\xda"
        at = marker.end() + max(2, int.from_bytes(jpeg[marker.end() : marker.end() + 2]))
    return scans


def _bytes_of(path: Path | str) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise CartoucheError(f"no picture at {path}") from None
    except (OSError, ValueError) as error:
        raise CartoucheError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > MAX_BYTES:
        raise CartoucheError(f"{path} has more than {MAX_BYTES >> 20} MB; wanted a picture")
    return data


def _refused(source: Path | str | bytes, error: Exception) -> CartoucheError:
    why = " ".join(str(error).split()) or type(error).__name__
    return CartoucheError(f"cannot read {_named(source)}: the file is damaged ({why})")


def _named(source: Path | str | bytes) -> str:
    return "the picture" if isinstance(source, bytes) else str(source)


def _turned(image: Image.Image) -> Image.Image:
    """Upright, where the file says how the camera was held and says it legibly."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # the note is broken, the picture is not
        return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey picture of 16 bits as one of 8, which a plain conversion would clip to white; other pictures as they
    are."""
    from PIL import Image

    if not image.mode.startswith("I"):
        return image
    grey, clear = np.asarray(image), image.info.get("transparency")
    small = Image.fromarray((grey >> 8).astype(np.uint8))
    if clear is not None:
        small.putalpha(Image.fromarray(np.where(grey == clear, 0, 255).astype(np.uint8)))
    return small


def _on_white(image: Image.Image) -> Image.Image:
    from PIL import Image

    if not image.has_transparency_data:
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))


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


def _hashes(recipe: Mapping[str, Any], kind: str) -> str | None:
    """The adapters of one kind as A1111 lists them, or None."""
    used = [one for one in recipe.get("adapters") or () if one["kind"] == kind]
    return ", ".join(f"{one['name']}: {one['hash']}" for one in used) or None


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ',:\n"') else text
