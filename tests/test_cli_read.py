"""`cartouche read`, `index` and `search`, run as a person runs them, on a tiny random model that reads."""

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from small_readers import reading_model

from cartouche import images
from cartouche.cli import main
from cartouche.read import reader as readers
from cartouche.read.describe import Said
from cartouche.read.domain import Cloud, Domain
from cartouche.read.locate import Found


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return reading_model(tmp_path_factory.mktemp("reading") / "model")


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def cartouche(model, capsys):
    """The command in this process: (exit code, stdout, stderr)."""

    def run(*arguments, folder=model):
        code = main([*map(str, arguments), "--model", str(folder), "--engine", "torch"])
        return (code, *capsys.readouterr())

    return run


def photo(name, colour="red", size=(20, 12)):
    Image.new("RGB", size, colour).save(name)
    return name


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, colour in enumerate(("red", "green", "blue")):
        photo(folder / f"{colour}.png", colour, (20 + i, 12))
    return folder


@pytest.fixture
def told(monkeypatch):
    """A reader whose captioner and detector say what is known, in place of a random net's noise."""
    box = (2.0, 1.0, 8.0, 6.0)
    apple = {"name": "apple", "colour": "red", "count": 1, "box": list(box)}
    scene = {
        "objects": [apple],
        "relations": [],
        "background": ["blue"],
        "split": "",
        "style": "flat",
        "confidence": 0.5,
    }
    captions = {"en": Said("a red apple", 0.875), "fr": Said("une pomme rouge", 0.875)}
    asked = SimpleNamespace(
        caption=lambda pictures, language: [captions[language]] * len(pictures),
        scenes=lambda pictures: [scene] * len(pictures),
        ask=lambda picture, question, examples, language: Said(f"answer to {question}", 0.5),
        look=lambda pictures, names, least, language: [
            [Found(name, 0.75, box, np.ones(one.shape[:2], bool)) for name in names if name != "cat"]
            for one in pictures
        ],
    )
    monkeypatch.setattr(readers.Reader, "describer", asked)
    monkeypatch.setattr(readers.Reader, "locator", asked)


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


# read


def test_a_picture_is_described_in_a_paragraph_and_a_table(cartouche, told):
    photo("a.png")
    code, out, err = cartouche("read", "a.png")
    assert (code, err) == (0, "")
    assert out == (
        "a.png (20x12)\nA red apple.\n"
        "  caption      87.5%  a red apple\n"
        "  object       50.0%  1 red apple at 2 1 8 6\n"
        "  background   50.0%  blue\n"
        "  style        50.0%  flat\n\n"
    )
    assert lines(cartouche("read", "a.png", "--json")[1])[0]["scene"]["objects"][0]["name"] == "apple"
    assert "Une pomme rouge." in cartouche("read", "a.png", "--language", "fr")[1]


def test_every_question_may_be_asked_at_once_and_answered_in_json(cartouche, told):
    photo("a.png")
    code, out, _ = cartouche("read", "a.png", "--labels", "cat, dog", "--find", "apple,cat", "--ask", "why?", "--json")
    (line,) = lines(out)
    assert code == 0 and line["event"] == "reading"
    assert (line["path"], line["width"], line["height"], line["outside"]) == ("a.png", 20, 12, None)
    assert set(line["labels"]) == {"cat", "dog"} and sum(line["labels"].values()) == pytest.approx(1, abs=1e-5)
    assert line["found"] == [{"name": "apple", "score": 0.75, "box": [2, 1, 8, 6], "pixels": 240}]
    assert line["answer"] == {"text": "answer to why?", "confidence": 0.5}
    assert "caption" not in line and "scene" not in line, "asked something, it is not described too"


def test_labels_come_with_the_surest_first(cartouche):
    photo("a.png")
    code, out, _ = cartouche("read", "a.png", "--labels", "cat,dog,red apple")
    shares = [float(line.split()[1].rstrip("%")) for line in out.splitlines() if line.startswith("  label")]
    assert (
        code == 0 and len(shares) == 3 and shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(100)
    )


def test_what_is_found_is_counted_and_what_is_not_is_said(cartouche, told):
    photo("a.png")
    assert "\n1 apple.\n" in cartouche("read", "a.png", "--find", "apple")[1]
    assert "\nNothing found.\n" in cartouche("read", "a.png", "--find", "cat")[1]
    assert "\nRien trouvé.\n" in cartouche("read", "a.png", "--find", "cat", "--language", "fr")[1]


def test_a_folder_is_read_whole_and_one_broken_file_does_not_stop_the_rest(cartouche, photos, told):
    (photos / "broken.png").write_bytes(b"\x89PNG no picture")
    code, out, err = cartouche("read", photos)
    assert code == 1
    assert [line.split()[0].rpartition("/")[2] for line in out.splitlines() if "photos" in line] == [
        "blue.png", "green.png", "red.png",
    ]  # fmt: skip
    assert err.startswith("1 of 4 pictures could not be read:\n  ") and "broken.png is not a picture" in err
    code, out, err = cartouche("read", photos, "--json")
    assert (code, err) == (1, "") and [line["event"] for line in lines(out)] == ["reading"] * 3 + ["broken"]


def test_pictures_are_read_a_few_at_a_time_and_in_order(cartouche, photos, monkeypatch):
    monkeypatch.setattr("cartouche.cli.read.AT_ONCE", 2)
    one = [line["labels"] for line in lines(cartouche("read", photos, "--labels", "cat,dog", "--json")[1])]
    monkeypatch.setattr("cartouche.cli.read.MOST_PIXELS", 1)
    two = lines(cartouche("read", photos, "--labels", "cat,dog", "--json")[1])
    assert [line["path"].rpartition("/")[2] for line in two] == ["blue.png", "green.png", "red.png"]
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b["labels"], abs=1e-5)


def test_a_folder_of_which_nothing_can_be_read_is_told_file_by_file(cartouche, tmp_path):
    (tmp_path / "bad").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "bad" / name).write_bytes(b"")
    code, out, err = cartouche("read", "bad", "--labels", "cat")
    assert (code, out) == (1, "") and err.startswith("2 of 2 pictures could not be read:\n") and err.count("\n") == 3


def test_one_broken_picture_alone_is_an_error_of_one_line(cartouche):
    assert cartouche("read", "none.png") == (2, "", "error: no picture at none.png\n")


def test_a_picture_comes_through_standard_input(cartouche, told, monkeypatch):
    data = io.BytesIO()
    Image.new("RGB", (3, 2)).save(data, "PNG")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data.getvalue())))
    assert cartouche("read", "-")[1].startswith("- (3x2)\nA red apple.\n")


def test_what_was_found_is_drawn(cartouche, told, photos, monkeypatch):
    photo("a.png", "white", (64, 48))
    code, out, _ = cartouche("read", "a.png", "--find", "apple", "--annotate", "marked.png")
    assert code == 0 and out.endswith("marked.png\n")
    drawn = images.read_pixels("marked.png")
    assert (drawn != 255).any() and images.read_pixels("a.png").min() == 255
    assert cartouche("read", "a.png", "--find", "apple", "--annotate", "marked.png")[0] == 2, "it exists"
    assert cartouche("read", "a.png", "--find", "apple", "--annotate", "a.png", "--force")[0] == 2, "it is the picture"
    assert cartouche("read", "a.png", "--find", "apple", "--annotate", "marked.png", "--force")[0] == 0
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(Path("a.png").read_bytes())))
    assert cartouche("read", "-", "--find", "apple", "--annotate", "marked.png", "--force")[0] == 0
    (photos / "out").mkdir()
    assert cartouche("read", photos, "--find", "apple", "--annotate", photos / "out")[0] == 0
    assert sorted(path.name for path in (photos / "out").iterdir()) == ["blue.png", "green.png", "red.png"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a.png", "--annotate", "b.png"], "add --find"),
        (["a.png", "--find", "cat", "--annotate", "b.jpg"], "neither NAME.png"),
        (["a.png", "--language", "de"], "unknown language 'de'"),
        (["empty"], "has no pictures in it"),
        ([], "Missing argument"),
    ],
)
def test_what_cannot_be_asked_is_one_line(cartouche, tmp_path, arguments, said):
    photo("a.png")
    (tmp_path / "empty").mkdir()
    code, out, err = cartouche("read", *arguments)
    assert (code, out) == (2, "") and said in err and err.count("\n") == 1


def test_a_model_without_the_part_that_is_wanted_says_which(cartouche, model, tmp_path):
    photo("a.png")
    for part, question in {"captioner": [], "detector": ["--find", "cat"]}.items():
        code, _, err = cartouche("read", "a.png", *question, folder=model / "clip")
        assert code == 2 and f"has no {part}/" in err
    code, _, err = cartouche("read", "a.png", folder=tmp_path)
    assert code == 2 and "reads nothing; wanted one of clip/, detector/, segmenter/, captioner/" in err


def test_a_picture_of_another_world_is_said_to_be_one(cartouche, told, monkeypatch):
    photo("a.png")
    vector = Cloud(np.zeros(24), np.eye(24), np.array([0.0, 1.0]))  # every vector has length 1
    domain = Domain(vector, Cloud(np.zeros(16), np.zeros((16, 16)), np.array([0.0, 1.0])), np.linspace(0, 0.5, 11), "m")
    monkeypatch.setattr(readers.Reader, "domain", domain)
    out = cartouche("read", "a.png")[1]
    assert "\nOutside what this model was trained on (100.0% of its pictures are nearer): do not rely on this. A" in out
    assert "\nHors de ce que" in cartouche("read", "a.png", "--language", "fr")[1]
    assert lines(cartouche("read", "a.png", "--json")[1])[0]["outside"] == 1.0
    monkeypatch.setattr(readers.Reader, "domain", replace(domain, edges=np.linspace(0, 2, 11)))
    assert cartouche("read", "a.png")[1].startswith("a.png (20x12)\nA red apple.\n")
    assert lines(cartouche("read", "a.png", "--json")[1])[0]["outside"] == pytest.approx(0.5, abs=1e-5)


def test_a_reading_without_the_extra_says_what_to_install(cartouche, monkeypatch):
    photo("a.png")
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    code, _, err = cartouche("read", "a.png", "--text")
    assert code == 2 and err == "error: this needs rapidocr, which is not installed; pip install 'cartouche-ai[ocr]'\n"


# index and search


def test_a_folder_is_indexed_once_and_searched(cartouche, photos):
    assert cartouche("index", photos)[:2] == (0, f"{photos}: 3 read, 0 known, 0 gone, 0 broken\n")
    (photos / "red.png").unlink()
    (photos / "bad.png").write_bytes(b"")
    code, out, err = cartouche("index", photos)
    assert (code, out) == (0, f"{photos}: 0 read, 2 known, 1 gone, 1 broken\n")
    assert err.startswith("1 of 1 pictures could not be read and are left out:\n") and "bad.png" in err
    code, out, err = cartouche("search", "a red apple", "--in", photos)
    found = [line.split() for line in out.splitlines()]
    assert (code, err) == (0, "") and {path for _, path in found} == {
        str(photos / f"{c}.png") for c in ("green", "blue")
    }
    assert float(found[0][0]) >= float(found[1][0])


def test_a_picture_finds_itself_first(cartouche, photos):
    cartouche("index", photos)
    code, out, _ = cartouche("search", photos / "green.png", "--in", photos, "--count", "1", "--json")
    (hit,) = lines(out)
    assert code == 0 and hit["event"] == "hit" and hit["path"] == str(photos / "green.png")
    assert hit["score"] == pytest.approx(1, abs=1e-5) and hit["rank"] == 1


def test_words_and_pictures_are_added_and_taken_away(cartouche, photos):
    cartouche("index", photos)
    plus = ["--plus", "cat", "--plus", str(photos / "red.png"), "--minus", "cat"]
    out = cartouche("search", *plus, "--in", photos, "--count", "1")[1]
    assert out.endswith("red.png\n") and out.strip().startswith("1.000")


def test_names_are_ranked_with_the_terms_among_them(cartouche):
    code, out, _ = cartouche("search", "--plus", "king", "--minus", "man", "--among", "queen, boat", "--count", "9")
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == ["1", "2", "3", "4"]
    assert {line.split()[2] for line in out.splitlines() if "(a term)" in line} == {"king", "man"}


def test_a_contact_sheet_shows_what_was_found(cartouche, photos):
    cartouche("index", photos)
    code, out, err = cartouche("search", "cat", "--in", photos, "--sheet", "found.png")
    assert (code, err) == (0, "") and out.endswith("found.png\n")
    assert images.read_pixels("found.png").shape[1] > 300
    assert cartouche("search", "cat", "--in", photos, "--sheet", "found.png")[0] == 2
    (photos / "red.png").unlink()
    code, _, err = cartouche("search", "cat", "--in", photos, "--sheet", "found.png", "--force")
    assert code == 0 and err == f"note: no picture at {photos / 'red.png'}\n"


def test_an_index_lies_where_it_is_told(cartouche, photos, tmp_path):
    assert cartouche("index", photos, "--index", tmp_path / "x")[0] == 0
    assert cartouche("search", "cat", "--in", photos)[0] == 2
    assert cartouche("search", "cat", "--in", photos, "--index", tmp_path / "x")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["search", "cat"], "give words to search for and --in FOLDER"),
        (["search", "--in", "photos"], "give words to search for"),
        (["search", "cat", "--in", "photos"], "has no index; make one with `cartouche index photos`"),
        (["index", "none"], "none is not a folder of pictures"),
        (["search", "cat", "--in", "photos", "--count", "0"], "--count"),
    ],
)
def test_what_cannot_be_searched_is_one_line(cartouche, photos, arguments, said):
    code, out, err = cartouche(*arguments)
    assert (code, out) == (2, "") and said in err and err.count("\n") == 1


def test_another_model_cannot_search_an_index_and_is_told_what_to_type(cartouche, photos, model, tmp_path):
    cartouche("index", photos)
    other = reading_model(tmp_path / "other")
    (other / "clip" / "preprocessor_config.json").write_text(json.dumps({"size": 32, "crop_size": 32,
        "image_mean": [0.5] * 3, "image_std": [0.5] * 3}))  # fmt: skip
    for command in (["search", "cat", "--in", photos], ["index", photos]):
        code, _, err = cartouche(*command, folder=other)
        assert code == 2 and f"`cartouche index {photos} --force`" in err
    assert cartouche("index", photos, "--force", folder=other)[0] == 0
    assert cartouche("search", "cat", "--in", photos, folder=other)[0] == 0


@pytest.mark.parametrize("option", ["--labels", "--find"])
def test_a_list_without_a_name_is_refused(cartouche, told, option):
    photo("a.png")
    code, out, err = cartouche("read", "a.png", option, " , ")
    assert (code, out) == (2, "") and "no name" in err and "cat,dog" in err
