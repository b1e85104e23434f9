"""Rebuild the emoji pack from clones of the repositories its drawings, names and groups come from.

    python scripts/build_emoji_pack.py --fluentui DIR --noto DIR --blob DIR --twemoji DIR --emojitwo DIR \\
        --fxemoji DIR --cldr DIR --unicodetools DIR --out DIR

The clones are those that the pack's README names with their commits (fluentui: shuding/fluentui-emoji-unicode, twemoji:
cptpiepmatz/twemoji-assets, blob: C1710/blobmoji, cldr: unicode-org/cldr-json). Nothing in them is run, and the same
clones give the same bytes. Needs resvg: pip install "cartouche-ai[pack]".

Every field follows a written rule but `colors`: the published pack's own thresholds are not written down, so those used
here are fitted to it (pack/colours.py). A style may be left out by leaving out its repository; concepts drawn alike
only there are then no family, so the split is the published one only when all are given.
"""

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import Any

from pack import concepts, pictures, sources, split

from cartouche.config import CartoucheError
from cartouche.data.tar import write_tar
from cartouche.files import write_whole

PER_SHARD = 500  # drawings, at most


def build(clones: dict[str, Path], cldr: Path, unicodetools: Path, out: Path) -> dict[str, Any]:
    """Write the whole pack into `out`; returns its statistics."""
    every, names = concepts.read_concepts(unicodetools), concepts.read_names(cldr)
    styles = [style for style in sources.STYLES if style.repository in clones]
    found = {style.name: sources.drawings(style, clones[style.repository]) for style in styles}
    reasons = {one: concepts.why_left_out(every[one], one in names) for one in every}
    kept = [one for one in every if reasons[one] is None and sources.available(one, found)]
    excluded = [_excluded(every[one], reasons[one], found) for one in every if reasons[one]]
    if not kept:
        raise CartoucheError("no drawing of a named emoji was found; give the clones that the pack's README names")
    rows: list[dict[str, Any]] = []
    webps: dict[str, bytes] = {}
    for concept, style in (
        (concept, style) for concept in sorted(kept) for style in styles if concept in found[style.name]
    ):
        row, data = _drawn(every[concept], names[concept], style, clones, found[style.name][concept])
        if isinstance(row, str):
            excluded.append({"concept": concept, "style": style.name, "reason": row})
        else:
            rows.append(row)
            webps[row["key"]] = data
    side, family = _assigned(rows, webps, every)
    _write_shards(out, rows, webps)
    _write_lines(out / "index.jsonl", rows)
    _write_lines(out / "excluded.jsonl", excluded)
    write_whole(out / "split.json", _readable(_described(rows, side, family)), force=True)
    stats = _statistics(rows, excluded)
    write_whole(out / "stats.json", _readable(stats), force=True)
    _write_licences_and_sums(out, clones)
    return stats


def _drawn(
    concept: concepts.Concept, names: dict[str, Any], style: sources.Style, clones: dict[str, Path], path: str
) -> tuple[dict[str, Any] | str, bytes]:
    """The row of a drawing and its WebP, or why it is left out."""
    if reason := sources.left_out(style.name, concept.id):
        return reason, b""
    image = pictures.shrunk(pictures.read_drawing(clones[style.repository] / path))
    about = pictures.measured(image)
    if about["area"] < pictures.LEAST_AREA:
        return f"artwork covers <{pictures.LEAST_AREA:.0%} of the canvas", b""
    row = {
        "key": f"{style.name}-{concept.id}", "concept": concept.id, "codepoints": concept.codepoints,
        "char": concept.char, "style": style.name, **names, "group": concept.group, "subgroup": concept.subgroup,
        "emoji_version": concept.version, "family": "", "scene": concept.scene, **about, "source": style.source,
        "source_path": path, "license": style.licence, "split": "",
    }  # fmt: skip
    return row, pictures.webp(image)


def _assigned(
    rows: list[dict[str, Any]], webps: dict[str, bytes], every: dict[str, concepts.Concept]
) -> tuple[dict[str, str], dict[str, str]]:
    """Fill in family, split and same_art_as; returns concept id -> side of the split, and -> family."""
    twins = _same_art(rows, webps, list(every))
    alike = [(key.partition("-")[2], twin.partition("-")[2]) for key, twin in twins.items()]
    group = {row["concept"]: row["group"] for row in rows}
    family = concepts.families([every[concept] for concept in group], alike)
    side = split.split_concepts(group, family)
    styles: dict[str, list[str]] = {}
    for row in rows:
        styles.setdefault(row["concept"], []).append(row["style"])
    held = split.held_out_pairs(
        styles, family, side, lambda style, concept: pictures.thumbnail(pictures.opened(webps[f"{style}-{concept}"]))
    )
    for row in rows:
        row["family"] = family[row["concept"]]
        row["split"] = "pairs" if (row["style"], row["concept"]) in held else side[row["concept"]]
        if row["key"] in twins:
            row["same_art_as"] = twins[row["key"]]
    return side, family


def _same_art(rows: list[dict[str, Any]], webps: dict[str, bytes], order: list[str]) -> dict[str, str]:
    """Key -> key of the first drawing (in Unicode's order) of the same style with the very same picture."""
    first: dict[tuple[str, bytes], str] = {}
    place = {concept: number for number, concept in enumerate(order)}
    twins = {}
    for row in sorted(rows, key=lambda row: place[row["concept"]]):
        twin = first.setdefault((row["style"], webps[row["key"]]), row["key"])
        if twin != row["key"]:
            twins[row["key"]] = twin
    return twins


def _write_shards(out: Path, rows: list[dict[str, Any]], webps: dict[str, bytes]) -> None:
    """Every sample in a shard of its split (for train, also its style), in the order of a hash; fills in the places."""
    for name, members in _shards(rows):
        files = []
        for row in members:
            files += [(f"{row['key']}.webp", webps[row["key"]]), (f"{row['key']}.json", _compact(row))]
        offsets = write_tar(out / name, files)
        for row in members:
            row |= {"shard": name, "offset": offsets[f"{row['key']}.webp"], "bytes": len(webps[row["key"]])}


def _shards(rows: list[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    parts: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        parts.setdefault(f"train-{row['style']}" if row["split"] == "train" else row["split"], []).append(row)
    for part, members in parts.items():
        members.sort(key=lambda row: split.digest("order", row["key"]))
        each = ceil(len(members) / ceil(len(members) / PER_SHARD))
        for number, start in enumerate(range(0, len(members), each)):
            yield f"emoji-{part}-{number:03}.tar", members[start : start + each]


def _described(rows: list[dict[str, Any]], side: dict[str, str], family: dict[str, str]) -> dict[str, Any]:
    """What split.json says: the rule, the lists, the counts, the families, and what can be read word by word."""
    about = {row["concept"]: row for row in rows}
    members: dict[str, list[str]] = {}
    for concept in sorted(side):
        members.setdefault(family[concept], []).append(concept)
    per_group: dict[str, Counter[str]] = {}
    for concept, where in side.items():
        per_group.setdefault(about[concept]["group"], Counter())[where] += 1
    counts = {
        "concepts": Counter(side.values()),
        "images": Counter(row["split"] for row in rows),
        "per_group": per_group,
    }
    lexical = {
        f"{where}_name_words_all_in_train_{language}": split.named_in_training(about, side, where, language)
        for language in ("en", "fr")
        for where in ("val", "test")
    }
    return {
        "version": 1,
        "seed": split.SEED,
        "rule": split.RULE,
        "concepts": {where: sorted(c for c in side if side[c] == where) for where in ("train", "val", "test")},
        "pairs": sorted(row["key"] for row in rows if row["split"] == "pairs"),
        "counts": counts,
        "families": {name: group for name, group in sorted(members.items()) if len(group) > 1},
        "lexical": lexical,
    }


def _statistics(rows: list[dict[str, Any]], excluded: list[dict[str, Any]]) -> dict[str, Any]:
    about = {row["concept"]: row for row in rows}
    bytes_per_style: Counter[str] = Counter()
    for row in rows:
        bytes_per_style[row["style"]] += row["bytes"]
    return {
        "images": len(rows),
        "concepts": len(about),
        "families": len({row["family"] for row in rows}),
        "per_style": Counter(row["style"] for row in rows),
        "per_group_concepts": Counter(row["group"] for row in about.values()),
        "per_group_images": Counter(row["group"] for row in rows),
        "per_split_images": Counter(row["split"] for row in rows),
        "scene_concepts": sum(row["scene"] for row in about.values()),
        "per_license": Counter(row["license"] for row in rows),
        "excluded": Counter(row["reason"] for row in excluded),
        "webp_bytes": sum(bytes_per_style.values()),
        "shards": len({row["shard"] for row in rows}),
        "bytes_per_style": bytes_per_style,
        "same_art": sum("same_art_as" in row for row in rows),
    }


def _excluded(concept: concepts.Concept, reason: str | None, found: dict[str, dict[str, str]]) -> dict[str, Any]:
    return {
        "concept": concept.id, "codepoints": concept.codepoints, "name": concept.name, "group": concept.group,
        "emoji_version": concept.version, "reason": reason, "available": sources.available(concept.id, found),
    }  # fmt: skip


def _write_licences_and_sums(out: Path, clones: dict[str, Path]) -> None:
    (out / "LICENSES").mkdir(exist_ok=True)
    for name, content in sources.licences(clones):
        write_whole(out / "LICENSES" / name, content, force=True)
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.name != "SHA256SUMS")
    sums = (
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  ./{path.relative_to(out).as_posix()}\n" for path in files
    )
    write_whole(out / "SHA256SUMS", "".join(sums).encode(), force=True)


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    write_whole(path, b"".join(_compact(row) + b"\n" for row in rows), force=True)


def _compact(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode()


def _readable(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in (*sources.REPOSITORIES, "cldr", "unicodetools", "out"):
        parser.add_argument(f"--{name}", type=Path, metavar="DIR", required=name in ("cldr", "unicodetools", "out"))
    arguments = vars(parser.parse_args())
    clones = {name: arguments[name] for name in sources.REPOSITORIES if arguments[name]}
    try:
        arguments["out"].mkdir(parents=True, exist_ok=True)
        stats = build(clones, arguments["cldr"], arguments["unicodetools"], arguments["out"])
    except (CartoucheError, OSError) as error:
        sys.exit(f"build_emoji_pack: {error}")
    except ImportError:
        sys.exit('build_emoji_pack: resvg draws the SVGs and is not installed; pip install "cartouche-ai[pack]"')
    sys.stdout.write(f"{stats['images']} drawings of {stats['concepts']} concepts in {stats['shards']} shards\n")


if __name__ == "__main__":
    main()
