"""The pack builder on a toy set of repositories: shards, index, families, split, and the same bytes every time."""

import hashlib
import io
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from cartouche.data import Shards
from cartouche.data.emoji import Pack

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import build_emoji_pack as builder  # noqa: E402
from pack import colours, concepts, pictures, sources, split  # noqa: E402

EMOJI_TEST = """\
# group: Smileys & Emotion
# subgroup: face-smiling
1F600 ; fully-qualified # 😀 E1.0 grinning face
# subgroup: emotion
1F4A2 ; fully-qualified # 💢 E0.6 anger symbol
# group: People & Body
# subgroup: person-role
1F468 200D 1F33E ; fully-qualified # 👨‍🌾 E4.0 man farmer
1F469 200D 1F33E ; fully-qualified # 👩‍🌾 E4.0 woman farmer
1F468 1F3FB 200D 1F33E ; fully-qualified # 👨🏻‍🌾 E4.0 man farmer: light skin tone
# group: Component
# subgroup: skin-tone
1F3FB ; component # 🏻 E1.0 light skin tone
# group: Food & Drink
# subgroup: food-fruit
1F34E ; fully-qualified # 🍎 E0.6 red apple
1F34F ; fully-qualified # 🍏 E0.6 green apple
# group: Symbols
# subgroup: keycap
0023 FE0F 20E3 ; fully-qualified # #️⃣ E0.6 keycap: #
0023 20E3 ; unqualified # #⃣ E0.6 keycap: #
# group: Flags
# subgroup: flag
1F3C1 ; fully-qualified # 🏁 E0.6 chequered flag
# group: Objects
# subgroup: tool
1FA93 ; fully-qualified # 🪓 E12.0 axe
1FABC ; fully-qualified # 🪼 E99.0 nameless
"""
NAMES = {
    "1f600": ("grinning face", "visage rieur", ["face", "Grinning Face", "happy"]),
    "1f4a2": ("anger symbol", "symbole de colère", ["mad"]),
    "1f468-200d-1f33e": ("man farmer", "fermier", ["farm"]),
    "1f469-200d-1f33e": ("woman farmer", "fermière", ["farm"]),
    "1f34e": ("red apple", "pomme rouge", ["fruit"]),
    "1f34f": ("green apple", "pomme verte", ["fruit"]),
    "0023-20e3": ("keycap: #", "touches : #", ["keycap"]),
    "1f3c1": ("chequered flag", "drapeau à damier", []),
    "1fa93": ("axe", "hache", ["chop", "hatchet"]),
}
SHADES = {"1f34e": "red", "1f34f": "green", "1f600": "yellow"}


def drawn(concept: str, size: int) -> bytes:
    image = Image.new("RGBA", (size, size))
    number = int(hashlib.sha256(concept.encode()).hexdigest()[:4], 16) % 20
    box = [size // 8, size // 8, size - size // 8 - number, size - size // 6]
    ImageDraw.Draw(image).ellipse(box, fill=SHADES.get(concept, "gray"))
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def write_clones(root: Path) -> Path:
    """cldr, unicodetools, and two styles of PNGs: 3d (256 pixels) and noto (512)."""
    write(root / "unicodetools" / concepts.EMOJI_TEST, EMOJI_TEST)
    for number, language in enumerate(("en", "fr")):
        entries = {
            "".join(chr(int(code, 16)) for code in concept.split("-")): {"tts": [said[number]], "default": said[2]}
            for concept, said in NAMES.items()
        }
        half = [dict(list(entries.items())[:4]), dict(list(entries.items())[4:])]
        for where, key, part in ((concepts.ANNOTATIONS, "annotations", 0), (concepts.DERIVED, "annotationsDerived", 1)):
            write(root / "cldr" / where.format(language), json.dumps({key: {"annotations": half[part]}}))
    for concept in (*NAMES, "1fabc", "1f3fb", "1f468-1f3fb-200d-1f33e"):
        write(root / "noto/png/512" / f"emoji_u{concept.replace('-', '_')}.png", drawn(concept, 512))
        if concept != "1fa93":
            write(root / "fluentui/assets" / f"{concept.replace('0023', '0023-fe0f')}_3d.png", drawn(concept, 256))
    faint = Image.new("RGBA", (512, 512))
    faint.putpixel((5, 5), (0, 0, 0, 255))
    faint.save(root / "noto/png/512/emoji_u1f4a2.png")
    write(root / "noto" / "LICENSE", "a licence")
    return root


def build(clones: Path, out: Path) -> dict:
    out.mkdir(parents=True, exist_ok=True)
    given = {name: clones / name for name in sources.REPOSITORIES if (clones / name).exists()}
    return builder.build(given, clones / "cldr", clones / "unicodetools", out)


def rows_of(out: Path) -> dict[str, dict]:
    return {row["key"]: row for row in map(json.loads, (out / "index.jsonl").read_text().splitlines())}


@pytest.fixture
def clones(tmp_path):
    return write_clones(tmp_path / "clones")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A pack that no test changes."""
    root = tmp_path_factory.mktemp("pack")
    build(write_clones(root / "clones"), root / "out")
    return root / "out"


# the whole


def test_every_drawing_is_where_the_index_says(built):
    rows = rows_of(built)
    stats = json.loads((built / "stats.json").read_text())
    assert stats["images"] == len(rows) == 14 and stats["concepts"] == 8
    for row in rows.values():
        with (built / row["shard"]).open("rb") as shard:
            shard.seek(row["offset"])
            image = pictures.opened(shard.read(row["bytes"]))
        assert image.size == (128, 128)
        assert pictures.measured(image) == {name: row[name] for name in ("bbox", "area", "colors", "mean_rgb")}


def test_our_own_readers_open_the_pack(built):
    assert {s["caption"] for s in Shards(built, caption="name_fr")} == {fr for _, fr, _ in NAMES.values()} - {
        "drapeau à damier"
    }
    pack = Pack(built)
    apple = next(drawing for drawing in pack.drawings if drawing.key == "3d-1f34e")
    assert apple.colors[0][0] == "red" and pack.pixels(apple).shape[2] == 4


def test_the_fields_are_those_of_unicode_and_the_clones(built):
    rows = rows_of(built)
    face = rows["noto-1f600"]
    assert (face["name_en"], face["keywords_en"], face["group"]) == (
        "grinning face",
        ["face", "happy"],
        "Smileys & Emotion",
    )
    assert (face["emoji_version"], face["scene"], face["license"]) == ("1.0", True, "Apache-2.0")
    key = rows["3d-0023-20e3"]
    assert key["codepoints"] == "0023-fe0f-20e3" and not key["scene"]
    assert key["source_path"] == "assets/0023-fe0f-20e3_3d.png"
    assert rows["3d-1f468-200d-1f33e"]["family"] == rows["noto-1f469-200d-1f33e"]["family"] == "fam-1f468-200d-1f33e"
    assert list(face)[-3:] == ["shard", "offset", "bytes"]


def test_what_is_left_out_is_listed_with_the_reason(built):
    lines = map(json.loads, (built / "excluded.jsonl").read_text().splitlines())
    assert {(line["concept"], line["reason"]) for line in lines} == {
        ("1f468-1f3fb-200d-1f33e", "skin-tone variant"),
        ("1f3fb", "component"),
        ("1f3c1", "flag"),
        ("1fabc", "no CLDR 47 annotation"),
        ("1f4a2", "artwork covers <2% of the canvas"),
    }


def test_the_same_clones_give_the_same_bytes(built, clones, tmp_path):
    build(clones, tmp_path / "one")
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert {path.name for path in files} > {"index.jsonl", "split.json", "SHA256SUMS", "stats.json", "noto-LICENSE"}
    assert all((tmp_path / "one" / path).read_bytes() == (built / path).read_bytes() for path in files)
    for line in (tmp_path / "one" / "SHA256SUMS").read_text().splitlines():
        said, path = line.split("  ")
        assert hashlib.sha256((tmp_path / "one" / path).read_bytes()).hexdigest() == said


def test_identical_drawings_are_marked_and_kept_in_one_family(clones, tmp_path):
    same = clones / "noto/png/512"
    write(same / "emoji_u1f34f.png", (same / "emoji_u1f34e.png").read_bytes())
    build(clones, tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert rows["noto-1f34f"]["same_art_as"] == "noto-1f34e" and "same_art_as" not in rows["3d-1f34f"]
    assert {rows[f"{style}-{fruit}"]["family"] for style in ("3d", "noto") for fruit in ("1f34e", "1f34f")} == {
        "fam-1f34e"
    }


def test_the_command_says_what_it_made_and_what_is_wrong(clones, tmp_path, monkeypatch, capsys):
    given = ["--noto", clones / "noto", "--cldr", clones / "cldr", "--unicodetools", clones / "unicodetools"]
    monkeypatch.setattr(sys, "argv", ["build_emoji_pack.py", *map(str, given), "--out", str(tmp_path / "out")])
    builder.main()
    assert capsys.readouterr().out == "7 drawings of 7 concepts in 2 shards\n"
    monkeypatch.setattr(sys, "argv", [*sys.argv[:-1], str(tmp_path / "out" / "index.jsonl")])
    with pytest.raises(SystemExit, match="build_emoji_pack: "):
        builder.main()


def test_an_svg_is_rendered_and_one_with_text_gives_way_to_the_png(clones, tmp_path):
    pytest.importorskip("resvg_py", reason="resvg_py draws the SVGs; it comes with the extra `pack`")
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} 36">'
    svg = head + '{}<circle cx="18" cy="18" r="16" fill="red"/></svg>'
    write(clones / "twemoji/assets/svg/1f34e.svg", svg.format(36, ""))
    write(clones / "twemoji/assets/svg/1f34f.svg", svg.format(72, ""))
    write(clones / "blob/svg/emoji_u1f34e.svg", svg.format(36, "<text>A</text>"))
    write(clones / "blob/png/128/emoji_u1f34e.png", drawn("1f34e", 128))
    build(clones, tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    apple = rows["twemoji-1f34e"]
    assert apple["bbox"] == [7, 7, 121, 121] and apple["mean_rgb"] == [255, 0, 0]
    assert apple["area"] == pytest.approx(np.pi * (16 / 36) ** 2, abs=0.002)
    wide = rows["twemoji-1f34f"]
    assert wide["area"] == pytest.approx(apple["area"] / 4, abs=0.002), "a picture that is not square keeps its shape"
    assert rows["blob-1f34e"]["source_path"] == "png/128/emoji_u1f34e.png"


# the parts


def test_a_split_depends_on_hashes_alone_and_keeps_families_together():
    group = {f"{i:04x}": ("Objects", "Symbols")[i % 3 == 0] for i in range(600)}
    family = {one: f"fam-{int(one, 16) // 4}" if int(one, 16) < 80 else f"fam-{one}" for one in group}
    side = split.split_concepts(group, family)
    assert split.split_concepts(dict(random.Random(1).sample(list(group.items()), len(group))), family) == side
    assert all(len({side[one] for one in group if family[one] == name}) == 1 for name in set(family.values()))
    for name, count in (("Objects", 400), ("Symbols", 200)):
        here = [side[one] for one in group if group[one] == name]
        assert 0 <= here.count("test") - 0.05 * count <= 5 and 0 <= here.count("val") - 0.025 * count <= 5


def test_the_hash_is_the_one_that_the_rule_names():
    said = b"cartouche-emoji-split-v1|concept|fam-1f34e"
    assert split.digest("concept", "fam-1f34e") == hashlib.sha256(said).hexdigest()


def test_a_pair_is_held_out_only_where_it_looks_unlike_its_siblings():
    styles = {f"{i:04x}": ["3d", "color", "noto", "blob", "twemoji"] for i in range(200)}
    family = {one: f"fam-{one}" for one in styles}
    side = dict.fromkeys(styles, "train")
    ground = {"3d": 0.0, "color": 0.01, "noto": 0.5, "blob": 0.51, "twemoji": 0.9}
    held = split.held_out_pairs(styles, family, side, lambda style, _: np.full((32, 32, 3), ground[style]))
    assert 20 < len(held) < 60 and {style for style, _ in held} == {"twemoji"}
    assert not split.held_out_pairs(styles, dict.fromkeys(styles, "one"), side, lambda *_: np.zeros((32, 32, 3)))
    assert not split.held_out_pairs(styles, family, dict.fromkeys(styles, "val"), lambda *_: np.zeros((32, 32, 3)))


@pytest.mark.parametrize(
    ("name", "rgb"),
    [
        ("red", (221, 46, 68)), ("orange", (244, 144, 12)), ("yellow", (253, 203, 88)), ("green", (120, 177, 89)),
        ("cyan", (80, 200, 210)), ("blue", (85, 172, 238)), ("purple", (170, 142, 214)), ("pink", (244, 171, 186)),
        ("brown", (102, 69, 0)), ("black", (41, 47, 51)), ("gray", (153, 170, 181)), ("white", (230, 231, 232)),
    ],
)  # fmt: skip
def test_a_plain_colour_has_its_plain_name(name, rgb):
    assert colours.dominant(np.array([rgb] * 9)) == [[name, 1.0]]


def test_the_ends_of_oklch_are_where_they_should_be():
    lightness, chroma, hue = colours.oklch(np.array([[0, 0, 0], [255, 255, 255], [255, 0, 0]], float))
    assert lightness == pytest.approx([0, 1, 0.628], abs=1e-3) and chroma == pytest.approx([0, 0, 0.2577], abs=1e-3)
    assert hue[2] == pytest.approx(29.23, abs=0.01)


def test_small_shares_and_fifth_colours_are_not_told():
    pixels = np.repeat(
        [(221, 46, 68), (120, 177, 89), (85, 172, 238), (41, 47, 51), (230, 231, 232)], [40, 20, 18, 15, 7], 0
    )
    assert colours.dominant(pixels) == [["red", 0.4], ["green", 0.2], ["blue", 0.18], ["black", 0.15]]


def test_shrinking_weighs_colours_by_their_alpha():
    pixels = np.zeros((512, 512, 4), np.uint8)
    pixels[::2] = (200, 100, 50, 255)  # every other line; the transparent ones are black, and must not darken it
    small = np.asarray(pictures.shrunk(Image.fromarray(pixels))).astype(int)
    assert np.abs(small - (200, 100, 50, 128)).max() <= 1
