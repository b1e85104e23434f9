"""Folders and tar shards give back what was written, by number, in an order that depends on the seed alone."""

import io
import json
import pickle
import random
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_data import LENIENT, keys, picture, sample_files, some_records, tar_of

from cartouche.config import CartoucheError
from cartouche.data import Folder, Limits, Pictures, Record, Shards, opened, write_folder, write_shards
from cartouche.data.shards import scan, split_key
from cartouche.data.shuffle import place, square
from cartouche.data.tar import members

# what is written is read back


def test_shards_give_back_the_records_they_were_written_from(tmp_path):
    records = some_records()
    paths = write_shards(tmp_path, records, per_shard=3)
    assert [path.name for path in paths] == ["shard-000000.tar", "shard-000001.tar", "shard-000002.tar"]
    reader = Shards(tmp_path)
    assert len(reader) == 7 and [reader.record(i) for i in range(7)] == records


def test_a_folder_gives_back_the_records_it_was_written_from(tmp_path):
    records = some_records()
    assert write_folder(tmp_path, records) == 7
    assert list(Folder(tmp_path).records()) == records


def test_folder_to_shards_to_folder_keeps_every_byte(tmp_path):
    write_folder(tmp_path / "a", some_records())
    write_shards(tmp_path / "b", opened(tmp_path / "a").records())
    write_folder(tmp_path / "c", opened(tmp_path / "b").records())
    files = [sorted(path.relative_to(tmp_path / x) for path in (tmp_path / x).rglob("*")) for x in "ac"]
    assert files[0] == files[1]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "c" / name).read_bytes() for name in files[0])


def test_the_same_records_make_the_same_shard_bytes(tmp_path):
    first, second = (write_shards(tmp_path / name, some_records())[0] for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()


def test_the_pixels_are_those_of_the_picture_on_white(tmp_path):
    file = io.BytesIO()
    Image.fromarray(np.array([[[10, 20, 30, 255], [0, 0, 0, 0]]], np.uint8)).save(file, "PNG")
    write_shards(tmp_path, [Record("a", "png", file.getvalue(), "two pixels")])
    assert Shards(tmp_path)[0]["image"].tolist() == [[[10, 20, 30], [255, 255, 255]]]


def encoded(pixels: np.ndarray, mode: str = "RGB", kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(pixels).convert(mode)
    (image.quantize(256) if options.pop("palette", False) else image).save(file, kind, **options)
    return file.getvalue()


def test_unusual_pictures_come_out_as_eight_bit_rgb(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn
    gradient = np.arange(0, 240, 10, np.uint8).reshape(4, 6)
    rgb = np.repeat(gradient[..., None], 3, 2)
    cases = {
        "gray": (encoded(gradient, "L"), rgb),
        "sixteen": (encoded(gradient.astype(np.uint16) << 8, "I;16"), rgb),
        "palette": (encoded(rgb, palette=True), rgb),
        "turned": (encoded(rgb, exif=turned), np.rot90(rgb, -1)),
        "one": (encoded(rgb[:1, :1]), rgb[:1, :1]),
        "film": (encoded(rgb, save_all=True, append_images=[Image.new("RGB", (6, 4), "red")]), rgb),
    }
    write_shards(tmp_path, [Record(name, "png", data, name) for name, (data, _) in cases.items()])
    for sample, (_, expected) in zip(Shards(tmp_path), cases.values(), strict=True):
        assert np.array_equal(sample["image"], expected), sample["key"]
    cmyk = Record("cmyk", "jpg", encoded(rgb, "CMYK", "JPEG", quality=100), "print colours")
    write_shards(tmp_path / "cmyk", [cmyk])
    assert np.abs(Shards(tmp_path / "cmyk")[0]["image"].astype(int) - rgb).max() < 20


def test_other_programs_read_our_shards_and_we_read_theirs(tmp_path):
    ours = write_shards(tmp_path / "ours", some_records(2))[0]
    with tarfile.open(ours) as tar:
        assert tar.getnames() == ["s000.png", "s000.txt", "s001.webp", "s001.txt", "s001.json"]
        assert {(m.uid, m.gid, m.mtime, m.uname) for m in tar.getmembers()} == {(0, 0, 0, "")}
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        theirs = tmp_path / f"{form}.tar"
        with tarfile.open(theirs, "w", format=form) as tar:
            for name, data in [("./d/", None), *((f"./d/{n}", b) for n, b in sample_files("é" * 40))]:
                entry = tarfile.TarInfo(name)
                entry.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
                entry.size = len(data or b"")
                tar.addfile(entry, io.BytesIO(data or b""))
        assert keys(Shards(theirs)) == ["d/" + "é" * 40]


LETTERS = st.characters(codec="utf-8", exclude_characters="/\\:", exclude_categories=["Cc", "Cs"])
FILES = st.lists(st.tuples(st.text(LETTERS, min_size=1, max_size=180), st.binary(max_size=1500)), max_size=6)


@settings(max_examples=60)
@given(FILES, st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_members_lie_where_the_standard_library_finds_them(tmp_path_factory, files, form):
    path = tmp_path_factory.mktemp("tar") / "x.tar"
    with tarfile.open(path, "w", format=form) as tar:
        for number, (name, data) in enumerate(files):
            entry = tarfile.TarInfo(f"f{number}/{name}x")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    with tarfile.open(path) as tar:
        expected = [(m.name.rstrip("/"), m.offset_data, m.size) for m in tar.getmembers()]
    assert [(m.name, m.offset, m.size) for m in members(path, LENIENT)] == expected


def test_a_caption_may_come_from_a_field_of_the_record(tmp_path):
    fields = json.dumps({"name_en": "red apple", "colors": [["red", 0.9]]}).encode()
    reader = Shards(tar_of(tmp_path / "a.tar", ("k.png", picture(1)), ("k.json", fields)), caption="name_en")
    assert reader[0]["caption"] == "red apple" and reader[0]["fields"]["colors"] == [["red", 0.9]]


def test_without_metadata_a_picture_is_named_after_its_sub_folder(tmp_path):
    for name in ("dog/1.png", "cat/2.png", "cat/notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(picture(3))
    assert [(s["key"], s["caption"]) for s in Folder(tmp_path)] == [("cat/2", "cat"), ("dog/1", "dog")]


def test_metadata_in_sub_folders_names_files_relative_to_itself(tmp_path):
    write_folder(tmp_path / "train", some_records(2))
    write_folder(tmp_path / "test", some_records(1))
    assert keys(Folder(tmp_path)) == ["test/s000", "train/s000", "train/s001"]


def test_shards_are_named_by_folder_file_list_pattern_or_range(tmp_path):
    paths = write_shards(tmp_path, some_records(4), name="t", per_shard=1)
    for given_ in (tmp_path, paths, str(tmp_path / "t-*.tar"), str(tmp_path / "t-{000000..000003}.tar")):
        assert Shards(given_).paths == paths
    assert Shards(paths[2]).paths == [paths[2]]


@pytest.mark.parametrize("name", ["pipe:touch canary", "http://localhost/x.tar", "nowhere", "x-{9..3}.tar"])
def test_only_local_files_are_opened(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CartoucheError, match="no tar shard|wanted 1 to"):
        Shards(name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "key", "suffix"),
    [
        ("a.png", "a", "png"),
        ("d.e/a.seg.png", "d.e/a", "seg.png"),
        (".hidden", "", ""),
        ("d/._a.png", "", ""),
        ("a", "", ""),
    ],
)
def test_a_key_ends_at_the_first_dot_of_the_base_name(name, key, suffix):
    assert split_key(name) == (key, suffix)


# the index


def test_an_index_is_made_once_and_remade_when_the_shard_changes(tmp_path, monkeypatch):
    shard, cache = write_shards(tmp_path, some_records(5))[0], tmp_path / "cache"
    first = Shards(shard, cache=cache)
    monkeypatch.setattr("cartouche.data.shards.scan", lambda *_: pytest.fail("scanned again"))
    assert list(Shards(shard, cache=cache).records()) == list(first.records())
    monkeypatch.undo()
    write_shards(tmp_path, some_records(6))
    assert len(Shards(shard, cache=cache)) == 6
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04junk", None])
def test_a_damaged_index_is_made_anew(tmp_path, damage):
    shard, cache = write_shards(tmp_path, some_records(5))[0], tmp_path / "cache"
    Shards(shard, cache=cache)
    (index,) = cache.iterdir()
    index.write_bytes(index.read_bytes()[:200] if damage is None else damage)
    assert len(Shards(shard, cache=cache)) == 5


def test_the_index_remembers_what_was_broken(tmp_path):
    shard = tar_of(tmp_path / "a.tar", *sample_files("a"), ("b.png", b"x"), *sample_files("c"))
    for _ in range(2):
        assert Shards(shard, cache=tmp_path / "cache", limits=LENIENT).tally.reasons == {
            "a.tar/b": "no caption (txt, json)"
        }


def test_scanning_reads_headers_and_captions_and_no_pictures(tmp_path, monkeypatch):
    path = tar_of(tmp_path / "x.tar", *((f"{i}.{s}", b"." * 30_000) for i in range(300) for s in ("png", "txt")))
    given = []

    class Counted(io.FileIO):
        def readinto(self, buffer):
            given.append(super().readinto(buffer))
            return given[-1]

    monkeypatch.setattr(Path, "open", lambda self, mode: io.BufferedReader(Counted(self), 512))
    index = scan(path, LENIENT)
    assert len(index.rows) == 300 and not index.faults
    assert 600 * 512 <= sum(given) < 600 * 2048


# the training stream


def test_every_epoch_is_a_permutation_of_its_own():
    for count in (1, 2, 3, 5, 16, 17, 100, 257):
        orders = [tuple(place(i, count, 3, epoch) for i in range(count)) for epoch in range(3)]
        assert all(sorted(order) == list(range(count)) for order in orders)
        assert count < 5 or len(set(orders)) == 3


def test_the_permutation_never_changes():
    assert [place(i, 10, 0, 0) for i in range(10)] == GOLDEN


GOLDEN = [4, 5, 2, 3, 0, 1, 6, 7, 8, 9]


def test_the_first_two_of_ten_may_be_any_two_equally_often():
    counts = Counter((place(0, 10, seed, 0), place(1, 10, seed, 0)) for seed in range(9000))
    chi_squared = sum((n - 100) ** 2 / 100 for n in counts.values())
    assert len(counts) == 90 and 50 < chi_squared < 140, "89 degrees of freedom: 89 +- 13"


def test_sample_i_depends_on_the_seed_and_i_alone(tmp_path):
    write_shards(tmp_path, some_records(7), per_shard=3)
    wanted = [Pictures(Shards(tmp_path), 4, seed=5)[i]["caption"] for i in range(21)]
    stream = pickle.loads(pickle.dumps(Pictures(Shards(tmp_path), 4, seed=5)))
    for i in random.Random(0).sample(range(21), 21):
        assert stream[i]["caption"] == wanted[i]
    assert sorted(wanted[:7]) == sorted(wanted[7:14]) and wanted[:7] != wanted[7:14]
    assert [Pictures(Shards(tmp_path), 4, seed=6)[i]["caption"] for i in range(21)] != wanted
    assert [Pictures(Shards(tmp_path), 4, shuffle=False)[i]["caption"][-1] for i in range(9)] == list("012345601")


def test_a_broken_sample_is_replaced_and_the_others_keep_their_place(tmp_path):
    records = some_records(9)
    write_shards(tmp_path / "good", records)
    records[4] = Record("s004", "webp", b"broken", "picture number 4")
    write_shards(tmp_path / "bad", records)
    good, bad = (Pictures(Shards(tmp_path / name, limits=Limits(broken=0.2)), 4, seed=1) for name in ("good", "bad"))
    pairs = [(good[i]["caption"][-1], bad[i]["caption"][-1]) for i in range(27)]
    assert all(b == a for a, b in pairs if a != "4") and all(b != "4" for _, b in pairs)
    assert list(bad.reader.tally.reasons) == ["sample 4"]
    strict = Pictures(Shards(tmp_path / "bad"), 4, seed=1)
    with pytest.raises(CartoucheError, match="1 of 9 samples are broken"):
        [strict[i] for i in range(9)]


def test_a_stream_gives_square_floats_between_minus_one_and_one(tmp_path):
    write_shards(tmp_path, [Record("a", "png", picture(255, size=(40, 20)), "red")])
    image = Pictures(Shards(tmp_path), 16)[0]["image"]
    assert image.shape == (3, 16, 16) and image.dtype == np.float32
    assert np.allclose(image[:, 3, 3], [1, -1, 7 / 127.5 - 1])


def test_the_square_is_cut_from_the_middle():
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, 2:6] = 200
    assert (square(pixels, 4) == 200).all() and (square(pixels, 2)[:, 0] >= 150).all()


def test_no_samples_no_stream(tmp_path):
    with pytest.raises(CartoucheError, match="at least one"):
        Pictures(Shards(tar_of(tmp_path / "x.tar")), 8)
    with pytest.raises(CartoucheError, match="no picture is listed"):
        Folder(tmp_path)
    with pytest.raises(IndexError):
        Shards(tmp_path)[0]
