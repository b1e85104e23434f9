"""Which methods of a net become graphs, and what goes in and comes out of each.

A net that is used in parts is exported in parts: a detector's texts apart from its pictures, a language model as one
step with its memory as inputs and outputs. The graph of a method lies beside the weights as `METHOD.onnx`; `forward`,
`decode` and `encode` have names of their own (source.GRAPHS).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from cartouche.config import CartoucheError

if TYPE_CHECKING:
    import torch

CALLS = {
    "AutoencoderKL": ("decode", "encode"),
    "CLIPModel": ("encode_image", "encode_text"),
    "OwlViTForObjectDetection": ("detect", "queries"),
    "CLIPSegForImageSegmentation": ("features", "queries", "segment"),
    "LlavaForConditionalGeneration": ("features", "embed", "step"),
}
"""The methods of each class that are exported; of any other class `forward` alone."""

EARLIER = ("inner", "earlier")
"""The methods of a text tower that also take `skip`: how many layers before the last its states are taken."""

OUTPUTS = {
    "decode": ["image"],
    "encode": ["moments"],
    "sized": ["prediction"],
    "inner": ["states", "pooled"],
    "earlier": ["states", "pooled"],
    "encode_image": ["embeds"],
    "encode_text": ["embeds"],
    "detect": ["boxes", "embeds", "shift", "scale"],
    "queries": ["embeds"],
    "features": ["features"],
    "segment": ["logits"],
    "embed": ["embeds"],
    "step": ["logits", "longer_keys", "longer_values"],
}
SIZES = 6  # numbers that SDXL is told of a picture: height and width of its source, corner, as wanted
PICTURES = ("batch", None, None, None)
SPATIAL = ("batch", None, "height", "width")


class Port(NamedTuple):
    """One input of a graph: an example, and the name of every axis that may change."""

    example: torch.Tensor
    axes: tuple[str | None, ...]


def calls(net: torch.nn.Module) -> tuple[str, ...]:
    """The methods of a net that become graphs beside its weights. Raises CartoucheError for a net that has none."""
    if getattr(net.config, "addition_embed_type", None) == "text_time":
        raise CartoucheError("a U-Net that is told sizes has no graph but the one of SDXL that ships; use engine=torch")
    return CALLS.get(type(net).__name__, ("forward",))


def outputs(net: torch.nn.Module, call: str) -> list[str]:
    """The names of what a graph gives."""
    if call == "forward":
        return ["prediction"] if type(net).__name__ == "UNet2DConditionModel" else ["states", "pooled"]
    return OUTPUTS[call]


def inputs(net: Any, call: str) -> dict[str, Port]:
    """The inputs of a net's method, with small examples; where height and width are free they differ.

    Raises CartoucheError for a net that has no graph.
    """
    kind = type(net).__name__
    if kind == "UNet2DConditionModel":
        return _unet(net.config)
    if kind.startswith("CLIPText") and call in EARLIER:
        return {"ids": _texts(net.config), "skip": _number()}
    if kind == "AutoencoderKL":
        return _autoencoder(net.config, call)
    if kind.startswith("CLIPText"):
        return {"ids": _texts(net.config)}
    if kind.startswith("CLIPVision"):
        return {"pixels": _pictures(net.config)}
    if kind not in CALLS:
        raise CartoucheError(
            f"{kind} has no graph; known here: UNet2DConditionModel, {', '.join(CALLS)}, CLIP's towers"
        )
    if call in ("encode_text", "queries"):
        return {"ids": _texts(net.config.text_config)}
    if call in ("encode_image", "detect", "features"):
        return {"pixels": _pictures(net.config.vision_config)}
    return _masks(net.config) if call == "segment" else _words(net, call)


def _unet(config: Any) -> dict[str, Port]:
    import torch

    side = 2**config.levels
    found = {
        "sample": Port(torch.zeros(2, config.in_channels, 2 * side, 3 * side), SPATIAL),
        "timestep": Port(torch.zeros(2), ("batch",)),
        "encoder_hidden_states": Port(torch.zeros(2, 7, config.cross_attention_dim), ("batch", "tokens", None)),
    }
    if config.addition_embed_type != "text_time":
        return found
    pooled = config.projection_class_embeddings_input_dim - SIZES * config.addition_time_embed_dim
    added = {"text_embeds": torch.zeros(2, pooled), "time_ids": torch.zeros(2, SIZES)}
    return found | {name: Port(one, ("batch", None)) for name, one in added.items()}


def _autoencoder(config: Any, call: str) -> dict[str, Port]:
    import torch

    if call == "decode":
        return {"z": Port(torch.zeros(2, config.latent_channels, 6, 9), SPATIAL)}
    side = 2 * config.shrink
    return {"x": Port(torch.zeros(2, config.in_channels, 2 * side, 3 * side), SPATIAL)}


def _texts(config: Any) -> Port:
    import torch

    ids = torch.arange(config.max_position_embeddings).expand(2, -1) % config.vocab_size
    return Port(ids.contiguous(), ("batch", None))


def _number() -> Port:
    import torch

    return Port(torch.tensor(1), ())


def _pictures(config: Any) -> Port:
    import torch

    return Port(torch.zeros(2, config.num_channels, config.image_size, config.image_size), PICTURES)


def _masks(config: Any) -> dict[str, Port]:
    """What `segment` takes: the states of a picture and the vector of a text, row by row."""
    import torch

    vision = config.vision_config
    tokens = 1 + (vision.image_size // vision.patch_size) ** 2
    features = torch.zeros(2, len(config.extract_layers), tokens, vision.hidden_size)
    return {
        "features": Port(features, PICTURES),
        "queries": Port(torch.zeros(2, config.projection_dim), ("batch", None)),
    }


def _words(net: Any, call: str) -> dict[str, Port]:
    """What a language model takes: ids to `embed`; vectors and the memory of those before them to `step`."""
    import torch

    if call == "embed":
        return {"ids": Port(torch.zeros(2, 3, dtype=torch.int64), ("batch", "tokens"))}
    keys, values = net.empty(2)
    seen = [torch.zeros(*one.shape[:3], 5, one.shape[4]) for one in (keys, values)]
    memory = (None, "batch", None, "seen", None)
    return {
        "embeds": Port(torch.zeros(2, 3, net.config.text_config.hidden_size), ("batch", "tokens", None)),
        "keys": Port(seen[0], memory),
        "values": Port(seen[1], memory),
    }
