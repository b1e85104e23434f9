import errno
import json
import os
import stat
import struct
import threading
import zlib
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cartouche import files, images
from cartouche.config import CartoucheError

RECIPE = {
    "prompt": "a red apple, on a blue background",
    "negative_prompt": "blur",
    "guidance_scale": 4.0,
    "num_inference_steps": 20,
    "sampler": "euler_a",
    "seed": 42,
    "width": 64,
    "height": 32,
    "model": "builtin",
    "version": "0.1.0",
}


def noise(height=32, width=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def chunks(path):
    """The names and bodies of a PNG's chunks, read by the layout of the standard alone."""
    data, at, found = path.read_bytes(), 8, []
    while at < len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        found.append((name.decode(), data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


# numbers <-> bytes


def test_minus_one_is_black_one_is_white_and_beyond_is_clipped():
    x = np.array([-5, -1, 0, 1, 5], np.float32).reshape(1, 1, 1, 5).repeat(3, 1)
    assert images.to_uint8(x)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_every_byte_survives_the_way_to_floats_and_back():
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, 3)
    there = images.from_uint8(every)
    assert there.shape == (1, 3, 16, 16)
    assert there.dtype == np.float32
    assert there.min() == -1
    assert there.max() == 1
    assert (images.to_uint8(there) == every).all()


def test_a_nan_is_refused_and_not_painted():
    with pytest.raises(CartoucheError, match="NaN"):
        images.to_uint8(np.full((1, 3, 2, 2), np.nan))


@pytest.mark.parametrize("shape", [(3, 2, 2), (1, 4, 2, 2), (1, 2, 2, 3)])
def test_another_shape_is_refused(shape):
    with pytest.raises(CartoucheError, match=r"wanted \(B, 3, H, W\)"):
        images.to_uint8(np.zeros(shape))


def test_pixels_of_another_kind_are_refused():
    with pytest.raises(CartoucheError, match="uint8"):
        images.from_uint8(np.zeros((1, 2, 2, 3)))


# files


def test_a_png_gives_back_the_same_pixels_and_the_recipe(tmp_path):
    path = images.save_png(tmp_path / "a.png", noise(), RECIPE)
    assert (images.read_pixels(path) == noise()).all()
    assert images.read_recipe(path) == RECIPE


def test_the_parameters_text_has_the_form_that_other_programs_read(tmp_path):
    path = images.save_png(tmp_path / "a.png", noise(), RECIPE)
    with Image.open(path) as image:
        assert image.text["parameters"] == (
            "a red apple, on a blue background\nNegative prompt: blur\n"
            "Steps: 20, Sampler: Euler a, CFG scale: 4.0, Seed: 42, Size: 64x32, "
            "Model: builtin, Version: cartouche 0.1.0"
        )


def test_a_value_with_a_comma_or_a_colon_is_quoted():
    assert images.parameters({"prompt": "p", "model": "a, b: c"}) == 'p\nModel: "a, b: c"'


@given(prompt=st.text(st.characters(), max_size=40), negative=st.text(st.characters(), max_size=20))
def test_any_prompt_at_all_survives_in_the_recipe(prompt, negative, tmp_path_factory):
    recipe = {**RECIPE, "prompt": prompt, "negative_prompt": negative}
    path = images.save_png(tmp_path_factory.getbasetemp() / "any.png", noise(2, 2), recipe, force=True)
    assert images.read_recipe(path) == recipe


@pytest.mark.parametrize("prompt", ["half \ud800 a letter", "à côté d\u2019un chat", "a\0b", ""])
def test_odd_characters_neither_break_the_file_nor_the_recipe(prompt, tmp_path):
    path = images.save_png(tmp_path / "a.png", noise(), {"prompt": prompt})
    assert images.read_recipe(path)["prompt"] == prompt


def test_without_metadata_the_file_has_pixels_and_the_mark_of_machines_and_nothing_else(tmp_path):
    path = images.save_png(tmp_path / "a.png", noise(), RECIPE, metadata=False)
    assert [name for name, _ in chunks(path)] == ["IHDR", "iTXt", "IDAT", "IEND"]
    assert images.XMP.encode() in chunks(path)[1][1]
    assert b"apple" not in path.read_bytes()
    with pytest.raises(CartoucheError, match="--no-metadata"):
        images.read_recipe(path)


def test_the_mark_of_machines_is_the_word_of_the_iptc(tmp_path):
    path = images.save_png(tmp_path / "a.png", noise(), RECIPE)
    with Image.open(path) as image:
        description = ElementTree.fromstring(image.info["xmp"]).find(".//{*}Description")
    mark = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
    assert description.attrib[mark] == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def test_a_file_that_exists_is_kept_unless_told(tmp_path):
    path = images.save_png(tmp_path / "a.png", noise())
    with pytest.raises(CartoucheError, match="exists already.*--force"):
        images.save_png(path, noise(seed=1))
    assert (images.read_pixels(path) == noise()).all()
    images.save_png(path, noise(seed=1), force=True)
    assert (images.read_pixels(path) == noise(seed=1)).all()
    assert os.listdir(tmp_path) == ["a.png"]


def test_of_many_writers_of_one_name_exactly_one_wins(tmp_path):
    won = []

    def write(i):
        try:
            files.write_whole(tmp_path / "a", bytes([i]) * 1000)
            won.append(i)
        except CartoucheError:
            pass

    threads = [threading.Thread(target=write, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert (tmp_path / "a").read_bytes() == bytes(won) * 1000
    assert os.listdir(tmp_path) == ["a"]


def test_the_file_has_the_mode_that_the_user_gives_new_files(tmp_path):
    old = os.umask(0o027)
    try:
        path = images.save_png(tmp_path / "a.png", noise())
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_full_disk_is_one_line_and_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = images.save_png(tmp_path / "a.png", noise())

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(CartoucheError, match=r"cannot write .*a\.png: No space left on device"):
        images.save_png(path, noise(seed=1), force=True)
    assert (images.read_pixels(path) == noise()).all()
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_disk_without_hard_links_still_takes_pictures_and_still_keeps_the_old(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(files.os, "link", no_links)
    path = images.save_png(tmp_path / "a.png", noise())
    with pytest.raises(CartoucheError, match="exists already"):
        images.save_png(path, noise(seed=1))
    assert (images.read_pixels(path) == noise()).all()


def test_a_folder_that_is_missing_or_in_the_way_is_one_line(tmp_path):
    with pytest.raises(CartoucheError, match="cannot write .*No such file"):
        images.save_png(tmp_path / "missing" / "a.png", noise())
    with pytest.raises(CartoucheError, match="is a folder"):
        images.save_png(tmp_path, noise())


@pytest.mark.parametrize(("name", "format"), [("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.webp", "WEBP")])
def test_three_open_formats_are_read(name, format, tmp_path):
    Image.new("RGB", (5, 4), (255, 0, 0)).save(tmp_path / name, format)
    x = images.read_image(tmp_path / name)
    assert x.shape == (1, 3, 4, 5)
    assert np.allclose(x[0, :, 0, 0], [1, -1, -1], atol=0.02)


@pytest.mark.parametrize("format", ["GIF", "BMP", "TIFF", "ICO"])
def test_other_formats_are_refused(format, tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png", format)
    with pytest.raises(CartoucheError, match="wanted PNG, JPEG or WebP"):
        images.read_image(tmp_path / "a.png")


def test_what_is_transparent_is_seen_on_white(tmp_path):
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert (images.read_image(tmp_path / "a.png") == 1).all()


def test_a_camera_that_was_held_sideways_is_believed(tmp_path):
    image = Image.new("RGB", (4, 2))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert images.read_image(tmp_path / "a.jpg").shape == (1, 3, 4, 2)


def test_a_small_file_of_a_huge_picture_is_refused_before_it_is_decoded(tmp_path):
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    size = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(bomb)
    with pytest.raises(CartoucheError):
        images.read_image(tmp_path / "a.png")
    Image.new("L", (200, 100)).save(tmp_path / "b.png")
    with pytest.raises(CartoucheError, match="200x100 pixels; wanted at most 1,000"):
        images.read_image(tmp_path / "b.png", max_pixels=1000)


@given(data=st.data())
def test_a_damaged_file_is_refused_in_words_and_nothing_else_ever_happens(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    good = images.save_png(folder / "good.png", noise(8, 8), RECIPE, force=True).read_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    changed = good[:at] + data.draw(st.binary(min_size=1, max_size=4)) + good[at + 1 :]
    bad = data.draw(st.sampled_from([good[:at], changed]))
    (folder / "bad.png").write_bytes(bad)
    for read in (images.read_image, images.read_recipe):
        try:
            read(folder / "bad.png")
        except CartoucheError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("text", ["[1]", "{", "null", "[" * 100_000])
def test_a_recipe_that_is_no_object_is_refused(text, tmp_path):
    from PIL import PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_text("cartouche", text)
    Image.new("RGB", (1, 1)).save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(CartoucheError, match="damaged"):
        images.read_recipe(tmp_path / "a.png")


def test_a_missing_picture_and_an_unreadable_one_are_named(tmp_path):
    with pytest.raises(CartoucheError, match="no picture at"):
        images.read_image(tmp_path / "none.png")
    with pytest.raises(CartoucheError, match="cannot read"):
        images.read_image(tmp_path)


# sheets


def test_a_grid_holds_every_picture_where_it_belongs():
    x = np.arange(5, dtype=np.float32).reshape(5, 1, 1, 1).repeat(3, 1).repeat(4, 2).repeat(6, 3) / 10
    sheet = images.grid(x, gap=1)
    assert sheet.shape == (1, 3, 4 * 2 + 1, 6 * 3 + 2)
    assert (sheet[0, :, :4, 7:13] == np.float32(0.1)).all()
    assert (sheet[0, :, 5:, 7:13] == np.float32(0.4)).all()
    assert (sheet[0, :, 4] == 1).all()
    assert (sheet[0, :, 5:, 14:] == 1).all()


def test_one_picture_is_its_own_grid():
    x = images.from_uint8(noise()[None])
    assert (images.grid(x) == x).all()


def test_a_film_strip_has_a_row_for_each_picture_and_time_goes_right():
    moments = [np.full((2, 3, 4, 4), t / 4, np.float32) + np.array([0, 0.5]).reshape(2, 1, 1, 1) for t in range(3)]
    strip = images.film_strip(moments, gap=0)
    assert strip.shape == (1, 3, 8, 12)
    assert strip[0, 0, ::4, ::4].tolist() == [[0, 0.25, 0.5], [0.5, 0.75, 1]]


def test_half_blocks_are_two_pixels_a_character():
    pixels = np.array([[[255, 0, 0]], [[0, 0, 255]]], np.uint8)
    assert images.half_blocks(pixels) == "\x1b[38;2;255;0;0;48;2;0;0;255m▀\x1b[0m"
    lines = images.half_blocks(noise(128, 128), columns=40).split("\n")
    assert len(lines) == 20
    assert all(line.count("▀") == 40 for line in lines)


def test_the_recipe_in_the_file_is_plain_json(tmp_path):
    path = images.save_png(tmp_path / "a.png", noise(), RECIPE)
    with Image.open(path) as image:
        assert json.loads(image.text["cartouche"]) == RECIPE
