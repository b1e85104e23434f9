"""Put the exported runs together as one model folder with graphs: what ships inside the package.

    python scripts/assemble_model.py [--runs runs] [--out cartouche/weights/builtin] [--pack FOLDER]

Where a net has no run of its own, the one that the folder already holds stays; with a pack, its `train` drawings are
remembered anew (cartouche/read/memory.py). Weights are stored as float16. Refuses weights of more than 96 MB; the
folder is then as it was.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from cartouche.config import CartoucheError
from cartouche.data.emoji import Pack
from cartouche.read.memory import FOLDER, Memory
from cartouche.text import Tokenizer
from cartouche.weights import graph
from cartouche.weights.builtin import seal
from cartouche.weights.folder import load_net, save_net, save_pipeline

MOST_BYTES = 96_000_000
READERS = ("clip", "detector", "segmenter", "captioner")


def assemble(runs: Path, out: Path, pack: Path | None = None) -> int:
    """Write the folder; returns the size of its weights in bytes."""
    with tempfile.TemporaryDirectory(dir=out.parent) as room:
        made = Path(room) / out.name
        if out.is_dir():
            shutil.copytree(out, made)
        size = put_together(runs, made, pack)
        shutil.rmtree(out, ignore_errors=True)
        made.rename(out)
    return size


def put_together(runs: Path, out: Path, pack: Path | None) -> int:
    """Put what the runs made in place of what the folder holds; returns the size of its weights in bytes."""
    for name in READERS:
        if (runs / name / "export").is_dir():
            shutil.rmtree(out / name, ignore_errors=True)
            shutil.copytree(runs / name / "export", out / name)
            save_net(out / name, load_net(out / name), "float16")
    unet = load_net(newest(runs / "denoiser" / "export" / "unet", out / "unet"))
    text = load_net(newest(runs / "denoiser" / "export" / "text_encoder", out / "text_encoder"))
    vae = load_net(newest(runs / "autoencoder" / "export", out / "vae"))
    ladder = newest(runs / "denoiser" / "export" / "scheduler", out / "scheduler") / "scheduler_config.json"
    tokenizer = Tokenizer.load(newest(out / "clip" / "tokenizer.json", out / "tokenizer" / "tokenizer.json").parent)
    save_pipeline(out, unet, vae, text, tokenizer, json.loads(ladder.read_text()), dtype="float16")
    graph.export(out)
    if pack is not None:
        drawings = Pack(pack)
        Memory.of(drawings.of("train"), drawings.pixels).save(out / FOLDER)
    seal(out)
    size = sum(path.stat().st_size for path in out.rglob("*.safetensors"))
    if size > MOST_BYTES:
        raise CartoucheError(
            f"the weights in {out} have {size} bytes; the package holds at most {MOST_BYTES}: make a net smaller"
        )
    return size


def newest(run: Path, shipped: Path) -> Path:
    """What a run made, or else what the folder holds."""
    return run if run.exists() else shipped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("cartouche/weights/builtin"))
    parser.add_argument("--pack", type=Path)
    arguments = parser.parse_args()
    try:
        size = assemble(arguments.runs, arguments.out, arguments.pack)
    except CartoucheError as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(f"{arguments.out}: {size / 1e6:.1f} MB\n")


if __name__ == "__main__":
    main()
