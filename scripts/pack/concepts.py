"""What is drawn: the emoji of Unicode's emoji-test.txt, their names in the CLDR, and which of them belong together."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cartouche.config import CartoucheError

EMOJI_TEST = "unicodetools/data/emoji/17.0/emoji-test.txt"
ANNOTATIONS = "cldr-json/cldr-annotations-full/annotations/{}/annotations.json"
DERIVED = "cldr-json/cldr-annotations-derived-full/annotationsDerived/{}/annotations.json"
SKIN_TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
NOT_IN_SCENES = {
    "emotion",
    "family",
    "hand-prop",
    "hands",
    "hotel",
    "time",
}  # subgroups; so are all of hand-* and Symbols

_LINE = re.compile(r"([0-9A-F ]+?) *; (fully-qualified|component) +# (\S+) E([\d.]+) (.+)")
_GENDERED = re.compile(r"-200d-(?:2640|2642|27a1)")  # ZWJ and female sign, male sign, or arrow to the right
_ALIKE = (  # sets that neither the code points nor the name show to be one thing
    "1f385 1f936 1f9d1-200d-1f384",
    "1f466 1f467 1f9d2",
    "1f474 1f475 1f9d3",
    "1f478 1f934 1fac5",
    "1f483 1f57a",
    "1f46b 1f46c 1f46d 1f9d1-200d-1f91d-200d-1f9d1",
)


@dataclass(frozen=True)
class Concept:
    """One emoji. id is its code points without FE0F, the key that joins the drawings of all sets."""

    id: str
    codepoints: str
    char: str
    name: str
    version: str
    group: str
    subgroup: str
    component: bool

    @property
    def scene(self) -> bool:
        """Whether it can be placed in a scene: no symbol, clock, hand, family group or mark of emotion."""
        return not (self.group == "Symbols" or self.subgroup in NOT_IN_SCENES or self.subgroup.startswith("hand-"))


def read_concepts(unicodetools: Path) -> dict[str, Concept]:
    """Every fully qualified emoji and component, in the order of emoji-test.txt."""
    found, group, subgroup = {}, "", ""
    for line in (unicodetools / EMOJI_TEST).read_text(encoding="utf-8").splitlines():
        if line.startswith("# group:"):
            group = line.partition(":")[2].strip()
        elif line.startswith("# subgroup:"):
            subgroup = line.partition(":")[2].strip()
        elif match := _LINE.match(line):
            codepoints = "-".join(f"{int(code, 16):04x}" for code in match[1].split())
            name = bare(codepoints)
            found[name] = Concept(
                name, codepoints, match[3], match[5], match[4], group, subgroup, match[2] == "component"
            )
    if not found:
        raise CartoucheError(f"no emoji in {unicodetools / EMOJI_TEST}; wanted Unicode's emoji-test.txt")
    return found


def bare(codepoints: str) -> str:
    """The code points without FE0F, which asks for a colourful glyph and is left out in many file names."""
    return "-".join(code for code in codepoints.split("-") if code != "fe0f")


def read_names(cldr: Path) -> dict[str, dict[str, Any]]:
    """Concept id -> name_en, name_fr, keywords_en, keywords_fr; only what is named in both languages."""
    both = {language: _annotations(cldr, language) for language in ("en", "fr")}
    return {
        concept: {
            "name_en": both["en"][concept][0],
            "name_fr": both["fr"][concept][0],
            "keywords_en": both["en"][concept][1],
            "keywords_fr": both["fr"][concept][1],
        }
        for concept in both["en"].keys() & both["fr"].keys()
    }


def _annotations(cldr: Path, language: str) -> dict[str, tuple[str, list[str]]]:
    """Concept id -> name and keywords, without the keywords that say the name again (whatever their capitals)."""
    said = {}
    for where, key in ((DERIVED, "annotationsDerived"), (ANNOTATIONS, "annotations")):
        content = json.loads((cldr / where.format(language)).read_text(encoding="utf-8"))
        for char, entry in content[key]["annotations"].items():
            if entry.get("tts"):
                name = entry["tts"][0]
                keywords = [word for word in entry.get("default", []) if word.lower() != name.lower()]
                said[bare("-".join(f"{ord(one):04x}" for one in char))] = (name, keywords)
    return said


def why_left_out(concept: Concept, named: bool) -> str | None:
    """The reason a concept is not in the pack, None for one that is."""
    if concept.component:
        return "component"
    if SKIN_TONES & set(concept.id.split("-")):
        return "skin-tone variant"
    if concept.group == "Flags":
        return "flag"
    return None if named else "no CLDR 47 annotation"


def families(concepts: Iterable[Concept], same_art: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Concept id -> family: what differs by gender, direction or number of people, or is drawn alike somewhere.

    same_art: pairs of ids with the same picture in some style. A family is named after its first id in sorted order.
    """
    root: dict[str, str] = {}

    def find(one: str) -> str:
        while root.setdefault(one, one) != one:
            one = root[one]
        return one

    concepts = list(concepts)
    links = [(concept.id, f"kin {_kin(concept)}") for concept in concepts]
    links += [(first, other) for group in _ALIKE for first, *others in [group.split()] for other in others]
    for one, other in (*links, *same_art):
        root[find(one)] = find(other)
    members: dict[str, list[str]] = {}
    for concept in concepts:
        members.setdefault(find(concept.id), []).append(concept.id)
    return {one: f"fam-{min(group)}" for group in members.values() for one in group}


def _kin(concept: Concept) -> str:
    """What stays of a concept when gender and direction are taken away, and the members of a group of people."""
    for people in ("family", "kiss", "couple with heart"):
        if concept.name == people or concept.name.startswith(people + ":"):
            return people
    neutral = {"1f468": "1f9d1", "1f469": "1f9d1"}  # man, woman -> person
    return "-".join(neutral.get(code, code) for code in _GENDERED.sub("", concept.id).split("-"))
