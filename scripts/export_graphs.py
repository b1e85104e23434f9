"""Write the graphs of the public families, which ship inside the package without any number (see weights/template.py).

    python scripts/export_graphs.py [NAME ...] [--out cartouche/weights/graphs]        (about ten minutes; needs torch)

The nets lie on torch's meta device, so even that of Stable Diffusion XL takes no memory. Two families may share a net:
the autoencoder is one for all, and the first tower of XL is that of Stable Diffusion 1.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from cartouche.weights.template import write

CROSSED = {"down": "CrossAttnDownBlock2D", "up": "CrossAttnUpBlock2D"}
UNET = {"_class_name": "UNet2DConditionModel"}
TOWER = {"model_type": "clip_text_model", "architectures": ["CLIPTextModel"], "eos_token_id": 2}
NETS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "clip-l": (
        TOWER | {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
        ("forward", "earlier", "inner"),
    ),
    "clip-h": (
        TOWER
        | {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
        | {"hidden_act": "gelu"},
        ("forward", "earlier"),
    ),
    "clip-g": (
        TOWER
        | {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
        | {"hidden_act": "gelu", "projection_dim": 1280, "architectures": ["CLIPTextModelWithProjection"]},
        ("inner",),
    ),
    "vae": (
        {"_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2},
        ("decode", "encode"),
    ),
    "unet-sd1": (UNET | {"cross_attention_dim": 768}, ("forward",)),
    "unet-sd2": (
        UNET | {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
        ("forward",),
    ),
    "unet-sdxl": (
        UNET
        | {"cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20], "use_linear_projection": True}
        | {"block_out_channels": [320, 640, 1280], "transformer_layers_per_block": [1, 2, 10]}
        | {"down_block_types": ["DownBlock2D", *[CROSSED["down"]] * 2]}
        | {"up_block_types": [*[CROSSED["up"]] * 2, "UpBlock2D"]}
        | {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}
        | {"projection_class_embeddings_input_dim": 2816},
        ("sized",),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NETS)}; all unless given")
    parser.add_argument("--out", type=Path, default=Path("cartouche/weights/graphs"))
    arguments = parser.parse_args()
    for name in arguments.names or NETS:
        for path in write(arguments.out / name, *NETS[name]):
            sys.stdout.write(f"{path}: {path.stat().st_size:,} bytes\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
