"""An opened model: its ladder, its words, its nets; all that a drawing asks of it, whatever it was stored as.

Two kinds draw here, and `Model.sized` tells them apart: Stable Diffusion 1 and 2, whose U-Net is told the states of one
text tower; and Stable Diffusion XL, whose U-Net is told the states of two, the pooled state of the second, and the size
of the picture (Podell et al. 2023, section 2.2).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cartouche.config import CartoucheError, unknown
from cartouche.device import Precision, gpu
from cartouche.diffusion import samplers, schedule
from cartouche.diffusion.prediction import kind_of
from cartouche.draw import tiles
from cartouche.engine import PRECISIONS, Net, OpenVINONet, TorchNet
from cartouche.files import fingerprint
from cartouche.images import MAX_PIXELS
from cartouche.prompt import Chunk, chunks, weigh
from cartouche.text import Tokenizer
from cartouche.weights import folder as folders
from cartouche.weights import source as sources
from cartouche.weights.adapters import Adapters
from cartouche.weights.builtin import builtin
from cartouche.weights.template import Template

ENGINES = ("auto", "openvino", "torch", "compiled")
REMEMBERED = 256  # prompts whose states are kept

Context = Any
"""What the U-Net is told of a prompt: states (1, N, D); if sized, a dict of such arrays by the names of its inputs."""


class Words(NamedTuple):
    """A prompt as the U-Net is told it."""

    context: Context
    cut: tuple[str, ...]
    """The words that did not fit, as they were typed."""


class Model:
    """A model on the disk, its nets opened when first needed.

    path: a folder in diffusers' layout, a single .safetensors file, or None for the built-in model. engine: "openvino"
    runs the graphs beside the weights, or those that ship for Stable Diffusion 1, 2 and XL; "torch" builds the nets
    from the weights, "compiled" also has torch compile them, which pays after many pictures of one size; "auto" takes
    openvino where there are graphs, but torch for these families where it has a GPU.
    precision: "auto" is bf16 where the processor has it. device: for torch, as in device.py. batch: how many
    pictures go through the nets together; at 1 a picture's pixels do not depend on its neighbours by a single bit, more
    may be faster on a GPU. vae: another autoencoder, as `source.with_vae` opens it; preview: the same, but only to show
    how a drawing comes about: a tiny one (TAESD's layout) takes little time. prediction: of a single file, what its
    U-Net predicts where the file does not say. loras: files, or (file, strength); embeddings: files of learned words.
    Raises CartoucheError where the model or an option cannot be used.
    """

    def __init__(
        self,
        path: Path | str | None = None,
        engine: str = "auto",
        precision: Precision = "auto",
        device: str = "auto",
        batch: int = 1,
        vae: Path | str | None = None,
        prediction: str | None = None,
        preview: Path | str | None = None,
        loras: Iterable[Path | str | tuple[Path | str, float]] = (),
        embeddings: Iterable[Path | str] = (),
    ) -> None:
        if precision not in PRECISIONS:
            raise unknown("precision", precision, PRECISIONS)
        if engine not in ENGINES:
            raise unknown("engine", engine, ENGINES)
        if batch < 1:
            raise CartoucheError(f"batch={batch} given; choose 1 or more")
        self.batch = batch
        self.source = sources.opened(builtin() if path is None else path, prediction)
        self.prediction, self._other_vae = prediction or "", None if vae is None else Path(vae)
        if vae is not None:
            self.source = sources.with_vae(self.source, vae)
        shown = preview is not None
        self.preview = Model(path, "auto", precision, device, batch, preview, prediction) if shown else None
        self.adapters = Adapters(loras, embeddings)
        self.adapters.check(self.source.parts)
        self.asked_precision = precision
        self.device = device
        self.towers = tuple(part for part in self.source.parts if part.startswith("text_encoder"))
        self._scheduler = self.source.scheduler
        self._unet, self._vae = self.source.config("unet"), self.source.config("vae")
        _check_drawable(self.towers, self._unet)
        self.sized = self._unet.get("addition_embed_type") == "text_time"
        self.engine = self._engine(engine)
        self.kind = kind_of(self._scheduler)
        self.tokenizers = {part: self._tokenizer(part) for part in self.towers}
        codec: Any = folders.settings(self._vae, self.folder / "vae")
        self.shrink = int(codec.shrink)
        if self.preview is not None and self.preview.channels != self.channels:
            raise CartoucheError(f"{preview} decodes {self.preview.channels} channels; this model has {self.channels}")
        if math.prod(self.size) > MAX_PIXELS:
            raise CartoucheError(f"{self.folder} draws {self.size} pixels; wanted at most {MAX_PIXELS:,} in all")
        self._remembered: dict[tuple[str, int], Words] = {}
        self._opening = threading.RLock()
        self._nets: dict[tuple[str, str], Net] = {}

    @property
    def folder(self) -> Path:
        """Where the model lies: a folder, or a file."""
        return self.source.path

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels that the model was trained for."""
        cells = self._unet.get("sample_size") or 64
        height, width = (cells, cells) if isinstance(cells, int) else cells
        return width * self.shrink, height * self.shrink

    @property
    def channels(self) -> int:
        """Channels of the latents, C."""
        return int(self._vae.get("latent_channels", 4))

    @property
    def edits(self) -> bool:
        """Whether the U-Net also takes a mask and a masked picture, and so only draws into pictures."""
        return int(self._unet.get("in_channels", 4)) != self.channels

    @property
    def name(self) -> str:
        """The model's name, without the place where it lies."""
        path = self.folder.resolve()
        return path.stem if path.is_file() else path.name

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the first text tower; the others cut a prompt in the same place."""
        return self.tokenizers[self.towers[0]]

    @cached_property
    def hash(self) -> str:
        """Ten hexadecimal digits of a sha256 over all that shapes a picture; of a single file, those of its sha256."""
        return fingerprint(*self.source.files())

    @cached_property
    def vae_hash(self) -> str:
        """As `hash`, of the autoencoder that was given in place of the model's own; "" where none was."""
        if self._other_vae is None:
            return ""
        folder = self._other_vae.is_dir()
        return fingerprint(*(folders.weights_files(self._other_vae) if folder else [self._other_vae]))

    def ladder(self, sampler: str) -> schedule.Ladder:
        """The model's ladder, walked as the scheduler class of this sampler walks it."""
        own = str(self._scheduler.get("_class_name", ""))
        classes = {name: kind for kind, name in reversed(samplers.ALIASES.items()) if not kind.startswith("Flow")}
        straight = self.kind == "flow" or samplers.ALIASES.get(own) == sampler
        return schedule.from_config(
            self._scheduler, None if straight else classes[samplers.ALIASES.get(sampler, sampler)]
        )

    # words

    def encode(self, prompt: str, clip_skip: int = 0) -> Words:
        """A prompt as the U-Net is told it, written as prompt.py says, and the words that did not fit.

        A prompt of C chunks has states (1, C * N, D). Remembered for the next time.
        """
        key = prompt, clip_skip
        if key not in self._remembered:
            rows = [chunks(prompt, self.tokenizers[part]) for part in self.towers]
            heard = [self._chunk(chunk, clip_skip) for chunk in zip(*(row for row, _ in rows), strict=True)]
            while len(self._remembered) >= REMEMBERED:
                self._remembered.pop(next(iter(self._remembered)), None)
            self._remembered[key] = Words(behind(heard), rows[0][1])
        return self._remembered[key]

    def context(self, ids: Sequence[np.ndarray], clip_skip: int = 0) -> Context:
        """What the U-Net is told of token ids, (B, N) for each text tower.

        clip_skip: how many layers earlier than the model's own choice the states are taken. Raises CartoucheError where
        a tower has not so many.
        """
        read = [self._read(part, one, clip_skip) for part, one in zip(self.towers, ids, strict=True)]
        return self._context([states for states, _ in read], read[-1][1])

    def _chunk(self, towers: Sequence[Chunk], clip_skip: int) -> Context:
        """What the U-Net is told of one chunk, spelled for each tower, its words as strong as they are written."""
        read = [self._read(part, one.ids[None], clip_skip) for part, one in zip(self.towers, towers, strict=True)]
        weighed = [weigh(states[0], one.weights)[None] for (states, _), one in zip(read, towers, strict=True)]
        return self._context(weighed, read[-1][1])

    def _context(self, states: Sequence[np.ndarray], pooled: np.ndarray) -> Context:
        joined = np.concatenate(states, axis=-1)  # (B, N, D of all towers)
        return {"encoder_hidden_states": joined, "text_embeds": pooled} if self.sized else joined

    def both(self, prompt: str, negative_prompt: str, clip_skip: int = 0) -> tuple[Words, Words]:
        """What the passes with and without the prompt are told: as many chunks each, empty ones behind the shorter."""
        words, empty = self.encode(prompt, clip_skip), self.negative(negative_prompt, clip_skip)
        if tokens(words.context) == tokens(empty.context):
            return words, empty
        longest = max(tokens(words.context), tokens(empty.context))
        nothing = self.encode("", clip_skip).context
        unconditional = nothing if negative_prompt else empty.context
        return (
            words._replace(context=_filled(words.context, nothing, longest)),
            empty._replace(context=_filled(empty.context, unconditional, longest)),
        )

    def negative(self, prompt: str, clip_skip: int = 0) -> Words:
        """What the pass without the prompt is told; an empty `prompt` is all zeros for models that were trained so."""
        words = self.encode(prompt, clip_skip)
        if prompt or not (self.sized and self.source.index.get("force_zeros_for_empty_prompt", True)):
            return words
        return Words({name: np.zeros_like(array) for name, array in words.context.items()}, ())

    def _read(self, part: str, ids: np.ndarray, clip_skip: int) -> tuple[np.ndarray, np.ndarray]:
        """One tower's states (B, N, D) and pooled state (B, E); XL takes the states before the last layer."""
        layers = int(self.source.config(part).get("num_hidden_layers", 12))
        if not 0 <= clip_skip <= layers - self.sized:
            raise CartoucheError(f"clip_skip={clip_skip} asked of {layers} layers; choose 0 to {layers - self.sized}")
        if not (self.sized or clip_skip):
            states, pooled = self.net(part)(ids=ids)
        else:
            net = self.net(part, "inner" if self.sized else "earlier")
            states, pooled = net(ids=ids, skip=np.array(clip_skip + self.sized, np.int64))
        return states, pooled

    # pictures

    def decode(self, latents: np.ndarray, tiled: bool = False) -> np.ndarray:
        """Latents (B, C, h, w) as the U-Net knows them to images (B, 3, H, W) in about [-1, 1].

        tiled: a tile at a time, in the memory that a tile takes.
        """
        z = np.asarray(latents / self._scale + self._shift, np.float32)
        if tiled:
            return np.concatenate([tiles.tiled(self._decode, one[None]) for one in z])
        return np.concatenate([self._decode(z[i : i + self.batch]) for i in range(0, len(z), self.batch)])

    def glance(self, latents: np.ndarray, tiled: bool = False) -> np.ndarray:
        """As `decode`, by the preview where the model was opened with one."""
        return (self.preview or self).decode(latents, tiled)

    def _decode(self, z: np.ndarray) -> np.ndarray:
        decoded: np.ndarray = self.net("vae")(z=z)
        return decoded

    def latents(self, images: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
        """Images (B, 3, H, W) in [-1, 1] to latents (B, C, h, w): their mean, or a draw where unit noise is given."""
        x = np.asarray(images, np.float32)
        net = self.net("vae", "encode")
        moments = np.concatenate([net(x=x[i : i + self.batch]) for i in range(0, len(x), self.batch)])
        z, spread = moments[:, : self.channels], moments[:, self.channels :]  # a tiny encoder gives no spread
        if noise is not None and spread.size:
            z = z + np.exp(np.clip(spread, -30, 20) / 2) * noise
        return np.asarray((z - self._shift) * self._scale, np.float32)

    @property
    def _scale(self) -> float:
        return float(self._vae.get("scaling_factor", 0.18215))

    @property
    def _shift(self) -> float:
        return float(self._vae.get("shift_factor") or 0.0)

    # nets

    def net(self, part: str, call: str | None = None) -> Net:
        """One of the model's nets, opened the first time: "unet", "vae", "text_encoder", "text_encoder_2".

        call: the method that runs: of the U-Net the one that fits, of the VAE "decode" unless "encode" is asked.
        """
        key = part, call or self._usual(part)
        with self._opening:
            if key not in self._nets:
                self._nets[key] = self._open(*key)
            return self._nets[key]

    def _usual(self, part: str) -> str:
        """The method of a part's net that every drawing runs."""
        if part == "vae":
            return "decode"
        if not self.sized:
            return "forward"
        return "sized" if part == "unet" else "inner"

    def _open(self, part: str, call: str) -> Net:
        precision: Precision = "fp32" if part in self.towers else self.asked_precision  # they run once a prompt
        if self.engine == "openvino":
            graph = self.source.graph(part, call)
            if graph is None:
                raise CartoucheError(f"{self.folder} has no graph of {part}.{call}; draw with engine=torch")
            change = self.adapters.change(part, self.source.config(part)) if self.adapters else None
            return OpenVINONet(graph, precision, change=change)
        from cartouche.device import choose

        same = [net for (name, _), net in self._nets.items() if name == part and isinstance(net, TorchNet)]
        module = same[0].module if same else self.adapters.merge(self.source.net(part, choose(self.device)), part)
        return TorchNet(module, precision, call, self.engine == "compiled" and part not in self.towers)

    def _tokenizer(self, part: str) -> Tokenizer:
        config = self.source.config(part)
        tokenizer = self.source.tokenizer(part).limit(int(config.get("max_position_embeddings", 77)))
        return self.adapters.teach(tokenizer, part, config)

    @property
    def without_graph(self) -> list[str]:
        """The parts whose net has no graph, so that only torch can run it."""
        return [part for part in self.source.parts if self.source.graph(part, self._usual(part)) is None]

    def _engine(self, engine: str) -> str:
        """The engine for this model, or a CartoucheError where it cannot be."""
        missing = self.without_graph
        if engine == "openvino" and missing:
            raise CartoucheError(
                f"{self.folder} has no graph of {missing[0]}; write the graphs with `cartouche weights export`"
            )
        if engine != "auto":
            return engine
        # of a public family: a GPU is worth the wait for torch
        large = isinstance(self.source.graph("unet", self._usual("unet")), Template)
        return "torch" if missing or (large and self._on_gpu()) else "openvino"

    def _on_gpu(self) -> bool:
        """Whether torch would run on a GPU here."""
        return gpu() if self.device == "auto" else self.device != "cpu"


def _check_drawable(towers: Sequence[str], unet: Mapping[str, Any]) -> None:
    """Refuse models whose parts do not belong together."""
    if not towers:
        raise CartoucheError("this model has no text encoder here, so it cannot be told what to draw; open another")
    if unet.get("addition_embed_type") == "text_time" and towers[-1] != "text_encoder_2":
        raise CartoucheError("this U-Net wants a second text tower (SDXL), and the model has none; open another")


def tokens(context: Context) -> int:
    """How many tokens there are in what the U-Net is told."""
    states = context["encoder_hidden_states"] if isinstance(context, dict) else context
    return int(states.shape[1])


def behind(heard: Sequence[Context]) -> Context:
    """Chunks behind each other, (1, C * N, D); the pooled state is the first one's, as A1111's web UI has it."""
    if len(heard) == 1:
        return heard[0]
    if isinstance(heard[0], dict):
        return heard[0] | {"encoder_hidden_states": behind([one["encoder_hidden_states"] for one in heard])}
    return np.concatenate(heard, axis=1)


def _filled(context: Context, nothing: Context, longest: int) -> Context:
    """The context, with empty chunks behind it up to `longest` tokens."""
    missing = (longest - tokens(context)) // tokens(nothing)
    return behind([context, *[nothing] * missing])
