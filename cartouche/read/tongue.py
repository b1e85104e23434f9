"""How a describing net is spoken to: what its ids say, and the form in which it is asked.

Two tongues are known. What is trained here has CLIP's words and the prompts of data/dialogue.py. LLaVA as it was
published has the vocabulary of its Llama and is asked as Vicuna was (Liu et al. 2023, "Improved Baselines"):

    USER: <image>
    how many cats are there? ASSISTANT: two</s>USER: <image>
    how many dogs are there? ASSISTANT:
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import tokenizers

from cartouche.config import CartoucheError, read_json
from cartouche.data import dialogue
from cartouche.data.captions import spoken
from cartouche.data.dialogue import IMAGE, Marks, Turn
from cartouche.read.parts import Part
from cartouche.text import START, Tokenizer, backend_of

SPACE = "▁"
"""Llama's vocabulary spells a space so."""
DESCRIBE = {"en": "Describe the picture in one sentence.", "fr": "Décris l'image en une phrase."}
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_JOINED = (
    (re.compile(r" (?=[,.;)\]])"), ""),
    (re.compile(r"(?<=[(\[]) "), ""),
    (re.compile(r" ?(['\u2019-]) ?"), r"\1"),
    (re.compile(r"(?<=\d) (?=\d)"), ""),
    (re.compile(r"\b3 d\b"), "3d"),
)
"""A word-piece tokenizer sets signs and digits apart; here they come together again."""


class Tongue(Protocol):
    """start, end: the ids before the first word and after the last. size: how many ids there are."""

    start: int
    end: int
    size: int

    def caption(self, language: str) -> str:
        """The prompt for a caption, IMAGE in it. Raises CartoucheError for a language that is not known."""

    def question(self, question: str, language: str) -> str:
        """The prompt for an answer, IMAGE in it."""

    def scene(self) -> str:
        """The prompt for all that is in a picture, as JSON, IMAGE in it."""

    def ids(self, turns: Sequence[Turn], marks: Marks) -> list[int]:
        """A conversation; for each IMAGE as many image tokens as a picture has patches."""

    def text(self, ids: Sequence[int]) -> str:
        """What ids say."""

    def pieces(self) -> list[bytes]:
        """What each id says, in bytes; b"" for those that say nothing."""

    def speaks(self, piece: bytes) -> bool:
        """Whether what says this may be said in free speech."""


def tongue_of(part: Part) -> Tongue:
    """The tongue of a captioner. Raises CartoucheError where its vocabulary is of no known kind."""
    backend = backend_of(part.words)
    return Plain(part.tokenizer) if backend.token_to_id(START) is not None else Chat(backend, part.words)


class Plain:
    """The prompts that captioners are trained on here, in CLIP's words."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.start, self.end, self.size = tokenizer.start_id, tokenizer.end_id, tokenizer.vocab_size
        self.caption, self.question, self.scene = (
            dialogue.caption_prompt,
            dialogue.question_prompt,
            dialogue.scene_prompt,
        )

    def ids(self, turns: Sequence[Turn], marks: Marks) -> list[int]:
        return dialogue.spell(turns, self.spelled, marks).ids

    def spelled(self, text: str) -> list[int]:
        """A text's ids, without start and end."""
        return [one for word in self.tokenizer.words(text) for one in word.ids]

    def text(self, ids: Sequence[int]) -> str:
        said = self.tokenizer.decode(ids)
        for pattern, joined in _JOINED:
            said = pattern.sub(joined, said)
        return said

    def pieces(self) -> list[bytes]:
        return self.tokenizer.spelling()

    def speaks(self, piece: bytes) -> bool:
        return bool(piece.strip())


class Chat:
    """LLaVA's prompts, in the words of the tokenizer.json beside it."""

    def __init__(self, backend: tokenizers.Tokenizer, folder: Path) -> None:
        if backend.token_to_id(SPACE) is None:
            raise CartoucheError(f"{folder} has words of an unknown kind; known are CLIP's, and Llama's with {SPACE!r}")
        given = folder / "tokenizer_config.json"
        names = read_json(given) if given.is_file() else {}
        self.start, _ = _special(backend, names, "bos_token", "<s>")
        self.end, self._stop = _special(backend, names, "eos_token", "</s>")
        self.size = backend.get_vocab_size()
        backend.no_truncation()
        backend.no_padding()
        backend.add_special_tokens([IMAGE])
        self._backend, self._image = backend, backend.token_to_id(IMAGE)

    def caption(self, language: str) -> str:
        return f"{IMAGE}\n{DESCRIBE[spoken(language)]}"

    def question(self, question: str, language: str) -> str:
        spoken(language)
        return f"{IMAGE}\n{question.replace(IMAGE, ' ').strip()}"

    def scene(self) -> str:
        return f"{IMAGE}\nDescribe the scene as JSON."

    def ids(self, turns: Sequence[Turn], marks: Marks) -> list[int]:
        answers = ("" if answer is None else f" {answer}{self._stop}" for _, answer in turns)
        text = "".join(f"USER: {turn.prompt} ASSISTANT:{said}" for turn, said in zip(turns, answers, strict=True))
        found = [marks.start]
        for one in self._backend.encode(text, add_special_tokens=False).ids:
            found += [marks.image] * marks.patches if one == self._image else [one]
        return found

    def text(self, ids: Sequence[int]) -> str:
        return str(self._backend.decode(list(ids), skip_special_tokens=True)).strip()

    def pieces(self) -> list[bytes]:
        special = {one for one, token in self._backend.get_added_tokens_decoder().items() if token.special}
        return [b"" if one in special else _said(self._backend.id_to_token(one) or "") for one in range(self.size)]

    def speaks(self, piece: bytes) -> bool:
        return bool(piece)


def _special(backend: tokenizers.Tokenizer, names: Mapping[str, Any], what: str, usual: str) -> tuple[int, str]:
    """The id of a token that a tokenizer_config.json names, and its name."""
    name = names.get(what) or usual
    name = name.get("content") if isinstance(name, dict) else name
    number = backend.token_to_id(name) if isinstance(name, str) else None
    if number is None:
        raise CartoucheError(f"{what}={name!r} is not in the vocabulary; correct tokenizer_config.json")
    return int(number), str(name)


def _said(piece: str) -> bytes:
    """A piece in bytes: a byte by its number, or letters."""
    byte = _BYTE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace(SPACE, " ").encode()
