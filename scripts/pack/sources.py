"""Where the drawings of each style lie in the repositories they come from, and under which licence."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .concepts import bare

_LEFT_OUT = {("blob", "1f52b"): "artwork carries a text hashtag"}


@dataclass(frozen=True)
class Style:
    """One set of drawings. repository: the option with its clone; group 1 of the pattern file is the code points."""

    name: str
    repository: str
    folder: str
    file: str
    source: str
    licence: str


_FLUENT = ("fluentui", "assets")
STYLES = (
    Style("3d", *_FLUENT, r"([0-9a-f-]+)_3d\.png", "microsoft/fluentui-emoji", "MIT"),
    Style("color", *_FLUENT, r"([0-9a-f-]+)_color\.svg", "microsoft/fluentui-emoji", "MIT"),
    Style("flat", *_FLUENT, r"([0-9a-f-]+)_flat\.svg", "microsoft/fluentui-emoji", "MIT"),
    Style("outline", *_FLUENT, r"([0-9a-f-]+)_high-contrast\.svg", "microsoft/fluentui-emoji", "MIT"),
    Style("noto", "noto", "png/512", r"emoji_u([0-9a-f_]+)\.png", "googlefonts/noto-emoji", "Apache-2.0"),
    Style("blob", "blob", "svg", r"emoji_u([0-9a-f_]+)\.svg", "C1710/blobmoji", "Apache-2.0"),
    Style("twemoji", "twemoji", "assets/svg", r"([0-9a-f-]+)\.svg", "jdecked/twemoji", "CC-BY-4.0"),
    Style("emojitwo", "emojitwo", "svg", r"([0-9a-f-]+)\.svg", "EmojiTwo/emojitwo", "CC-BY-4.0"),
    Style(
        "fxemoji",
        "fxemoji",
        "svgs/FirefoxEmoji",
        r"u([0-9A-F]{4,5}(?:-[0-9A-F]{4,5})*|1F5Fd)(?:-[^.]*)?\.svg",  # 1F5Fd: so it is spelled there
        "mozilla/fxemoji",
        "CC-BY-4.0",
    ),
)
REPOSITORIES = tuple(dict.fromkeys(style.repository for style in STYLES))


def drawings(style: Style, clone: Path) -> dict[str, str]:
    """Concept id -> path of its drawing inside the clone, for every drawing of a style.

    The SVGs that a renderer without fonts cannot draw (they hold text) or that hold a small photograph give way to the
    project's own 128-pixel PNG.
    """
    found = {}
    for path in sorted((clone / style.folder).iterdir()):
        match = re.fullmatch(style.file, path.name)
        if match:
            found[bare(match[1].lower().replace("_", "-"))] = f"{style.folder}/{path.name}"
    if style.name == "blob":
        found = {concept: _drawable(clone, path) for concept, path in found.items()}
    return found


def left_out(style: str, concept: str) -> str | None:
    """Why a single drawing is not in the pack, None for one that is."""
    return _LEFT_OUT.get((style, concept))


def available(concept: str, found: dict[str, dict[str, str]]) -> list[str]:
    """The styles that have a drawing of a concept."""
    return [style for style, paths in found.items() if concept in paths]


def licences(clones: dict[str, Path]) -> Iterable[tuple[str, bytes]]:
    """(name, content) of the licence and author files at the top of the clones."""
    for repository, clone in clones.items():
        for path in sorted(clone.iterdir()):
            if path.is_file() and path.stem.upper() in ("LICENSE", "AUTHORS", "NOTICE"):
                yield f"{repository}-{path.name}", path.read_bytes()


def _drawable(clone: Path, path: str) -> str:
    content = (clone / path).read_text(encoding="utf-8")
    return path.replace("svg", "png/128", 1).replace(".svg", ".png") if re.search("<text|<image", content) else path
