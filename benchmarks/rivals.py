"""A model of the size of Stable Diffusion 1.5 in every engine, each in a process of its own; engines.py has them race.

    python benchmarks/rivals.py "diffusers bf16" FOLDER     (one rival: a word a line on its input, JSON on its output)

Words: "step" is one call of the U-Net with guidance, "save FILE" keeps what it gives, "picture N" is a whole drawing in
N steps, "memory" the largest resident memory so far, in bytes. Weights are random numbers of a fixed seed, in float16.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cartouche.device import processors
from cartouche.files import write_whole
from cartouche.weights import folder as folders
from cartouche.weights import safetensors, single, template

PROMPT, SEED = "a red fox on a blue background", 7
TOWER = {"model_type": "clip_text_model", "architectures": ["CLIPTextModel"], "eos_token_id": 2}
LADDER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
LADDER |= {"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
LARGE = {  # those that ship, and one level of a few channels of each
    name: folders.read_json(template.TEMPLATES / net / "config.json")
    for name, net in {"unet": "unet-sd1", "vae": "vae", "text_encoder": "clip-l"}.items()
}
LARGE["unet"] |= {"sample_size": 64}
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
BLOCKS = {"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"]}
BLOCKS |= {"up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]}
SMALL = {
    "unet": {"_class_name": "UNet2DConditionModel", "sample_size": 8, "cross_attention_dim": 32, "norm_num_groups": 8}
    | {"block_out_channels": [16, 32], "layers_per_block": 1, "attention_head_dim": 4}
    | BLOCKS,
    "vae": {"_class_name": "AutoencoderKL", "block_out_channels": [8, 16], "norm_num_groups": 4, "sample_size": 16},
    "text_encoder": TOWER | TINY,
}
CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
MEMORY = ("VmHWM", "RssAnon", "RssFile")


def write_model(folder: Path, small: bool = False) -> dict[str, int]:
    """Write the folder; returns the numbers in each part. small: a toy with its graphs beside it."""
    import torch

    random, counts = np.random.default_rng(SEED), {}
    for part, config in (SMALL if small else LARGE).items():
        with torch.device("meta"):
            net = folders.build(config)
        shapes = folders.shapes(net)
        (folder / part).mkdir(parents=True)
        folders.write_json(folder / part / "config.json", net.config.to_dict())  # type: ignore[operator, union-attr]
        file = folders.FILES["transformers" if part == "text_encoder" else "diffusers"]
        tensors = {name: _numbers(random, name, shape) for name, shape in shapes.items()}
        safetensors.save(folder / part / file, tensors, {"format": "pt"})
        counts[part] = sum(one.size for one in tensors.values())
    single.clip_tokenizer(49408).save(folder / "tokenizer")
    (folder / "scheduler").mkdir()
    folders.write_json(folder / "scheduler" / "scheduler_config.json", LADDER)
    libraries = {part: "transformers" if part == "text_encoder" else "diffusers" for part in CLASSES}
    index: dict[str, Any] = {part: [libraries[part], name] for part, name in CLASSES.items()}
    index |= {"tokenizer": ["transformers", "CLIPTokenizer"], "scheduler": ["diffusers", "DDIMScheduler"]}
    index |= {"feature_extractor": [None, None], "safety_checker": [None, None], "requires_safety_checker": False}
    folders.write_json(folder / "model_index.json", {"_class_name": "StableDiffusionPipeline"} | index)
    if small:
        from cartouche.weights import graph

        graph.export(folder)
    return counts


def _numbers(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Random weights that neither vanish nor explode: ones and zeros for what scales and shifts."""
    if len(shape) < 2:
        return np.full(shape, not name.endswith("bias"), np.float16)
    spread = np.float32(np.prod(shape[1:]) ** -0.5)
    return (random.standard_normal(shape, np.float32) * spread).astype(np.float16)


def inputs(folder: Path) -> dict[str, np.ndarray]:
    """Noise, time and words of both passes of guidance."""
    config = folders.read_json(folder / "unet" / "config.json")
    random, side = np.random.default_rng(SEED), config["sample_size"]
    return {
        "sample": random.standard_normal((2, 4, side, side), np.float32),
        "timestep": np.full(2, 500, np.float32),
        "encoder_hidden_states": random.standard_normal((2, 77, config["cross_attention_dim"]), np.float32),
    }


# the rivals: what makes a step, and what makes a picture


Rival = tuple[Callable[[], np.ndarray], Callable[[int], object] | None]


def ours(folder: Path, engine: str, precision: str) -> Rival:
    from cartouche.draw.paint import Painter

    painter = Painter(folder, engine, precision, device="cpu")  # type: ignore[arg-type]
    net = painter.net("unet")
    settings: dict[str, Any] = {"seed": SEED, "sampler": "ddim", "guidance_scale": 7.5}
    return partial(net, **inputs(folder)), lambda steps: painter.draw(PROMPT, num_inference_steps=steps, **settings)


def diffusers(folder: Path, precision: str, channels_last: bool = False) -> Rival:
    import torch
    from diffusers import StableDiffusionPipeline

    kind = getattr(torch, precision)
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=kind, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    if channels_last:
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)
    given = [torch.from_numpy(one) for one in inputs(folder).values()]
    sample, timestep, words = given[0].to(kind), given[1], given[2].to(kind)

    @torch.inference_mode()
    def step() -> np.ndarray:
        return pipeline.unet(sample, timestep, words).sample.float().numpy()

    def picture(steps: int) -> object:
        return pipeline(PROMPT, num_inference_steps=steps, generator=torch.Generator().manual_seed(SEED)).images

    return step, picture


def onnxruntime(folder: Path) -> Rival:
    import onnxruntime as runtime

    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = processors(), 3
    session = runtime.InferenceSession(_onnx(folder / "unet"), options, providers=["CPUExecutionProvider"])
    given = inputs(folder)
    return lambda: session.run(None, given)[0], None


def _onnx(folder: Path) -> Path:
    """The graph beside the weights, or the one that ships with references to them in place of its inputs."""
    import onnx

    if (folder / "graph.onnx").is_file():
        return folder / "graph.onnx"
    weights = folders.weights_file(folder)
    model = onnx.load_from_string(template.content(template.TEMPLATES / "unet-sd1" / "forward.onnx.gz"))
    entries, graph = safetensors.layout(weights), model.graph
    kept = [value for value in graph.input if value.name not in entries]
    del graph.input[:]
    graph.input.extend(kept)
    casts = []
    for name, entry in entries.items():
        tensor = graph.initializer.add(name=f"{name}.stored", dims=entry.shape, data_type=onnx.TensorProto.FLOAT16)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        places = {"location": weights.name, "offset": entry.start, "length": entry.stop - entry.start}
        for key, value in places.items():
            tensor.external_data.add(key=key, value=str(value))
        casts.append(onnx.helper.make_node("Cast", [f"{name}.stored"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return write_whole(folder / "onnxruntime.onnx", model.SerializeToString(), force=True)


def ceiling(_: Path) -> Rival:
    """The most that the processor does in bf16: one product of matrices of SIDE, through oneDNN."""
    import torch

    a, b = torch.randn(2, SIDE, SIDE, generator=torch.Generator().manual_seed(SEED)).bfloat16()
    return lambda: (a @ b)[:1].float().numpy(), None


SIDE = 4096
RIVALS: dict[str, Callable[[Path], Rival]] = {
    "cartouche openvino bf16": partial(ours, engine="openvino", precision="bf16"),
    "cartouche openvino fp32": partial(ours, engine="openvino", precision="fp32"),
    "cartouche torch bf16": partial(ours, engine="torch", precision="bf16"),
    "cartouche torch fp32": partial(ours, engine="torch", precision="fp32"),
    "diffusers fp32": partial(diffusers, precision="float32"),
    "diffusers bf16": partial(diffusers, precision="bfloat16"),
    "diffusers bf16, channels last": partial(diffusers, precision="bfloat16", channels_last=True),
    "onnxruntime fp32": onnxruntime,
    "bf16 product": ceiling,
}


class Process:
    """A rival at the other end of two pipes, stopped while it is not its turn, so that no idle thread of it spins."""

    def __init__(self, name: str, folder: Path) -> None:
        command = [sys.executable, __file__, name, str(folder)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.name = name
        self._answer()

    def ask(self, word: str) -> Any:
        """What it answers. Ends this program where it has died."""
        self._process.send_signal(signal.SIGCONT)
        self._process.stdin.write(f"{word}\n")  # type: ignore[union-attr]
        self._process.stdin.flush()  # type: ignore[union-attr]
        return self._answer()

    def _answer(self) -> Any:
        line = self._process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise SystemExit(f"{self.name} ended with {self._process.wait()}; run it alone to see why")
        self._process.send_signal(signal.SIGSTOP)
        return json.loads(line)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGCONT)
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait()
        self._process.stdout.close()  # type: ignore[union-attr]


def memory() -> dict[str, int]:
    """Bytes: the most that was resident, and what is now, of its own and of mapped files; {} where nobody says."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return {}
    told = dict(line.split(":", 1) for line in lines)
    return {name: int(told[name].split()[0]) * 1024 for name in MEMORY if name in told}


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries may print; the answers go alone
    step, picture = RIVALS[name](folder)

    def say(value: Any) -> None:
        answers.write(f"{json.dumps(value)}\n")
        answers.flush()

    say("ready")
    for line in sys.stdin:
        word, _, more = line.strip().partition(" ")
        if word == "memory":
            say(memory())
        elif word == "picture":
            say(picture is not None and picture(int(more)) is not None)
        else:
            found = step()
            if word == "save":
                np.save(more, found)
            say(word)


if __name__ == "__main__":
    main()
