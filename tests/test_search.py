import builtins
import itertools
import json
import os
from dataclasses import dataclass, field

import numpy as np
import pytest
from PIL import Image

from cartouche import files
from cartouche.config import CartoucheError
from cartouche.read import approximate, search
from cartouche.read.search import Entry, Index, asked, exact, update
from cartouche.weights import safetensors

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "pink": (255, 120, 120)}


@dataclass
class ByColour:
    """A matcher whose space is RGB: a picture is its mean colour, a text the colour it names."""

    hash: str = "rgb"
    batch: int = 2
    width: int = 3
    seen: list = field(default_factory=list)

    def prepare(self, pixels):
        return pixels.mean((0, 1)).astype(np.float32).reshape(3, 1, 1)

    def prepared(self, arrays):
        rows = [one.ravel() for one in arrays]
        self.seen += rows
        found = np.array(rows, np.float32).reshape(-1, 3)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    def pixels(self, pictures):
        return self.prepared(map(self.prepare, pictures))

    def texts(self, texts):
        found = np.array([COLOURS[one] for one in texts], np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)


def paint(path, colour, size=4):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), COLOURS[colour]).save(path)
    return path


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for name, colour in {"a.png": "red", "b.png": "green", "in/c.png": "blue", "in/d.png": "pink"}.items():
        paint(folder / name, colour)
    return folder


def names(hits, folder):
    return [hit.path.relative_to(folder).as_posix() for hit in hits]


def found(photos, query, matcher=None, **more):
    matcher = matcher or ByColour()
    return names(Index.load(photos).checked(matcher).search(asked(matcher, query), **more), photos)


def read(photos, matcher=None, **more):
    """What an update read: the names in order, and the last progress."""
    steps = list(update(photos, matcher or ByColour(), **more))
    return [step.name for step in steps[1:]], steps[-1]


# searching


def test_the_nearest_pictures_come_first(photos):
    read(photos)
    assert found(photos, "red") == ["a.png", "in/d.png", "b.png", "in/c.png"]
    assert found(photos, "blue", count=1) == ["in/c.png"]


def test_a_picture_is_a_query_like_a_text(photos, tmp_path):
    read(photos)
    assert found(photos, str(paint(tmp_path / "q.png", "green")), count=1) == ["b.png"]


@pytest.mark.parametrize(("total", "count"), [(1, 1), (7, 3), (40, 40), (40, 60), (1000, 10)])
def test_search_by_blocks_is_the_sort_of_all_products(total, count, monkeypatch):
    monkeypatch.setattr(search, "BLOCK", 64)
    rng = np.random.default_rng(total)
    vectors, query = np.round(rng.normal(size=(total, 4)), 1).astype(np.float32), rng.normal(size=4).astype(np.float32)
    scores = vectors @ query
    order = np.argsort(-scores, kind="stable")[:count]
    rows = exact(vectors, query, count)
    assert [row for row, _ in rows] == order.tolist()
    assert np.allclose([score for _, score in rows], scores[order])


def test_nothing_is_found_in_an_empty_folder_and_a_folder_without_index_says_what_to_type(tmp_path):
    with pytest.raises(CartoucheError, match=r"has no index; make one with `cartouche index .*empty`"):
        Index.load(tmp_path / "empty")
    (tmp_path / "empty").mkdir()
    assert read(tmp_path / "empty")[0] == []
    assert found(tmp_path / "empty", "red") == []
    with pytest.raises(CartoucheError, match="is not a folder"):
        read(tmp_path / "none")


def test_a_count_of_nothing_is_refused(photos):
    read(photos)
    with pytest.raises(CartoucheError, match="count=0"):
        found(photos, "red", count=0)


# keeping up with the folder


def test_what_is_known_is_not_read_again(photos):
    assert read(photos)[0] == ["a.png", "b.png", "in/c.png", "in/d.png"]
    matcher = ByColour()
    steps, last = read(photos, matcher)
    assert steps == [] and matcher.seen == [] and (last.kept, last.gone, last.total) == (4, 0, 0)


def test_changed_new_and_deleted_pictures_are_noticed(photos):
    read(photos)
    paint(photos / "a.png", "blue", size=5)
    paint(photos / "e.png", "red")
    (photos / "b.png").unlink()
    steps, last = read(photos)
    assert steps == ["a.png", "e.png"] and (last.kept, last.gone) == (2, 1)
    assert found(photos, "red") == ["e.png", "in/d.png", "a.png", "in/c.png"]


def test_deleting_alone_is_noticed_too(photos):
    read(photos)
    (photos / "in" / "c.png").unlink()
    assert read(photos)[1].gone == 1
    assert "in/c.png" not in found(photos, "blue")


def test_a_file_with_another_time_is_read_again_though_it_has_the_same_size(photos):
    read(photos)
    state = (photos / "a.png").stat()
    paint(photos / "a.png", "green")
    os.utime(photos / "a.png", ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert read(photos)[0] == ["a.png"]


def test_broken_pictures_are_left_out_said_with_the_reason_and_not_tried_again_until_they_change(photos):
    (photos / "bad.png").write_bytes(b"\x89PNG no picture")
    (photos / "empty.jpg").write_bytes(b"")
    said = {step.name: step.why for step in update(photos, ByColour())}
    assert "not a picture" in said["bad.png"] and said["empty.jpg"] and not said["a.png"]
    assert {one.name for one in Index.load(photos).broken} == {"bad.png", "empty.jpg"}
    assert read(photos)[0] == [] and len(found(photos, "red")) == 4
    paint(photos / "bad.png", "red", size=9)
    assert read(photos)[0] == ["bad.png"] and Index.load(photos).broken[0].name == "empty.jpg"


def test_only_pictures_are_read_and_nothing_hidden(photos):
    paint(photos / ".hidden" / "x.png", "red")
    paint(photos / ".x.png", "red")
    (photos / "notes.txt").write_text("no picture")
    os.mkfifo(photos / "pipe.png")
    assert read(photos)[0] == ["a.png", "b.png", "in/c.png", "in/d.png"]


def test_what_was_read_before_an_interruption_is_kept(photos):
    steps = update(photos, ByColour())
    assert [next(steps).name for _ in range(4)] == ["", "a.png", "b.png", "in/c.png"]
    steps.close()
    assert len(Index.load(photos).entries) == 4, "the batch that was read is kept whole"
    paint(photos / "z.png", "red")
    matcher = ByColour()
    assert read(photos, matcher)[0] == ["z.png"] and len(matcher.seen) == 1


def test_an_index_is_saved_on_the_way_and_a_failure_leaves_the_last_one(photos, monkeypatch):
    monkeypatch.setattr(search, "SAVE_EVERY", -1.0)
    clock = itertools.count()
    monkeypatch.setattr(search.time, "monotonic", lambda: float(next(clock)))
    steps = update(photos, ByColour())
    while next(steps).done < 3:
        pass
    saved = (photos / ".cartouche" / "index.safetensors").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(CartoucheError, match=r"cannot write .*No space left on device; .*--index"):
        steps.close()
    assert (photos / ".cartouche" / "index.safetensors").read_bytes() == saved
    assert os.listdir(photos / ".cartouche") == ["index.safetensors"]
    assert len(Index.load(photos).entries) == 2


def test_the_index_may_lie_elsewhere(photos, tmp_path):
    read(photos, place=tmp_path / "index")
    assert not (photos / ".cartouche").exists()
    assert len(Index.load(photos, tmp_path / "index").entries) == 4


def test_names_in_any_letters_come_back(photos):
    odd = [os.fsdecode(b"caf\xe9.png"), "Übung \n 1.png", "C:x.png", "a\\b.png"]
    for name in odd:
        paint(photos / name, "red")
    read(photos)
    assert set(odd) <= {one.name for one in Index.load(photos).entries}
    assert read(photos)[0] == []


# what an index must not do


def test_an_index_of_another_model_is_refused_with_what_to_type(photos):
    read(photos)
    for use in (lambda: found(photos, "red", ByColour(hash="other")), lambda: read(photos, ByColour(hash="other"))):
        with pytest.raises(CartoucheError, match=r"model rgb, this one is other; .*`cartouche index .* --force`"):
            use()
    assert len(read(photos, ByColour(hash="other"), anew=True)[0]) == 4
    assert found(photos, "red", ByColour(hash="other"), count=1) == ["a.png"]


def rewritten(photos, about=None, **change):
    """The index with some of it put in another's words."""
    path = photos / ".cartouche" / "index.safetensors"
    tensors, metadata = safetensors.load_numpy(path), safetensors.metadata(path)
    files = json.loads(tensors["files"].tobytes()) | change
    tensors["files"] = np.frombuffer(json.dumps(files).encode(), np.uint8)
    safetensors.save(path, tensors, metadata | (about or {}))


@pytest.mark.parametrize(
    ("about", "change"),
    [
        ({"format": "cartouche-index-9"}, {}),
        ({"token": "../../x"}, {}),
        ({}, {"files": []}),
        ({}, {"files": [["../../etc/passwd.png", 1, 1, ""]] * 4}),
        ({}, {"files": [["/etc/passwd.png", 1, 1, ""]] * 4}),
        ({}, {"files": [1, 2, 3, 4]}),
        ({}, {"broken": None}),
    ],
)
def test_a_damaged_or_hostile_index_is_refused(photos, about, change):
    read(photos)
    rewritten(photos, about, **change)
    with pytest.raises(CartoucheError, match=r"damaged .*index .*photos again"):
        Index.load(photos)
    assert len(read(photos, anew=True)[0]) == 4


def test_an_index_of_vectors_of_another_width_is_refused(photos):
    read(photos)
    path = photos / ".cartouche" / "index.safetensors"
    tensors, metadata = safetensors.load_numpy(path), safetensors.metadata(path)
    safetensors.save(path, tensors | {"vectors": tensors["vectors"][:, :2].copy()}, metadata)
    with pytest.raises(CartoucheError, match=r"damaged: .* make it anew"):
        found(photos, "red")


def test_an_index_cut_short_is_refused(photos):
    read(photos)
    path = photos / ".cartouche" / "index.safetensors"
    data = path.read_bytes()
    for cut in range(0, len(data), 37):
        path.write_bytes(data[:cut])
        with pytest.raises(CartoucheError):
            Index.load(photos)


# more than a million


@pytest.fixture
def many(photos, monkeypatch):
    monkeypatch.setattr(approximate, "EXACT", 100)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(2000, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = Index(photos, photos / ".cartouche", "m", [Entry(f"{i:04}.png", 1, 1) for i in range(2000)], vectors)
    index.save()
    return index


def test_a_graph_of_neighbours_finds_what_the_exact_search_finds(many):
    pytest.importorskip("usearch", reason="usearch is not installed: pip install 'cartouche-ai[search]'")
    assert approximate.write(many.place, many.token, many.vectors)
    index, right = Index.load(many.folder), 0
    for i in range(20):
        query = -many.vectors[i]
        hits, truth = index.search(query, 10), exact(many.vectors, query, 10)
        right += len({hit.path.name for hit in hits} & {f"{row:04}.png" for row, _ in truth})
        scores = [float(many.vectors[int(hit.path.stem)] @ query) for hit in hits]
        assert np.allclose([hit.score for hit in hits], scores, atol=1e-6) and scores == sorted(scores, reverse=True)
    assert right >= 190
    many.save()
    assert approximate.write(many.place, many.token, many.vectors)
    assert len(list(many.place.glob("*.usearch"))) == 1, "the graph of the earlier index is gone"


def test_without_a_graph_the_search_is_exact_and_says_how_to_get_one(many, monkeypatch):
    query = many.vectors[7]
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("usearch"):
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", without)
        assert not approximate.write(many.place, many.token, many.vectors)
        with pytest.warns(approximate.SlowWarning, match=r"2,000 pictures; pip install 'cartouche-ai\[search\]'"):
            assert many.search(query, 1)[0].path.name == "0007.png"


def test_a_million_is_searched_without_a_graph(photos):
    read(photos)
    index = Index.load(photos)
    assert approximate.EXACT == 1_000_000
    assert approximate.candidates(index.place, index.token, 1_000_000, index.vectors[0], 10) is None
    assert not approximate.write(index.place, index.token, index.vectors)
