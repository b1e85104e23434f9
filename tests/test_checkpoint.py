"""Checkpoints and safetensors: whole or not at all, damaged ones noticed, the order that survives a power cut."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from cartouche import files
from cartouche.config import CartoucheError
from cartouche.train import checkpoint
from cartouche.weights import safetensors


def tensors(value: float) -> dict[str, dict[str, torch.Tensor]]:
    net = {"weight": torch.full((4, 3), value), "bias": torch.arange(4.0) + value}
    optimizer = {"weight/exp_avg": torch.ones(4, 3), "weight/step": torch.tensor(value)}
    return {"net": net, "ema": {name: one / 2 for name, one in net.items()}, "optimizer": optimizer}


def saved(out: Path, *steps: int, keep: int = 0) -> list[Path]:
    return [checkpoint.save(out, tensors(float(step)), {"step": step, "samples": 2 * step}, keep) for step in steps]


def test_what_is_saved_comes_back_bit_for_bit(tmp_path: Path):
    saved(tmp_path, 3)
    found = checkpoint.newest(tmp_path)
    assert found is not None and found.step == 3 and found.state["samples"] == 6
    for name, wanted in tensors(3.0).items():
        got = found.tensors(name)
        assert got.keys() == wanted.keys()
        assert all(torch.equal(got[key], wanted[key]) and got[key].shape == wanted[key].shape for key in wanted)


def test_only_the_newest_are_kept(tmp_path: Path):
    saved(tmp_path, 1, 2, 30, 100, keep=2)
    assert [one.name for one in checkpoint.folders(tmp_path)] == ["step-00000030", "step-00000100"]


def test_an_empty_folder_has_no_checkpoint(tmp_path: Path):
    assert checkpoint.newest(tmp_path) is None


def bytes_to_damage(folder: Path, flips: int, cuts: int) -> Iterator[tuple[Path, bytes]]:
    """(file, damaged content): single flipped bits and truncations, spread over all files of a checkpoint."""
    rng = random.Random(1)
    files = sorted(folder.iterdir())
    for number in range(flips + cuts):
        path = files[number % len(files)]
        content = bytearray(path.read_bytes())
        place = rng.randrange(len(content))
        if number < flips:
            content[place] ^= 1 << rng.randrange(8)
        else:
            del content[place:]
        yield path, bytes(content)


def test_a_flipped_bit_or_a_cut_anywhere_falls_back_to_the_one_before_and_names_the_file(tmp_path: Path):
    _, newest = saved(tmp_path, 1, 2)
    for path, damaged in bytes_to_damage(newest, flips=200, cuts=20):
        whole = path.read_bytes()
        path.write_bytes(damaged)
        with pytest.warns(checkpoint.DamagedWarning, match=path.name):
            found = checkpoint.newest(tmp_path)
        assert found is not None and found.step == 1
        path.write_bytes(whole)
    again = checkpoint.newest(tmp_path)
    assert again is not None and again.step == 2


@pytest.mark.parametrize("name", ["net.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"])
def test_a_missing_file_falls_back_to_the_one_before(tmp_path: Path, name: str):
    _, newest = saved(tmp_path, 1, 2)
    (newest / name).unlink()
    with pytest.warns(checkpoint.DamagedWarning, match=name):
        found = checkpoint.newest(tmp_path)
    assert found is not None and found.step == 1


def test_a_file_that_the_disk_cannot_give_back_falls_back_to_the_one_before(tmp_path: Path, monkeypatch):
    saved(tmp_path, 1, 2)
    digest = files.digest

    def failing(path: Path) -> str:
        if path.parent.name.endswith("2"):
            raise OSError(errno.EIO, "Input/output error")
        return digest(path)

    monkeypatch.setattr(files, "digest", failing)
    with pytest.warns(checkpoint.DamagedWarning, match=r"is damaged \(Input/output error\)"):
        found = checkpoint.newest(tmp_path)
    assert found is not None and found.step == 1


def test_when_none_is_whole_nothing_is_started_anew_in_silence(tmp_path: Path):
    (only,) = saved(tmp_path, 1)
    (only / "net.safetensors").write_bytes(b"")
    with pytest.raises(CartoucheError, match=r"no checkpoint in .* is whole.*net\.safetensors"):
        checkpoint.newest(tmp_path)


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path: Path):
    _, newest = saved(tmp_path, 1, 2)
    (newest / "net.safetensors").unlink()
    saved(tmp_path, 2)
    found = checkpoint.newest(tmp_path)
    assert found is not None and found.step == 2
    assert not list(tmp_path.glob(".step*"))


def test_every_file_is_synced_before_the_rename_and_the_parent_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    events: list[tuple[str, str]] = []
    fsync, rename = os.fsync, os.rename

    def noted_fsync(handle: int) -> None:
        events.append(("sync", os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def noted_rename(old: Any, new: Any) -> None:
        events.append(("rename", str(new)))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)
    (final,) = saved(tmp_path, 7)
    hidden = tmp_path / ".step-00000007.tmp"
    names = ["net.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"]
    files = [("sync", str(hidden / name)) for name in names]
    assert events == [*files, ("sync", str(hidden)), ("rename", str(final)), ("sync", str(tmp_path))]


def test_a_single_file_is_synced_renamed_and_its_folder_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(handle: int) -> None:
        events.append("sync folder" if Path(os.readlink(f"/proc/self/fd/{handle}")).is_dir() else "sync file")
        fsync(handle)

    def noted_replace(old: Any, new: Any) -> None:
        events.append("rename")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    safetensors.save(tmp_path / "a.safetensors", {"x": np.zeros(3)})
    assert events == ["sync file", "rename", "sync folder"]


def test_files_have_the_ordinary_mode(tmp_path: Path):
    before = os.umask(0o027)
    try:
        (folder,) = saved(tmp_path, 1)
        safetensors.save(tmp_path / "a.safetensors", {"x": np.zeros(3)})
    finally:
        os.umask(before)
    for path in [*folder.iterdir(), tmp_path / "a.safetensors"]:
        assert path.stat().st_mode & 0o777 == 0o640


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let the system refuse to write more than `size` bytes into any file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_refusing_disk_is_told_in_one_line_and_leaves_the_old_checkpoint_and_nothing_else(tmp_path: Path):
    saved(tmp_path, 1)
    with files_of_at_most(300), pytest.raises(CartoucheError, match="checkpoints before it are untouched") as caught:
        saved(tmp_path, 2)
    assert "\n" not in str(caught.value)
    assert [one.name for one in tmp_path.iterdir()] == ["step-00000001"]
    assert checkpoint.verify(tmp_path / "step-00000001").step == 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("number", range(1, 7))
def test_whichever_sync_fails_nothing_half_written_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
):
    saved(tmp_path, 1)
    calls = 0

    def failing(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(CartoucheError, match=os.strerror(code)):
        saved(tmp_path, 2)
    monkeypatch.undo()
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == (1 if number < 6 else 2)  # the sixth comes after the rename: the new one is whole
    assert not list(tmp_path.glob(".step*"))


def test_a_single_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    safetensors.save(path, {"x": np.zeros(3)})
    before = path.read_bytes()
    with files_of_at_most(100), pytest.raises(OSError, match="too large"):
        safetensors.save(path, {"x": np.zeros(3000)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_save_left_is_cleaned_away(tmp_path: Path):
    saved(tmp_path, 1)
    (tmp_path / ".step-00000002.tmp").mkdir()
    (tmp_path / ".step-00000002.tmp" / "net.safetensors").write_bytes(b"half")
    checkpoint.clean(tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["step-00000001"]


KINDS = [name for name in safetensors.NAMES if name != "bfloat16"]


def test_the_safetensors_library_reads_what_we_write(tmp_path: Path):
    rng = np.random.default_rng(0)
    arrays = {kind: rng.integers(0, 2, (2, 3)).astype(kind) for kind in KINDS}
    arrays |= {"scalar": np.array(1.5), "empty": np.zeros((0, 4), np.float32), "turned": rng.random((3, 5)).T}
    safetensors.save(tmp_path / "a.safetensors", arrays, {"made": "here"})
    for read in (load_file(tmp_path / "a.safetensors"), safetensors.load_numpy(tmp_path / "a.safetensors")):
        assert read.keys() == arrays.keys()
        for name, array in arrays.items():
            assert read[name].dtype == array.dtype and read[name].shape == array.shape
            np.testing.assert_array_equal(read[name], array)
    assert safetensors.metadata(tmp_path / "a.safetensors") == {"made": "here"}


def test_torch_tensors_come_back_whatever_their_strides(tmp_path: Path):
    given = {
        "half": torch.randn(3, 4).to(torch.bfloat16),
        "turned": torch.randn(3, 5).T,
        "last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(2.5),
        "weight": torch.nn.Parameter(torch.randn(3)),
        "flag": torch.tensor([True, False]),
    }
    safetensors.save(tmp_path / "a.safetensors", given)
    read = safetensors.load(tmp_path / "a.safetensors")
    assert all(torch.equal(read[name], one) and read[name].dtype == one.dtype for name, one in given.items())
    wide = safetensors.load_numpy(tmp_path / "a.safetensors")["half"]
    np.testing.assert_array_equal(wide, given["half"].float().numpy())


def test_the_layout_says_where_each_tensor_lies_on_64_byte_starts(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    given = {"b": np.arange(5, dtype=np.float32), "a": np.arange(3, dtype=np.float16)}
    safetensors.save(path, given)
    content, entries = path.read_bytes(), safetensors.layout(path)
    for name, array in given.items():
        assert content[entries[name].start : entries[name].stop] == array.tobytes()
    assert min(one.start for one in entries.values()) % 64 == 0


def test_the_same_tensors_make_the_same_bytes(tmp_path: Path):
    one = safetensors.save(tmp_path / "a.safetensors", {"x": np.zeros(3), "y": np.ones(2)})
    two = safetensors.save(tmp_path / "b.safetensors", {"y": np.ones(2), "x": np.zeros(3)})
    assert one == two == files.digest(tmp_path / "a.safetensors")


def test_pickles_are_refused_under_any_name(tmp_path: Path):
    torch.save({"x": torch.zeros(2)}, tmp_path / "zip.safetensors")
    torch.save({"x": torch.zeros(2)}, tmp_path / "old.safetensors", _use_new_zipfile_serialization=False)
    safetensors.save(tmp_path / "fine.bin", {"x": np.zeros(2)})
    for name in ("zip.safetensors", "old.safetensors", "fine.bin"):
        for read in (safetensors.load, safetensors.load_numpy, safetensors.layout, safetensors.metadata):
            with pytest.raises(CartoucheError, match="pickle"):
                read(tmp_path / name)


def test_a_header_whose_length_looks_like_a_pickle_is_still_opened(tmp_path: Path):
    header = json.dumps({"x": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    for length in (0x80, 0x4B50):  # b"\\x80" and b"PK"
        path = tmp_path / f"{length}.safetensors"
        path.write_bytes(struct.pack("<Q", length) + header.ljust(length) + b"\x07")
        assert safetensors.load_numpy(path)["x"].tolist() == [7]


def test_broken_files_raise_only_our_error(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    safetensors.save(path, {"x": np.arange(9.0), "y": np.ones(2, np.float16)})
    whole, rng, refused = path.read_bytes(), random.Random(2), 0
    for _ in range(300):
        content = bytearray(whole)
        if rng.random() < 0.5:
            del content[rng.randrange(len(content)) :]
        else:
            content[rng.randrange(120)] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        for read in (safetensors.load, safetensors.load_numpy):
            try:
                read(path)
            except CartoucheError:
                refused += 1
    assert refused > 300


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path):
    with pytest.raises(CartoucheError, match="no weights at"):
        safetensors.load(tmp_path / "absent.safetensors")


def test_a_tensor_that_the_format_cannot_hold_is_refused(tmp_path: Path):
    with pytest.raises(CartoucheError, match="complex64"):
        safetensors.save(tmp_path / "a.safetensors", {"x": np.zeros(3, np.complex64)})
    assert not list(tmp_path.iterdir())
