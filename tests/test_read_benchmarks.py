"""The benchmarks of reading at the smallest size: each returns the fields that its JSON has."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image
from small_readers import reading_model
from test_benchmarks import script, storable
from toy_pack import write_pack

from cartouche.data.emoji import Pack
from cartouche.read.domain import Domain
from cartouche.read.match import Matcher
from cartouche.text import CutWarning


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return Pack(write_pack(tmp_path_factory.mktemp("pack")))


@pytest.fixture(scope="module")
def matcher(tmp_path_factory):
    return Matcher(reading_model(tmp_path_factory.mktemp("reading") / "model"), "torch")


@pytest.mark.filterwarnings(f"ignore::{CutWarning.__module__}.{CutWarning.__name__}")  # the tiny tower takes 14 tokens
def test_labels_and_arithmetic_are_counted_with_their_intervals(pack, matcher, monkeypatch):
    match = script("match")
    monkeypatch.setattr(match, "hundred_names", lambda drawings: ["c1", "c2"])
    report = match.measure(matcher, pack, 6)
    assert storable(report) and report["labels"]["names"] == 2
    assert report["labels"]["templates, fr"]["@5"]["rate"] == 1, "of two names both are among the best five"
    found = report["arithmetic"]
    assert found["names"] == 11 + 11 * 2 and 1 <= found["median rank"] <= 33
    assert found["honest"]["rate"] <= found["usual"]["rate"], "leaving the terms out only helps"


def test_other_worlds_are_told_from_scenes(pack, matcher, tmp_path):
    outside = script("outside")
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(photos / f"{i}.png")
    with tarfile.open(tmp_path / "more.tar.gz", "w:gz") as archive:
        entry, data = tarfile.TarInfo("a.png"), (photos / "0.png").read_bytes()
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
        archive.addfile(tarfile.TarInfo("a.cls"))
    domain, report = outside.measure(matcher, pack, outside.others(tmp_path), None, 40, 8, "pairs")
    assert isinstance(domain, Domain) and storable(report)
    assert {name: found["pictures"] for name, found in report["others"].items()} == {"more": 1, "photos": 3}
    assert report["others"]["photos"]["auroc by texture"] == 1, "noise is no drawing"
    assert report["in the world"]["scenes"]["auroc"] == 0.5
    assert report["in the world"]["scenes through a JPEG"]["pictures"] == 4
