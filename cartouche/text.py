"""Words to numbers: the byte-level BPE tokenizer of CLIP.

A caption is put into normal form (NFC, single spaces, lower case), split into words, spelled in bytes, and the bytes
are merged pair by pair into the longest pieces the vocabulary knows (Sennrich et al. 2016, algorithm 1; Radford et al.
2021, section 2.4). The last piece of a word carries `</w>`. Every byte is in the vocabulary, so no text is unknown.

Ids of a vocabulary of V: 0..255 the bytes, 256..511 the bytes that end a word, then the merges, V-2 the start, V-1 the
end. The layouts on disk are those of the transformers library: `tokenizer.json`, and `vocab.json` + `merges.txt`.
"""

from __future__ import annotations

import heapq
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from cartouche.config import CartoucheError, read_json, shown
from cartouche.files import write_whole

START = "<|startoftext|>"
END = "<|endoftext|>"
WORD_END = "</w>"
DEFAULT_CONTEXT = 77  # of every released CLIP

_SPLIT = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]+")
BETWEEN_SPACES = re.compile(
    r"\S+", re.ASCII
)  # str.split would also drop the separators of files and records, which are spelled

Pair = tuple[str, str]


class CutWarning(UserWarning):
    """The end of a text did not fit the text tower and was left out."""


class Encoded(NamedTuple):
    """One text as the text tower takes it."""

    ids: np.ndarray
    """(context,) int64: start, the pieces, end, then padding."""
    cut: tuple[str, ...]
    """The words that did not fit, whole, as they were typed."""


class Word(NamedTuple):
    """One word as it is spelled. text: as it was typed, with all that follows it up to the next word."""

    ids: tuple[int, ...]
    text: str


class Tokenizer:
    """Texts to rows of ids, all `context` long."""

    def __init__(self, backend: tokenizers.Tokenizer, context: int = DEFAULT_CONTEXT, pad: str = END) -> None:
        if context < 3:
            raise CartoucheError(f"context={context} leaves no room for a word; choose at least 3")
        backend.no_truncation()
        backend.no_padding()
        if pad != END:
            backend.add_special_tokens([pad])  # as transformers does: `!` is then one id wherever it stands
        self._backend = backend
        self.context = context
        self.pad = pad
        self.start_id, self.end_id, self.pad_id = (_id_of(backend, token) for token in (START, END, pad))
        self._learned: dict[str, tuple[int, ...]] = {}
        self._names: re.Pattern[str] | None = None

    @property
    def vocab_size(self) -> int:
        """Number of ids, the two special ones included."""
        return int(self._backend.get_vocab_size())

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int, context: int = DEFAULT_CONTEXT) -> Tokenizer:
        """Learn the merges of `captions`; the same captions in any order give the same tokenizer.

        vocab_size: at most this many ids, at least 514 (the bytes twice, and the two special tokens). Captions whose
        words are all spelled in one piece before that give a smaller vocabulary.
        """
        smallest = 2 * len(_alphabet()) + 2
        if vocab_size < smallest:
            raise CartoucheError(f"vocab_size={vocab_size} asked; a byte-level vocabulary has at least {smallest}")
        return cls.from_merges(learn_merges(_count_words(captions), vocab_size - smallest), context)

    @classmethod
    def from_merges(cls, merges: Sequence[Pair], context: int = DEFAULT_CONTEXT, pad: str = END) -> Tokenizer:
        """The tokenizer of these merges, ids in the order CLIP gives them."""
        letters = _alphabet()
        pieces = dict.fromkeys([*letters, *(letter + WORD_END for letter in letters), *(a + b for a, b in merges)])
        vocab = {piece: i for i, piece in enumerate([*pieces, START, END])}
        return cls(_backend(vocab, list(merges)), context, pad)

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Open a tokenizer folder: `tokenizer.json`, or the older `vocab.json` + `merges.txt`.

        Raises CartoucheError where the folder has neither, or they are not those of a CLIP tokenizer.
        """
        folder = Path(folder)
        config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
        context = config.get("model_max_length", DEFAULT_CONTEXT)
        if isinstance(context, bool) or not isinstance(context, int | float):
            raise CartoucheError(f"{folder} has model_max_length={shown(repr(context))}; wanted a number")
        return cls(backend_of(folder), int(min(context, 1_000_000)), _pad_token(folder, config))

    def limit(self, places: int) -> Tokenizer:
        """Itself, with rows no longer than a text tower has places."""
        self.context = min(self.context, places)
        return self

    def save(self, folder: str | Path) -> None:
        """Write the folder that transformers' CLIPTokenizer opens, in the new layout and in the old one."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        model = json.loads(self._backend.to_str())["model"]
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": self.pad}
        config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": self.context, "do_lower_case": True}
        _write(folder / "vocab.json", json.dumps(model["vocab"], ensure_ascii=False))
        _write(folder / "merges.txt", "\n".join(["#version: 0.2", *merges]))
        _write(folder / "special_tokens_map.json", json.dumps(special, indent=2))
        _write(folder / "tokenizer_config.json", json.dumps({**config, **special}, indent=2))
        _write(folder / "tokenizer.json", self._backend.to_str(pretty=True))  # last: a folder that has it is whole

    def encode(self, text: str) -> Encoded:
        """One text, and the words that did not fit into `context`."""
        clean = _speakable(text)
        encoding = self._backend.encode(clean, add_special_tokens=False)
        room = self.context - 2
        cut: tuple[str, ...] = ()
        if len(encoding.ids) > room:
            cut = tuple(BETWEEN_SPACES.findall(text[_word_start(clean, encoding.offsets[room][0]) :]))
        return Encoded(self._rows([encoding.ids])[0], cut)

    def words(self, text: str) -> list[Word]:
        """All the words of a text of any length; learned ones are spelled with their own ids."""
        clean = _speakable(text)
        found: list[tuple[int, tuple[int, ...]]] = []
        at = 0
        for match in self._names.finditer(clean) if self._names else ():
            found += self._spelled(clean[at : match.start()], at)
            found.append((match.start(), list(self._learned.values())[(match.lastindex or 1) - 1]))
            at = match.end()
        found += self._spelled(clean[at:], at)
        edges = [0, *(start for start, _ in found[1:]), len(text)] if found else []
        return [Word(ids, text[a:b]) for (_, ids), (a, b) in zip(found, pairwise(edges), strict=True)]

    def _spelled(self, text: str, offset: int) -> list[tuple[int, tuple[int, ...]]]:
        """Where each word begins, counted from `offset`, and its ids."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        special = {self.start_id, self.end_id, self.pad_id}
        found: list[tuple[int, list[int]]] = []
        inside = False
        for one, token, (start, _) in zip(encoding.ids, encoding.tokens, encoding.offsets, strict=True):
            if not inside or one in special:
                found.append((offset + start, []))
            found[-1][1].append(one)
            inside = not (one in special or token.endswith(WORD_END))
        return [(start, tuple(ids)) for start, ids in found]

    def row(self, ids: Sequence[int]) -> np.ndarray:
        """(context,) int64: start, the ids that fit, end, padding."""
        return self._rows([ids])[0]

    def learn(self, name: str, ids: Sequence[int]) -> None:
        """From now on `words` spells `name`, in any case, where it stands as a word of its own, with these ids.

        Raises CartoucheError for a name that is learned already, or is no word.
        """
        if name.lower() in self._learned or not name.strip():
            raise CartoucheError(f"the word {name!r} is learned already, or empty; give it another name")
        longest_first = sorted([*self._learned.items(), (name.lower(), tuple(ids))], key=lambda one: -len(one[0]))
        self._learned = dict(longest_first)
        either = "|".join(f"({re.escape(one)})" for one in self._learned)
        self._names = re.compile(rf"(?<!\w)(?:{either})(?!\w)", re.IGNORECASE)

    def batch(self, texts: Sequence[str]) -> np.ndarray:
        """Many texts as (B, context) int64, cut without a word: for training. `encode` says what was cut."""
        encodings = self._backend.encode_batch_fast([_speakable(text) for text in texts], add_special_tokens=False)
        return self._rows([encoding.ids for encoding in encodings])

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of a row of ids, in normal form, without start, end and padding."""
        special = {self.start_id, self.end_id, self.pad_id}
        pieces = [self._backend.id_to_token(int(i)) or "" for i in ids if int(i) not in special]
        letters = decoders.ByteLevel()
        return " ".join(letters.decode([word]) for word in "".join(pieces).split(WORD_END) if word)

    def spelling(self) -> list[bytes]:
        """What each id says, in bytes: a word's end as a space, the special ones as nothing."""
        letters = _alphabet()
        rest = sorted(set(range(256)) - set(map(ord, letters)))
        byte = {letter: ord(letter) if ord(letter) < 256 else rest[ord(letter) - 256] for letter in letters}
        special = {self.start_id, self.end_id, self.pad_id}
        said = []
        for one in range(self.vocab_size):
            piece = "" if one in special else self._backend.id_to_token(one) or ""
            word = piece.removesuffix(WORD_END)
            said.append(bytes(byte[letter] for letter in word if letter in byte) + b" " * (word != piece))
        return said

    def _rows(self, pieces: Sequence[Sequence[int]]) -> np.ndarray:
        rows = np.full((len(pieces), self.context), self.pad_id, np.int64)
        rows[:, 0] = self.start_id
        for row, ids in zip(rows, pieces, strict=True):
            kept = ids[: self.context - 2]
            row[1 : len(kept) + 1] = kept
            row[len(kept) + 1] = self.end_id
        return rows


def learn_merges(words: Counter[str], count: int) -> list[Pair]:
    """The `count` most useful merges of counted words (spelled in the byte alphabet), by Sennrich et al. 2016,
    algorithm 1.

    Ties go to the pair that sorts first, so the result depends on the counts only. Fewer where every word is one piece.
    """
    spelled = [[*word[:-1], word[-1] + WORD_END] for word in sorted(words)]
    weight = [words[word] for word in sorted(words)]
    counts: Counter[Pair] = Counter()
    places: defaultdict[Pair, set[int]] = defaultdict(set)
    for i, pieces in enumerate(spelled):
        for pair in pairwise(pieces):
            counts[pair] += weight[i]
            places[pair].add(i)
    heap = [(-n, pair) for pair, n in counts.items()]
    heapq.heapify(heap)
    merges: dict[Pair, None] = {}
    known: set[str] = set()
    while heap and len(known) < count:
        n, best = heapq.heappop(heap)
        if n == 0 or -n != counts[best]:
            continue  # an older count of this pair
        merges[best] = None  # again, where another merge has spelled a piece anew
        known.add(best[0] + best[1])
        for pair in _apply(best, spelled, weight, counts, places):
            heapq.heappush(heap, (-counts[pair], pair))
    return list(merges)


def _apply(
    best: Pair, spelled: list[list[str]], weight: list[int], counts: Counter[Pair], places: defaultdict[Pair, set[int]]
) -> list[Pair]:
    """Merge one pair in every word that has it, keep the counts, and return the pairs whose count changed, sorted."""
    changed: set[Pair] = set()
    for i in places.pop(best):
        before, after = spelled[i], _merged(spelled[i], best)
        for pair in pairwise(before):
            counts[pair] -= weight[i]
        for pair in pairwise(after):
            counts[pair] += weight[i]
            places[pair].add(i)
        changed.update(pairwise(before), pairwise(after))
        spelled[i] = after
    return sorted(changed)


def _merged(pieces: list[str], pair: Pair) -> list[str]:
    out: list[str] = []
    for piece in pieces:
        if out and out[-1] == pair[0] and piece == pair[1]:
            out[-1] += piece
        else:
            out.append(piece)
    return out


def _count_words(captions: Iterable[str], at_once: int = 4096) -> Counter[str]:
    """How often each word stands in the captions, spelled in the byte alphabet."""
    normalizer, splitter = _normalizer(), _splitter()
    words: Counter[str] = Counter()
    stream: Iterator[str] = iter(captions)
    while chunk := list(islice(stream, at_once)):
        text = normalizer.normalize_str("\n".join(map(_speakable, chunk)))
        words.update(word for word, _ in splitter.pre_tokenize_str(text))
    return words


def _alphabet() -> list[str]:
    """The 256 byte letters in CLIP's order: bytes that print stand for themselves, the others follow."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _normalizer() -> Any:
    spaces = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
    return normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])


def _splitter() -> Any:
    words = pre_tokenizers.Split(tokenizers.Regex(_SPLIT), behavior="removed", invert=True)
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])


def _backend(vocab: dict[str, int], merges: list[Pair]) -> tokenizers.Tokenizer:
    """The fast engine, set up as transformers' CLIPTokenizer sets it up."""
    if missing := [token for token in (START, END) if token not in vocab]:
        raise CartoucheError(f"the vocabulary has no {missing[0]}, so it is not CLIP's; choose a CLIP tokenizer folder")
    model = models.BPE(vocab=vocab, merges=merges, end_of_word_suffix=WORD_END, unk_token=END, fuse_unk=False)
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = _normalizer()
    backend.pre_tokenizer = _splitter()
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([START, END])
    backend.post_processor = processors.RobertaProcessing((END, vocab[END]), (START, vocab[START]), False, False)
    return backend


def backend_of(folder: Path) -> tokenizers.Tokenizer:
    """The library's engine for a folder's words: of any tokenizer.json, or of the vocab.json and merges.txt of CLIP."""
    whole, vocab, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if whole.is_file():
        try:
            return tokenizers.Tokenizer.from_file(str(whole))
        except Exception as error:  # the library raises plain Exception
            raise CartoucheError(f"{whole} is not a tokenizer: {error}") from error
    if vocab.is_file() and merges.is_file():
        return _of_merges(vocab, merges)
    raise CartoucheError(f"{folder} holds no tokenizer; wanted tokenizer.json, or vocab.json with merges.txt")


def _of_merges(vocab: Path, merges: Path) -> tokenizers.Tokenizer:
    """The engine of the older layout. Raises CartoucheError where a file is damaged, or they do not fit together."""
    ids = read_json(vocab)
    try:
        lines = merges.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise CartoucheError(f"{merges} is no text in UTF-8 ({error}); wanted CLIP's merges") from error
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in pairs):
        raise CartoucheError(f"{merges} has lines that are not two pieces with a space between them")
    if not all(type(number) is int and 0 <= number < 2**32 for number in ids.values()):
        raise CartoucheError(f"{vocab} has numbers of pieces that are none; wanted whole ones from 0")
    strange = [piece for a, b in pairs for piece in (a, b, a + b) if piece not in ids]
    if strange:
        raise CartoucheError(f"{merges} has {shown(repr(strange[0]))}, which {vocab.name} has not; give files of one")
    return _backend(ids, [(pair[0], pair[1]) for pair in pairs])


def _pad_token(folder: Path, config: dict[str, Any]) -> str:
    """What rows are filled up with: the end token in SD 1.x, `!` in SD 2.x and in the second tokenizer of SDXL."""
    special = folder / "special_tokens_map.json"
    pad = read_json(special).get("pad_token") if special.is_file() else None
    pad = pad or config.get("pad_token") or END
    pad = pad.get("content") if isinstance(pad, dict) else pad
    if not isinstance(pad, str):
        raise CartoucheError(f"{folder} has pad_token={shown(repr(pad))}; wanted a token")
    return pad


def _id_of(backend: tokenizers.Tokenizer, token: str) -> int:
    number = backend.token_to_id(token)
    if number is None:
        raise CartoucheError(f"the vocabulary has no {token}, so it is not CLIP's; choose a CLIP tokenizer folder")
    return int(number)


def _speakable(text: str) -> str:
    """Half of a surrogate pair is no character: U+FFFD in its place, so that lengths stay."""
    return _LONE_SURROGATE.sub("\ufffd", text)


def _word_start(text: str, at: int) -> int:
    """Where the word that covers character `at` begins."""
    return next((word.start() for word in _WORD.finditer(text) if word.end() > at), at)


def _write(path: Path, text: str) -> None:
    write_whole(path, f"{text}\n".encode(), force=True)
