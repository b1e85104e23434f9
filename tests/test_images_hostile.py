"""Pictures from outside: read as a person would see them, or refused in words, at once and before they are decoded."""

import io
import os
import random
import re
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from cartouche import images
from cartouche.config import CartoucheError
from cartouche.data import Limits
from cartouche.data.records import BadSampleError
from cartouche.data.records import decode as decode_record

MUTANTS = int(os.environ.get("CARTOUCHE_MUTANTS", "20000"))
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width, height, depth, colour, rows, *extra):
    """A PNG by the layout of the standard alone; rows: its bytes with a filter byte before each row."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = header + b"".join(chunk(*one) for one in extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def saved(picture, kind, **settings):
    file = io.BytesIO()
    picture.save(file, kind, **settings)
    return file.getvalue()


# what is large


def bomb(side=13_000):
    """A PNG of side x side black pixels: 507 MB in half a megabyte. One row is deflated, then repeated."""
    deflate = zlib.compressobj(9)
    row = bytes(1 + 3 * side)
    first = deflate.compress(row) + deflate.flush(zlib.Z_FULL_FLUSH)
    again = deflate.compress(row) + deflate.flush(zlib.Z_FULL_FLUSH)
    body = first + again * (side - 1) + deflate.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", body) + chunk(b"IEND", b"")


HERE = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
MEASURE = """
import resource, sys, time
from cartouche import images
from cartouche.config import CartoucheError
def refusal(given):
    try:
        images.read_image(given)
    except CartoucheError as error:
        return str(error)
refusal(b"so that every module is imported")
before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
print(refusal(sys.argv[1]))
print(time.process_time() - started)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_bomb_of_half_a_gigabyte_is_refused_within_50_milliseconds_and_50_megabytes(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb())
    assert 300_000 < path.stat().st_size < 1_500_000
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True, env=HERE
    )
    said, seconds, grown = done.stdout.splitlines()
    assert re.search(r"(13000x13000 pixels|far too large).*at most 33,177,600", said)
    assert float(seconds) < 0.05
    assert int(grown) < 50 << 10


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_limit_of_pixels_is_exact_and_kept_before_decoding(kind, monkeypatch):
    data = saved(Image.new("RGB", (40, 30)), kind)
    assert images.decode(data, max_pixels=1200).shape == (30, 40, 3)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    with pytest.raises(CartoucheError, match="40x30 pixels; wanted at most 1,199"):
        images.decode(data, max_pixels=1199)


def test_a_file_that_never_ends_is_left_after_the_limit(monkeypatch):
    monkeypatch.setattr(images, "MAX_BYTES", 1 << 20)
    with pytest.raises(CartoucheError, match=r"/dev/zero has more than 1 MB; wanted a picture"):
        images.decode("/dev/zero")


def test_a_jpeg_of_many_passes_is_refused_and_one_of_a_camera_is_not():
    data = saved(Image.new("RGB", (64, 64), "red"), "JPEG", progressive=True)
    last = data[data.rfind(b"\xff\xda") : -2]
    assert images.decode(data[:-2] + 80 * last + data[-2:]).shape == (64, 64, 3)
    with pytest.raises(CartoucheError, match="over 100 passes"):
        images.decode(data[:-2] + 100_000 * last + data[-2:])


def test_what_looks_like_a_pass_inside_other_data_is_none():
    film = saved(Image.new("RGB", (8, 8)), "JPEG") + b"\xff\xda" * 1000  # as telephones append
    comment = saved(Image.new("RGB", (8, 8)), "JPEG", comment=b"\xff\xda" * 1000)
    assert images.decode(film).shape == images.decode(comment).shape == (8, 8, 3)


# what is unusual


@pytest.mark.parametrize("shape", [(1, 1), (1, 60_000), (60_000, 1)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_line_and_a_point_are_pictures(kind, shape):
    limit = {"PNG": 60_000, "JPEG": 60_000, "WEBP": 16_000}[kind]
    size = tuple(min(side, limit) for side in shape)
    assert images.read_image(saved(Image.new("RGB", size, "white"), kind)).shape == (1, 3, size[1], size[0])


def test_cmyk_is_read_as_colours():
    x = images.decode(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    assert np.abs(x.astype(int) - [255, 0, 0]).max() < 8


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_mode_of_png_keeps_black_and_white(mode):
    picture = Image.fromarray(np.array([[0, 255]], np.uint8)).convert(mode)
    assert images.decode(saved(picture, "PNG")).tolist() == [[[0] * 3, [255] * 3]]


def test_sixteen_bits_are_cut_to_the_upper_eight_in_grey_and_in_colour():
    grey = png(3, 1, 16, 0, b"\0" + struct.pack(">3H", 0, 0x8000, 0xFFFF))
    colour = png(1, 1, 16, 2, b"\0" + struct.pack(">3H", 0x12FF, 0x8000, 0xFFFF))
    assert images.decode(grey)[0, :, 0].tolist() == [0, 128, 255]
    assert images.decode(colour)[0, 0].tolist() == [0x12, 0x80, 0xFF]


def test_transparency_is_white_however_it_is_stored():
    red, clear = (b"PLTE", bytes([255, 0, 0, 0, 0, 255])), (b"tRNS", bytes([255, 0]))
    grey16 = png(2, 1, 16, 0, b"\0" + struct.pack(">2H", 300, 0), (b"tRNS", struct.pack(">H", 300)))
    assert images.decode(png(2, 1, 8, 3, b"\0\0\1", red, clear)).tolist() == [[[255, 0, 0], [255, 255, 255]]]
    assert images.decode(grey16).tolist() == [[[255, 255, 255], [0, 0, 0]]]
    half = saved(Image.new("RGBA", (1, 1), (255, 0, 0, 128)), "PNG")
    assert images.decode(half).tolist() == [[[255, 127, 127]]]
    for kind in ("PNG", "WEBP"):
        assert (images.decode(saved(Image.new("RGBA", (4, 4), (9, 9, 9, 0)), kind)) == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animation_the_first_picture_is_read(kind):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "green", "blue")]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert (images.decode(data) == [255, 0, 0]).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_however_the_camera_was_held_the_picture_is_upright(kind, orientation):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :8] = 255  # a white corner, upper left
    undo = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90",
            7: "TRANSVERSE", 8: "ROTATE_270"}  # fmt: skip
    stored = Image.fromarray(upright)
    if orientation > 1:
        stored = stored.transpose(Image.Transpose[undo[orientation]])
    exif = Image.Exif()
    exif[0x0112] = orientation
    settings = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(kind, {})
    read = images.decode(saved(stored, kind, exif=exif, **settings))
    assert read.shape == (16, 32, 3) and np.abs(read.astype(int) - upright).max() < 40


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(
    "note", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_a_broken_note_of_the_camera_does_not_spoil_the_picture(note):
    assert images.decode(saved(Image.new("RGB", (8, 8), "white"), "JPEG", exif=note)).min() > 250


def test_long_text_in_a_picture_is_carried_and_a_bomb_of_text_is_refused():
    text = PngImagePlugin.PngInfo()
    text.add_text("long", "x" * (1 << 20))
    assert images.decode(saved(Image.new("RGB", (2, 2)), "PNG", pnginfo=text)).shape == (2, 2, 3)
    words = zlib.compress(bytes(50 << 20))
    started = time.process_time()
    with pytest.raises(CartoucheError, match="damaged"):
        images.decode(png(1, 1, 8, 0, b"\0\0", (b"zTXt", b"bomb\0\0" + words)))
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_cut_short_is_refused_unless_no_pixel_is_missing(kind):
    data, refused = saved(Image.fromarray(PIXELS.repeat(9, 0).repeat(9, 1)), kind), 0
    for cut in range(0, len(data), 7):
        try:
            assert (images.decode(data[:cut]) == images.decode(data)).all()
        except CartoucheError:
            refused += 1
    assert refused > 0.9 * len(data) / 7


def test_stored_samples_and_files_are_read_in_one_way(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(Image.fromarray(PIXELS), "PNG", exif=exif)
    (tmp_path / "a.png").write_bytes(data)
    read = images.decode(tmp_path / "a.png")
    assert (decode_record(data, Limits()) == read).all() and read.shape == (9, 6, 3)
    assert (images.to_uint8(images.read_image(data))[0] == read).all()
    with pytest.raises(BadSampleError, match="the picture has 6x9 pixels|the picture has 9x6 pixels"):
        decode_record(data, Limits(pixels=53))


# what is broken on purpose


def seeds():
    """Small pictures of every kind that is read, each with some of what the kind can carry."""
    picture, exif = Image.fromarray(PIXELS), Image.Exif()
    exif[0x0112] = 6
    text = PngImagePlugin.PngInfo()
    text.add_itxt("parameters", "a red apple", zip=True)
    more = [Image.fromarray(PIXELS[::-1]), Image.fromarray(255 - PIXELS)]
    return [
        saved(picture, "PNG", pnginfo=text, exif=exif),
        saved(picture.convert("P"), "PNG", transparency=b"\0\x80\xff"),
        saved(picture.convert("LA"), "PNG"),
        png(9, 6, 16, 0, b"".join(b"\1" + bytes(18) for _ in range(6)), (b"tRNS", b"\0\0")),
        saved(picture, "PNG", save_all=True, append_images=more),
        saved(picture, "JPEG", exif=exif, comment=b"a comment"),
        saved(picture, "JPEG", progressive=True, subsampling=0),
        saved(picture.convert("CMYK"), "JPEG", restart_marker_blocks=1),
        saved(picture, "WEBP", exif=exif),
        saved(picture, "WEBP", lossless=True),
        saved(picture, "WEBP", save_all=True, append_images=more, lossless=True),
    ]


def mended(data):
    """A PNG with the right check sum in each chunk, so that a mutant is not refused at the first gate."""
    out, at = [data[:8]], 8
    while at + 12 <= len(data):
        length = struct.unpack(">I", data[at : at + 4])[0]
        out.append(chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return b"".join(out)


def mutant(good, rng):
    """One of the seeds with bytes changed, cut, doubled, thrown away or taken from another."""
    data = bytearray(rng.choice(good))
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, length = rng.randrange(len(data) + 1), rng.choice((1, 2, 4, 40))
        what = rng.randrange(6)
        if what == 0:
            data[at : at + length] = rng.randbytes(length)
        elif what == 1:
            data[at : at + 4] = rng.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\1\0\0"))
        elif what == 2:
            del data[at : at + length]
        elif what == 3:
            data[at:at] = data[at : at + length]
        elif what == 4:
            del data[at:]
        else:
            other = rng.choice(good)
            start = rng.randrange(len(other))
            data[at : at + length] = other[start : start + length]
    return mended(bytes(data)) if data.startswith(b"\x89PNG") and rng.random() < 0.7 else bytes(data)


def test_mutants_are_read_or_refused_in_one_line_and_none_takes_two_seconds():
    good, rng, read, slowest = seeds(), random.Random(3), 0, 0.0
    assert all(images.decode(one).shape[2] == 3 for one in good)
    for _ in range(MUTANTS):
        data = mutant(good, rng)
        started = time.process_time()
        try:
            found = images.decode(data)
            assert found.dtype == np.uint8 and found.shape[2] == 3
            read += 1
        except CartoucheError as error:
            assert "\n" not in str(error)
        slowest = max(slowest, time.process_time() - started)
    assert MUTANTS / 20 < read < MUTANTS * 0.9, "mutants that are all alike prove nothing"
    assert slowest < 2
