"""Broken safetensors: each opens or is refused, in our words, at once and in little memory."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cartouche.config import CartoucheError
from cartouche.weights import inspect, safetensors

HERE = Path(__file__).parent
MUTANTS = int(os.environ.get("CARTOUCHE_MUTANTS", "20000"))


def whole_file(path: Path) -> bytes:
    tensors = {
        "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.ones(5, np.float16),
        "c": np.zeros(7, np.uint8),
        "d": np.zeros((0, 3), np.int64),
    }
    safetensors.save(path, tensors, {"format": "pt"})
    return path.read_bytes()


def mutant(whole: bytes, rng: random.Random) -> bytes:
    """The file truncated, with bits turned, another header length, bytes put in, or a number of its header changed."""
    content, kind, at = bytearray(whole), rng.randrange(5), rng.randrange(len(whole))
    length = int.from_bytes(whole[:8], "little")
    if kind == 0:
        del content[at:]
    elif kind == 1:
        for _ in range(rng.randint(1, 3)):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        lengths = (rng.randrange(2**64), rng.randrange(2 * len(whole)), 2**63, 100_000_001, 0)
        content[:8] = rng.choice(lengths).to_bytes(8, "little")
    elif kind == 3:
        content[at:at] = rng.randbytes(rng.randint(1, 8))
    else:
        header = whole[8 : 8 + length]
        digits = [i for i, byte in enumerate(header) if chr(byte).isdigit()]
        place = rng.choice(digits)
        value = rng.choice(
            (b"0", b"-1", b"1e9", b"99999999999999999999", b"[]", b"null", b"2", b"18446744073709551615")
        )
        header = header[:place] + value + header[place + 1 :]
        content = bytearray(len(header).to_bytes(8, "little") + header + whole[8 + length :])
    return bytes(content)


def test_of_many_mutants_each_opens_or_is_refused_in_our_words(tmp_path):
    memory = Path("/dev/shm")
    path = (memory if os.access(memory, os.W_OK) else tmp_path) / f"mutant-{os.getpid()}.safetensors"
    whole, rng, opened = whole_file(path), random.Random(4), 0
    try:
        for _ in range(MUTANTS):
            path.write_bytes(mutant(whole, rng))
            try:
                layout = safetensors.layout(path)
                arrays = safetensors.load_numpy(path)
                safetensors.metadata(path)
            except CartoucheError as error:
                assert "\n" not in str(error)
                continue
            opened += 1
            assert {name: one.shape for name, one in arrays.items()} == {
                name: one.shape for name, one in layout.items()
            }
            if opened % 20 == 0:
                inspect.info(path)
                assert safetensors.load(path).keys() == arrays.keys()
    finally:
        path.unlink(missing_ok=True)
    assert MUTANTS // 500 < opened < MUTANTS // 4


def raw(path: Path, header: dict[str, Any] | str, data: bytes) -> Path:
    """A file with this header, whatever it says."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(start: int, stop: int, shape: list[int], kind: str = "U8") -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [start, stop]}


TWICE = '{"a": {"dtype":"U8","shape":[2],"data_offsets":[0,2]}, "a": {"dtype":"U8","shape":[2],"data_offsets":[0,2]}}'
DEEP = '{"a": ' + "[" * 10_000 + "]" * 10_000 + "}"


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"a": entry(0, 4, [4]), "b": entry(2, 6, [4])}, b"123456"),
        ({"a": entry(0, 4, [4]), "b": entry(0, 4, [4])}, b"1234"),
        ({"a": entry(0, 2, [2]), "b": entry(3, 5, [2])}, b"12345"),
        ({"a": entry(0, 2, [2])}, b"12trailing"),
        ({"a": entry(0, 2, [3])}, b"12"),
        ({"a": entry(0, 0, [3])}, b""),
        ({"a": entry(0, 0, [0]), "b": entry(0, 0, [0, 5])}, b""),
        ({"a": entry(0, 0, [0, 2**62])}, b""),
        ({"a": entry(0, 1, [1] * 200)}, b"1"),
        ({"a": entry(2, 0, [2])}, b"12"),
        ({"a": entry(0, 2, [2**32, 2**32])}, b"12"),
        ({"a": entry(0, 2, [2], "PICKLE")}, b"12"),
        ({"a": entry(0, 2, [-2])}, b"12"),
        ({"__metadata__": {"x": {"y": 1}}, "a": entry(0, 1, [1])}, b"1"),
        (TWICE, b"12"),
        (DEEP, b""),
        ("[]", b""),
        ('{"a"', b""),
    ],
    ids=[
        *["overlap", "same place", "hole", "trailing bytes", "too short", "no bytes", "empty ones in one place"],
        *["endless but empty", "200 axes", "backwards", "overflow", "unknown type", "negative", "odd metadata"],
        *["name twice", "nested", "a list", "cut"],
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, header, data):
    path = raw(tmp_path / "a.safetensors", header, data)
    for load in (safetensors.layout, safetensors.load, safetensors.load_numpy, safetensors.metadata, inspect.info):
        with pytest.raises(CartoucheError):
            load(path)


def test_two_tensors_without_a_number_are_not_written_either(tmp_path):
    with pytest.raises(CartoucheError, match="hold no number"):
        safetensors.save(tmp_path / "a.safetensors", {"a": np.zeros(0), "b": np.zeros((0, 2))})
    assert not list(tmp_path.iterdir())


MEASURE = """
import resource, sys
from pathlib import Path
from cartouche.config import CartoucheError
from cartouche.weights import safetensors
safetensors.layout(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
refused = 0
for path in map(Path, sys.argv[2:]):
    for load in (safetensors.layout, safetensors.load_numpy):
        try:
            load(path)
        except CartoucheError:
            refused += 1
print(refused, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def measured(*paths: Path) -> tuple[int, int]:
    """How many loads were refused, and how far the memory of a process grew over all of them."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(HERE.parent)},
    )
    refused, grown = map(int, done.stdout.split())
    return refused, grown


def test_broken_files_take_less_memory_than_twice_their_size_and_whole_ones_too(tmp_path):
    size, small = 48 << 20, tmp_path / "small.safetensors"
    whole_file(small)
    fine = raw(tmp_path / "fine.safetensors", {"a": entry(0, size, [size // 4], "F32")}, b"\0" * size)
    content = fine.read_bytes()
    broken = []
    for name, bad in {
        "cut": content[:-1],
        "longer": content + b"\0",
        "length": (size - 100).to_bytes(8, "little") + content[8:],
        "huge": (100_000_001).to_bytes(8, "little") + content[8:],
        "braces": size.to_bytes(8, "little") + b"{" * (size + 8),
    }.items():
        broken.append(tmp_path / f"{name}.safetensors")
        broken[-1].write_bytes(bad)
    refused, grown = measured(small, fine, *broken)
    assert refused == 2 * len(broken)
    assert grown < 2 * size


def test_a_million_names_are_refused_before_they_are_read(tmp_path):
    rows = (f'"{i}":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{i + 1}]}}' for i in range(1_000_000))
    path = raw(tmp_path / "a.safetensors", "{" + ",".join(rows) + "}", b"\0" * 1_000_000)
    small = tmp_path / "small.safetensors"
    whole_file(small)
    refused, grown = measured(small, path)
    assert refused == 2 and grown < 2 * path.stat().st_size
    with pytest.raises(CartoucheError, match="1,000,000 tensors; wanted 100,000 at most"):
        safetensors.layout(path)
