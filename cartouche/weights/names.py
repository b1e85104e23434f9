"""What the same weight is called elsewhere: one small table for each dialect, read in one direction, used in both.

Our names are those of diffusers and transformers. A dialect is a function from one of our names to a `Piece`: the
tensor it is stored in there, which rows of it, and whether it lies the other way round. From that alone follow reading
(`gathered`), writing (`scattered`) and the check that every name is used (`stored_shapes`); arrays may be numpy's or
torch's, and a reader that only wants places in a file needs neither.

| dialect | for | of |
|---|---|---|
| `ldm_unet`, `ldm_vae` | single-file Stable Diffusion 1, 2 and XL (CompVis latent-diffusion) | U-Net, autoencoder |
| `openai_clip` | OpenAI's CLIP and open_clip, the second tower of SDXL, the tower of SD 2 | CLIP, either tower |
| `taesd` | the two files of TAESD | tiny autoencoder |
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Array = Any
"""A numpy array or a torch tensor."""

Shape = tuple[int, ...]


class Piece(NamedTuple):
    """Where one of our weights is stored: `part` of `parts` equal blocks of the rows of tensor `name`.

    turned: a matrix stored transposed. ones: how many axes of size 1 follow ours (a 1x1 convolution for a matrix).
    """

    name: str
    part: int = 0
    parts: int = 1
    turned: bool = False
    ones: int = 0


Dialect = Callable[[str], Piece]


def prefixed(dialect: Dialect, prefix: str) -> Dialect:
    """The same dialect, its tensors lying under a prefix."""
    return lambda name: dialect(name)._replace(name=prefix + dialect(name).name)


def plain(name: str) -> Piece:
    """Our own names."""
    return Piece(name)


# the rules, applied from the first to the last

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE = (
    (r"mid_block\.attentions\.0\.", "mid.attn_1."),
    (r"mid_block\.resnets\.0\.", "mid.block_1."),
    (r"mid_block\.resnets\.1\.", "mid.block_2."),
    (r"\.resnets\.(\d+)\.", r".block.\1."),
    (r"\.downsamplers\.0\.", ".downsample."),
    (r"\.upsamplers\.0\.", ".upsample."),
    (r"down_blocks\.", "down."),
    (r"conv_norm_out\.", "norm_out."),
    (r"conv_shortcut\.", "nin_shortcut."),
    (r"group_norm\.", "norm."),
    (r"to_([qkv])\.", r"\1."),
    (r"to_out\.0\.", "proj_out."),
)
CLIP = (
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"^text_projection\.weight$", "text_projection"),
    (r"^vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"^visual_projection\.weight$", "visual.proj"),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.self_attn\.[qkv]_proj\.", ".attn.in_proj_"),
)
PROJECTIONS = ("text_projection.weight", "visual_projection.weight")


def ldm_unet(layers: Sequence[int], crossed: Sequence[bool]) -> Dialect:
    """latent-diffusion's U-Net: its blocks are numbered through, input_blocks on the way down, output_blocks on the up.

    layers: residual blocks of each level on the way down, finest first; crossed: whether the level has transformers.
    """
    levels = len(layers)
    down = [1 + sum(layers[:level]) + level for level in range(levels)]  # number of each level's first block
    up = [sum(count + 1 for count in layers[levels - i :]) for i in range(levels)]

    def inside(match: re.Match[str]) -> str:
        way, level, kind, layer = match["way"], int(match["level"]), match["kind"], int(match["layer"])
        if way == "down":
            number = down[level] + (layers[level] if kind == "downsamplers" else layer)
            return f"input_blocks.{number}.{int(kind == 'attentions')}"
        finest = levels - 1 - level
        if kind == "upsamplers":
            return f"output_blocks.{up[level] + layers[finest]}.{1 + crossed[finest]}"
        return f"output_blocks.{up[level] + layer}.{int(kind == 'attentions')}"

    blocks = re.compile(r"^(?P<way>down|up)_blocks\.(?P<level>\d+)\.(?P<kind>\w+)\.(?P<layer>\d+)")
    middles = {"resnets.0": "middle_block.0", "attentions.0": "middle_block.1", "resnets.1": "middle_block.2"}

    def dialect(name: str) -> Piece:
        head, _, leaf = name.rpartition(".")
        if head in UNET:
            return Piece(f"{UNET[head]}.{leaf}")
        theirs = blocks.sub(inside, name)
        theirs = re.sub(r"^mid_block\.(\w+\.\d)", lambda match: middles[match[1]], theirs)
        if ".resnets." in name:
            theirs = re.sub(
                r"\b(norm1|conv1|time_emb_proj|norm2|conv2|conv_shortcut)\b", lambda m: RESNET[m[1]], theirs
            )
        if ".downsamplers." in name:
            theirs = theirs.replace(".conv.", ".op.")
        return Piece(theirs)

    return dialect


def ldm_vae(levels: int) -> Dialect:
    """latent-diffusion's autoencoder: the decoder's levels counted from the finest, attention by 1x1 convolutions."""

    def dialect(name: str) -> Piece:
        theirs = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{levels - 1 - int(match[1])}", name)
        matrix = ".attentions." in name and name.endswith("weight") and "group_norm" not in name
        return Piece(_renamed(theirs, VAE), ones=2 if matrix else 0)

    return dialect


def openai_clip(name: str) -> Piece:
    """OpenAI's and open_clip's names: queries, keys and values in one tensor, projections multiplied from the right."""
    fused = re.search(r"\.self_attn\.([qkv])_proj\.", name)
    theirs = _renamed(name, CLIP)
    return Piece(theirs, "qkv".index(fused[1]) if fused else 0, 3 if fused else 1, turned=name in PROJECTIONS)


def taesd(name: str) -> Piece:
    """TAESD's two files, here as "encoder." and "decoder.": the decoder counts its clamp as layer 0."""
    side, _, number, rest = name.split(".", 3)
    return Piece(f"{side}.{int(number) + (side == 'decoder')}.{rest}")


def _renamed(name: str, rules: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


# reading and writing


def stored_shapes(shapes: Mapping[str, Shape], dialect: Dialect) -> dict[str, Shape]:
    """The names and shapes of the file that holds weights of these names and shapes."""
    found = {}
    for name, shape in shapes.items():
        piece = dialect(name)
        whole = (shape[0] * piece.parts, *shape[1:]) if shape else ()
        found[piece.name] = (whole[::-1] if piece.turned else whole) + (1,) * piece.ones
    return found


def gathered(stored: Mapping[str, Array], shapes: Mapping[str, Shape], dialect: Dialect) -> dict[str, Array]:
    """Weights by our names out of tensors by theirs; views, no copies. Names and shapes are those `stored_shapes` gave,
    but for axes of size 1 at the end."""
    found = {}
    for name, shape in shapes.items():
        piece = dialect(name)
        tensor = stored[piece.name]
        tensor = tensor.T if piece.turned else tensor
        rows = tensor[shape[0] * piece.part : shape[0] * (piece.part + 1)] if piece.parts > 1 else tensor
        found[name] = rows.reshape(shape)
    return found


def scattered(weights: Mapping[str, Array], dialect: Dialect) -> dict[str, Array]:
    """Tensors by their names out of weights by ours: what `gathered` undoes."""
    groups: dict[str, list[tuple[int, Array]]] = {}
    for name, weight in weights.items():
        piece = dialect(name)
        tensor = weight.T if piece.turned else weight
        tensor = tensor.reshape((*tensor.shape, *(1,) * piece.ones))
        groups.setdefault(piece.name, []).append((piece.part, tensor))
    return {
        name: _joined([tensor for _, tensor in sorted(group, key=lambda g: g[0])]) for name, group in groups.items()
    }


def fits(given: Shape, wanted: Shape) -> bool:
    """Whether a stored shape is the wanted one, but for axes of size 1 at the end."""
    longest = max(len(given), len(wanted))
    padded = [shape + (1,) * (longest - len(shape)) for shape in (given, wanted)]
    return padded[0] == padded[1] and math.prod(given) == math.prod(wanted)


def _joined(tensors: Sequence[Array]) -> Array:
    if len(tensors) == 1:
        return tensors[0]
    if isinstance(tensors[0], np.ndarray):
        return np.concatenate(tensors)
    import torch

    return torch.cat(list(tensors))
