"""Files appear whole or not at all, whoever writes them."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from cartouche import files
from cartouche.config import CartoucheError


def test_what_fails_in_the_middle_leaves_the_old_file_and_no_other(tmp_path: Path):
    def write(path: Path) -> None:
        with files.whole(path) as file:
            file.write(b"new")
            raise ZeroDivisionError

    path = files.write_whole(tmp_path / "a", b"old")
    with pytest.raises(ZeroDivisionError):
        write(path)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


def test_until_the_end_of_the_block_the_old_file_is_there(tmp_path: Path):
    path = files.write_whole(tmp_path / "a", b"old")
    with files.whole(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_a_name_that_is_taken_in_the_meantime_is_kept_unless_forced(tmp_path: Path):
    def write(path: Path) -> None:
        with files.whole(path, force=False) as file:
            file.write(b"late")
            path.write_bytes(b"early")

    path = tmp_path / "a"
    with pytest.raises(FileExistsError):
        write(path)
    assert path.read_bytes() == b"early" and os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_refuses_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch, call: str, code: int):
    path = files.write_whole(tmp_path / "a", b"old")

    def refuses(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, call, refuses)
    with pytest.raises(CartoucheError, match=os.strerror(code)):
        files.write_whole(path, b"new", force=True)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


def test_the_sum_of_a_file_is_its_own_and_that_of_several_depends_on_their_order(tmp_path: Path):
    one, two = (files.write_whole(tmp_path / name, name.encode()) for name in "ab")
    assert files.digest(one) == hashlib.sha256(b"a").hexdigest()
    assert files.fingerprint(one) == files.digest(one)[:10]
    assert len({files.digest(one), files.digest(one, two), files.digest(two, one)}) == 3
