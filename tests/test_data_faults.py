"""A bad sample costs only itself, and nothing hostile gets in."""

import io
import json
import os
import pickle
import random
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_data import LENIENT, add_special, keys, picture, sample_files, some_records, tar_of

from cartouche.config import CartoucheError
from cartouche.data import Folder, Limits, Record, Shards, write_folder, write_shards
from cartouche.data.records import BadSampleError
from cartouche.data.tar import members

# bad samples


def broken_shard(path: Path) -> Path:
    deep = b'{"text":' + b"[" * 100_000
    good = [*sample_files("a"), *sample_files("z")]
    bad = [
        ("broken.jpg", picture(0, "JPEG")[:60]), ("broken.txt", b"cut short"),
        ("empty.png", picture(1)), ("empty.txt", b"  \n"),
        ("nothing.png", b""), ("nothing.txt", b"no bytes"),
        ("deep.png", picture(1)), ("deep.json", deep),
        ("list.png", picture(1)), ("list.json", b"[1]"),
        ("latin.png", picture(1)), ("latin.txt", "é".encode("latin-1")),
        ("alone.txt", b"no picture"), ("mute.png", picture(1)),
        ("a.png", picture(2)), ("a.txt", b"the key came before"),
        ("page.png", b"<html>"), ("page.txt", b"a page"),
    ]  # fmt: skip
    return tar_of(path, *good[:2], *bad, *good[2:], ("README.md", b"left alone"), ("z.pkl", pickle.dumps(1)))


def test_broken_samples_are_left_out_and_counted_and_the_order_of_the_rest_is_kept(tmp_path):
    reader = Shards(broken_shard(tmp_path / "x.tar"), limits=LENIENT)
    assert keys(reader) == ["a", "z"]
    assert len(reader.tally) == 10
    assert keys(reader) == ["a", "z"] and len(reader.tally) == 10, "each is counted once"


def test_too_many_broken_samples_stop_the_reading(tmp_path):
    shard = broken_shard(tmp_path / "x.tar")
    with pytest.raises(CartoucheError, match=r"broken, more than the 1\.00% allowed .*Limits\.broken"):
        Shards(shard)
    reader = Shards(shard, limits=Limits(broken=0.4))
    with pytest.raises(CartoucheError, match=r"more than the 40\.00% allowed"):
        list(reader)


def test_a_shard_cut_anywhere_gives_what_came_before_the_cut(tmp_path):
    whole = write_shards(tmp_path, some_records(6))[0].read_bytes()
    good = Shards(tmp_path, limits=LENIENT)
    ends = [int(good._find(i)[1]["txt_at"]) + 600 for i in range(6)]
    for cut in range(1, len(whole) - 10240, 397):
        path = tmp_path / "cut.tar"
        path.write_bytes(whole[:cut])
        found = Shards(path, limits=LENIENT)
        expected = [f"s{i:03}" for i, end in enumerate(ends) if end <= cut]
        assert keys(found)[: len(expected)] == expected and len(found.tally) >= 1


def test_a_member_that_claims_three_gigabytes_costs_no_memory(tmp_path):
    (path,) = write_shards(tmp_path, some_records(3))
    data = bytearray(path.read_bytes())
    at = next(member.offset for member in members(path, LENIENT) if member.name == "s002.jpg") - 512
    data[at + 124 : at + 136] = b"%011o\0" % (3 << 30)
    data[at + 148 : at + 156] = b"%06o\0 " % (sum(data[at : at + 148]) + 8 * 32 + sum(data[at + 156 : at + 512]))
    path.write_bytes(data)
    reader = Shards(path, limits=LENIENT)
    assert keys(reader) == ["s000", "s001"] and "claims 3221225472 bytes" in str(reader.tally.reasons)


def test_a_picture_of_too_many_bytes_or_pixels_is_left_out_before_it_is_decoded(tmp_path):
    big = picture(1, size=(3000, 2000))
    shard = tar_of(tmp_path / "x.tar", *sample_files("a"), ("b.png", big), ("b.txt", b"big"))
    assert keys(Shards(shard, limits=Limits(broken=1, pixels=5_999_999))) == ["a"]
    assert keys(Shards(shard, limits=Limits(broken=1, pixels=6_000_000))) == ["a", "b"]
    assert keys(Shards(shard, limits=Limits(broken=1, picture=len(big) - 1))) == ["a"]


def test_a_shard_cut_after_it_was_indexed_loses_only_its_end(tmp_path):
    path = write_shards(tmp_path, some_records(6))[0]
    reader = Shards(path, limits=LENIENT)
    with path.open("rb+") as file:
        file.truncate(reader._find(3)[1]["picture_at"] + 5)
    assert keys(reader) == ["s000", "s001", "s002"]
    path.unlink()
    with pytest.raises(BadSampleError):
        reader[0]


def test_mutants_of_a_shard_never_raise_anything_but_our_error(tmp_path):
    whole = bytearray(write_shards(tmp_path, some_records(3))[0].read_bytes())
    path, rng = tmp_path / "mutant.tar", random.Random(1)
    for _ in range(600):
        mutant = bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            at = rng.choice([rng.randrange(len(whole)), 512 * rng.randrange(len(whole) // 512) + rng.randrange(512)])
            mutant[at] = rng.randrange(256)
        path.write_bytes(mutant)
        try:
            list(Shards(path, limits=LENIENT))
        except CartoucheError:
            continue


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_mutants_of_a_picture_are_read_or_left_out(tmp_path, kind):
    file, rng = io.BytesIO(), random.Random(2)
    pixels = np.random.default_rng(0).integers(0, 255, (9, 9, 3), np.uint8)
    Image.fromarray(pixels).save(file, kind, exif=Image.Exif())
    suffix, data = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}[kind], file.getvalue()
    files = []
    for number in range(400):
        mutant = bytearray(data)
        for _ in range(rng.randint(1, 8)):
            mutant[rng.randrange(len(mutant))] = rng.randrange(256)
        files += [(f"{number}.{suffix}", bytes(mutant)), (f"{number}.txt", b"a mutant")]
    reader = Shards(tar_of(tmp_path / "x.tar", *files), limits=LENIENT)
    assert len(keys(reader)) + len(reader.tally) == 400


def test_bad_lines_of_metadata_are_counted_and_missing_pictures_too(tmp_path):
    write_folder(tmp_path, some_records(3))
    lines = [
        "not json",
        '{"text": "no file"}',
        "[]",
        '{"file_name": "gone.png", "text": "a"}',
        '{"file_name": "s000.png", "text": ""}',
    ]
    lines += [
        '{"file_name": "notes.md", "text": "a"}',
        '{"file_name": "pipe.png", "text": "a"}',
        '{"x": "' + "y" * 5000 + '"}',
        '{"file_name": "\\ud800.png", "text": "a"}',
        '{"file_name": "s000.png", "text": "\\ud800"}',
        "",
    ]
    os.mkfifo(tmp_path / "pipe.png")
    with (tmp_path / "metadata.jsonl").open("a") as file:
        file.write("\n".join(lines) + "\n" + '{"file_name": "s001.webp", "text": "the last"}\n')
    reader = Folder(tmp_path, limits=Limits(broken=1, text=1000))
    assert keys(reader) == ["s000", "s001", "s002", "s001"] and len(reader.tally) == 10
    assert any(where.endswith("line 4") for where in reader.tally.reasons), "the first bad line is the fourth"


# hostile files


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (tarfile.SYMTYPE, {"linkname": "/etc/passwd"}),
        (tarfile.LNKTYPE, {"linkname": "b.png"}),
        (tarfile.CHRTYPE, {}),
        (tarfile.BLKTYPE, {}),
        (tarfile.FIFOTYPE, {}),
        (tarfile.GNUTYPE_SPARSE, {}),
        (tarfile.REGTYPE, {"pax_headers": {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}}),
        (b"Q", {}),
    ],
)
def test_links_devices_and_sparse_members_are_refused(tmp_path, kind, more):
    with pytest.raises(CartoucheError, match=r"only ordinary files are read"):
        Shards(add_special(tmp_path / "x.tar", "a.png", kind, **more))


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "a/../../b.png", "..", "c:\\a.png", "a\\..\\b.png", "a\nb.png"])
def test_names_that_lead_outside_are_refused(tmp_path, name):
    with pytest.raises(CartoucheError, match="could lead outside"):
        Shards(add_special(tmp_path / "x.tar", name, tarfile.REGTYPE))
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": name, "text": "a"}) + "\n")
    with pytest.raises(CartoucheError, match="could lead outside"):
        Folder(tmp_path)
    for write in (write_shards, write_folder):
        with pytest.raises(CartoucheError, match="could lead outside"):
            write(tmp_path / "out", [Record(name, "png", b"", "a")])
    files = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(files) == ["metadata.jsonl", "x.tar"]


def test_more_entries_than_the_limit_are_refused(tmp_path):
    path = tar_of(tmp_path / "x.tar", *((f"{i}.cls", b"") for i in range(20)))
    with pytest.raises(CartoucheError, match="over 19 entries"):
        Shards(path, limits=Limits(members=19))
    assert len(Shards(path, limits=Limits(members=20))) == 0


def test_a_compressed_tar_is_refused_with_the_remedy(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.png"))
    with pytest.raises(CartoucheError, match="gunzip"):
        Shards(tmp_path / "x.tar")


def test_no_pickle_is_opened_and_no_process_started(tmp_path):
    canary = tmp_path / "canary"

    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {canary}",)

    bomb, seen = pickle.dumps(Bomb()), []
    names = [f"a.{suffix}" for suffix in ("pkl", "pyd", "pickle", "pth", "npy", "cls", "ten", "mp")]
    shard = tar_of(tmp_path / "x.tar", *sample_files("a"), *((name, bomb) for name in names))
    plain = tar_of(tmp_path / "plain.tar", *sample_files("b"))
    for _ in "ab":  # so that every module is imported: the second time the index comes from its file
        keys(Shards(plain, cache=tmp_path / "cache"))
    sys.addaudithook(lambda event, _: seen.append(event) if event in FORBIDDEN and watching else None)
    watching = ["now"]
    assert keys(Shards(shard, cache=tmp_path / "cache")) == keys(Shards(shard, cache=tmp_path / "cache")) == ["a"]
    watching.clear()
    assert not seen and not canary.exists()


FORBIDDEN = {
    "pickle.find_class",
    "os.system",
    "subprocess.Popen",
    "socket.connect",
    "exec",
    "os.exec",
    "os.posix_spawn",
}


def test_a_key_given_twice_is_refused_and_nothing_half_written_is_left(tmp_path):
    for write in (write_shards, write_folder):
        with pytest.raises(CartoucheError, match="given twice"):
            write(tmp_path / write.__name__, [*some_records(2), some_records(1)[0]])
    assert not list((tmp_path / "write_shards").glob("*"))
    assert not (tmp_path / "write_folder" / "metadata.jsonl").exists()
