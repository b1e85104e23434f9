"""What the autoencoder loses: PSNR of scenes with drawings that it never saw, there and back through the latents.

    python benchmarks/autoencoder.py --pack FOLDER [--vae FOLDER] [--count 500]        (about a minute)

The scenes are composed of the `test` split's drawings. The latents are the mean of the encoder's answer, as drawing
and training use them; both pictures are compared in 8 bits, as they are saved. A sheet of the first twelve, originals
above what came back, lies beside the JSON. The target is a mean of at least 28 dB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench import against, machine, parser, table, write

from cartouche import images
from cartouche.data.emoji import Pack
from cartouche.data.scenes import Composer, render
from cartouche.engine import OpenVINONet
from cartouche.weights.builtin import builtin
from cartouche.weights.folder import load_net

TARGET = 28.0  # dB
SEED = 8  # kept for this: neither trained nor chosen on
SHOWN = 12
BATCH = 8

Again = Callable[[np.ndarray], np.ndarray]
"""Pictures (B, 3, H, W) in [-1, 1] to what comes back, the same shape."""


def reconstruction(folder: Path, engine: str = "auto", precision: str = "fp32") -> tuple[Again, str]:
    """There and back through the autoencoder in `folder`, and the engine that does it: its graphs, or torch."""
    graphs = folder / "encoder.onnx", folder / "decoder.onnx"
    if engine == "openvino" or (engine == "auto" and all(path.is_file() for path in graphs)):
        encode, decode = (OpenVINONet(path, precision) for path in graphs)  # type: ignore[arg-type]
        return lambda x: decode(z=np.split(encode(x=x), 2, axis=1)[0]), "openvino"
    import torch

    vae: Any = load_net(folder)

    @torch.inference_mode()
    def again(x: np.ndarray) -> np.ndarray:
        pixels: np.ndarray = vae(torch.from_numpy(x)).numpy()
        return pixels

    return again, "torch"


def measure(again: Again, folder: Path, count: int = 500, split: str = "test") -> tuple[dict[str, Any], np.ndarray]:
    """The PSNR of `count` scenes, in all and by style; and the sheet, (h, w, 3) uint8."""
    pack = Pack(folder)
    composer = Composer(pack.of(split), SEED)
    scenes = [composer[i] for i in range(count)]
    originals = np.stack([render(pack, scene)[0] for scene in scenes])  # (count, H, W, 3) uint8
    given = images.from_uint8(originals)
    back = images.to_uint8(np.concatenate([again(given[i : i + BATCH]) for i in range(0, count, BATCH)]))
    found = psnr(originals, back)
    styles = np.array([scene.style for scene in scenes])
    pairs = images.from_uint8(np.concatenate([originals[:SHOWN], back[:SHOWN]]))
    report = {
        "split": split,
        "PSNR, dB": described(found),
        "by style": {style: described(found[styles == style]) for style in sorted(set(styles.tolist()))},
        "target": against(float(found.mean()), TARGET),
    }
    return report, images.to_uint8(images.grid(pairs, columns=min(SHOWN, count)))[0]


def psnr(originals: np.ndarray, back: np.ndarray) -> np.ndarray:
    """Peak signal to noise, dB, of pictures (B, H, W, 3) uint8: 10 log10(255^2 / mean square error). (B,)"""
    error = np.square(originals.astype(np.float32) - back.astype(np.float32)).mean((1, 2, 3))
    return 10 * np.log10(255**2 / np.maximum(error, 1e-3))


def described(values: np.ndarray) -> dict[str, float]:
    """Mean, median, the 5th percentile (one picture in twenty is worse), and how many."""
    low, middle = np.percentile(values, [5, 50])
    return {"mean": float(values.mean()), "median": middle, "5th percentile": low, "n": len(values)}


def rows_of(report: dict[str, Any]) -> Sequence[Sequence[object]]:
    """For the table: all, then each style."""
    lines = {"all": report["PSNR, dB"], **report["by style"]}
    return [
        [name, row["n"], *(f"{row[key]:.2f}" for key in ("mean", "median", "5th percentile"))]
        for name, row in lines.items()
    ]


def main() -> None:
    given = parser(__doc__, "autoencoder")
    given.add_argument("--pack", type=Path, required=True)
    given.add_argument(
        "--vae", type=Path, default=None, help="an autoencoder's folder; the built-in model's unless given"
    )
    given.add_argument("--count", type=int, default=500)
    given.add_argument("--engine", choices=("auto", "openvino", "torch"), default="auto")
    given.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the graphs")
    a = given.parse_args()
    here = machine()
    again, engine = reconstruction(a.vae or builtin() / "vae", a.engine, a.precision)
    report, sheet = measure(again, a.pack, a.count)
    print(table(["PSNR, dB", "n", "mean", "median", "5th percentile"], rows_of(report)))
    print(f"wanted a mean of at least {TARGET:g} dB: {'met' if report['target']['met'] else 'missed'}")
    precision = a.precision if engine == "openvino" else "fp32"
    write(a.out, {"machine": here, "engine": engine, "precision": precision, "scene seed": SEED, **report})
    images.save_png(a.out.with_suffix(".png"), sheet, force=True)


if __name__ == "__main__":
    main()
