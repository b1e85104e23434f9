"""Put the exported runs together as one model folder with graphs: what ships inside the package.

    python scripts/assemble_model.py [--runs runs] [--out cartouche/weights/builtin]

Weights are stored as float16. Refuses a folder of more than 64 MB.
"""

import argparse
import json
import sys
from pathlib import Path

from cartouche.config import CartoucheError
from cartouche.nets.clip import CLIPTextModel
from cartouche.text import Tokenizer
from cartouche.weights import graph
from cartouche.weights.folder import load_net, save_pipeline

MOST_BYTES = 64_000_000


def assemble(runs: Path, out: Path) -> int:
    """Write the folder; returns its size in bytes."""
    clip = load_net(runs / "clip" / "export")
    text = CLIPTextModel(clip.config.text_config)
    text.text_model.load_state_dict(clip.text_model.state_dict())
    unet = load_net(runs / "denoiser" / "export" / "unet")
    vae = load_net(runs / "autoencoder" / "export")
    scheduler = json.loads((runs / "denoiser" / "export" / "scheduler" / "scheduler_config.json").read_text())
    save_pipeline(out, unet, vae, text, Tokenizer.load(runs / "clip" / "export"), scheduler, dtype="float16")
    graph.export(out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    if size > MOST_BYTES:
        raise CartoucheError(f"{out} has {size} bytes; the package holds at most {MOST_BYTES}: make a net smaller")
    return size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("cartouche/weights/builtin"))
    arguments = parser.parse_args()
    sys.stdout.write(f"{arguments.out}: {assemble(arguments.runs, arguments.out) / 1e6:.1f} MB\n")


if __name__ == "__main__":
    main()
