"""Files made to do harm: pickles in every disguise, and tensors whose names and shapes are traps."""

from __future__ import annotations

import builtins
import ctypes
import importlib
import io
import json
import os
import pickle
import pty
import runpy
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import timeit
import urllib.request
import webbrowser
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_tower
import torch
from small_tower import TEXT

from cartouche.config import CartoucheError
from cartouche.nets.clip import CLIPTextModel
from cartouche.weights import embeddings, folder, inspect, lora, safetensors

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole, small net."""
    return small_tower.save(tmp_path_factory.mktemp("tower"))


# pickles


class Attack:
    """An object that is a call: opening its pickle makes it."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


def attacks(canary: Path, script: Path) -> list[Attack]:
    """Thirty kinds of call that would make the canary, start something or reach out."""
    p, shell, python = str(canary), f"touch {canary}", f"open({str(canary)!r}, 'w')"
    nested = pickle.dumps(Attack(os.system, shell))
    return [
        Attack(os.system, shell),
        Attack(os.popen, shell),
        Attack(os.mkdir, p),
        Attack(os.open, p, os.O_CREAT),
        Attack(os.symlink, "/", p),
        Attack(os.link, str(script), p),
        Attack(os.rename, str(script), p),
        Attack(os.execv, "/bin/touch", ["touch", p]),
        Attack(os.spawnv, os.P_WAIT, "/bin/touch", ["touch", p]),
        Attack(os.posix_spawn, "/bin/touch", ["touch", p], {}),
        Attack(subprocess.Popen, ["touch", p]),
        Attack(subprocess.run, ["touch", p]),
        Attack(subprocess.call, ["touch", p]),
        Attack(subprocess.check_output, ["touch", p]),
        Attack(subprocess.getoutput, shell),
        Attack(pty.spawn, ["touch", p]),
        Attack(builtins.exec, python),
        Attack(builtins.eval, python),
        Attack(builtins.compile, python, "x", "eval"),
        Attack(builtins.open, p, "w"),
        Attack(io.FileIO, p, "w"),
        Attack(importlib.import_module, "antigravity"),
        Attack(builtins.__import__, "this"),
        Attack(runpy.run_path, str(script)),
        Attack(timeit.timeit, python, "pass", timeit.default_timer, 1),
        Attack(shutil.copy, str(script), p),
        Attack(pickle.loads, nested),
        Attack(socket.create_connection, ("127.0.0.1", 9)),
        Attack(urllib.request.urlopen, "http://127.0.0.1:9/"),
        Attack(webbrowser.open, "http://127.0.0.1:9/"),
        Attack(ctypes.CDLL, "libc.so.6"),
    ]


def zipped(load: Any) -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": {"a": torch.zeros(2), "b": load}}, file)
    return file.getvalue()


def legacy(load: Any) -> bytes:
    file = io.BytesIO()
    torch.save({"a": torch.zeros(2), "b": load}, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def tarred(load: Any) -> bytes:
    """The oldest of torch's formats."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            member = tarfile.TarInfo(name)
            content = pickle.dumps(load)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def array(load: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([load, None], dtype=object), allow_pickle=True)
    return file.getvalue()


def arrays(load: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.array([load, None], dtype=object), allow_pickle=True)
    return file.getvalue()


def archive(load: Any) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped_file:
        zipped_file.writestr("archive/data.pkl", pickle.dumps(load, protocol=2))
        zipped_file.writestr("archive/version", "3\n")
    return file.getvalue()


def sample(load: Any) -> bytes:
    """A shard whose sample has a pickled member."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in ("0001.pkl", "0001.pyd", "0001.pth", "0001.pickle"):
            member = tarfile.TarInfo(name)
            member.size = len(content := pickle.dumps(load))
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def appended(load: Any) -> bytes:
    """A safetensors file with a pickle behind it."""
    header = json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    return struct.pack("<Q", len(header)) + header + b"\0" + pickle.dumps(load)


DISGUISES: dict[str, Callable[[Any], bytes]] = {
    **{f"model-{n}.{end}": (lambda load, n=n: pickle.dumps(load, n)) for n, end in enumerate(("ckpt", "pt", "bin"))},
    **{f"model-{n}.{end}": (lambda load, n=n: pickle.dumps(load, n)) for n, end in ((3, "pth"), (4, "pkl"), (5, "pt"))},
    **{f"plain-{n}.safetensors": (lambda load, n=n: pickle.dumps(load, n)) for n in range(6)},
    "zip.ckpt": zipped,
    "zip.safetensors": zipped,
    "legacy.pt": legacy,
    "legacy.safetensors": legacy,
    "tar.pth": tarred,
    "tar.safetensors": tarred,
    "shard.tar": sample,
    "unet/diffusion_pytorch_model.bin": zipped,
    "text_encoder/pytorch_model.bin": legacy,
    "text_encoder_2/model.safetensors": zipped,
    "adapter/adapter_model.safetensors": legacy,
    "adapter/adapter_model.bin": zipped,
    "learned_embeds.bin": zipped,
    "step-00000001/.metadata": pickle.dumps,
    "step-00000002/net.safetensors": zipped,
    "step-00000002/state.json": pickle.dumps,
    "set/latents.npy": array,
    "set/states.npz": arrays,
    "archive.zip": archive,
    "tokenizer/tokenizer.json": pickle.dumps,
    "graph.onnx": pickle.dumps,
    "compressed.safetensors": lambda load: zlib.compress(pickle.dumps(load)),
    "appended.safetensors": appended,
    "picture.png": pickle.dumps,
    "words.safetensors": lambda load: pickle.dumps(load, 0),
}


def write_all(place: Path, loads: list[Any], config: bytes) -> None:
    """Every disguise, its contents in turn; a good config.json beside each."""
    for i, (name, disguise) in enumerate(DISGUISES.items()):
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(disguise(loads[i % len(loads)]))
        (path.parent / "config.json").write_bytes(config)


def test_no_pickle_in_any_disguise_runs_anything_and_each_is_refused_in_our_words(tmp_path, tower):
    script, canary = tmp_path / "script.py", tmp_path / "canary"
    script.write_text(f"open({str(canary)!r}, 'w')\n")
    config = (tower / "config.json").read_bytes()
    loads = attacks(canary, script)
    assert len(loads) >= 30 and len(DISGUISES) >= len(loads)
    write_all(tmp_path / "harmless", [OrderedDict(a=1)], config)
    write_all(tmp_path / "hostile", loads, config)
    command = [sys.executable, str(HERE / "hostile_loads.py"), str(tmp_path / "harmless"), str(tmp_path / "hostile")]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout)
    assert said["events"] == []
    assert not canary.exists() and script.exists()
    assert said["outcomes"] == {}
    assert said["heard"] == ["pickle.find_class"]


def test_a_pickle_is_named_as_one_and_the_way_out_is_named_too(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(zipped(1))
    with pytest.raises(CartoucheError, match=r"is a pickle, which can run code .*weights convert"):
        safetensors.layout(tmp_path / "a.safetensors")
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").write_bytes(zipped(1))
    with pytest.raises(CartoucheError, match=r"diffusion_pytorch_model.bin is a pickle"):
        folder.weights_file(tmp_path / "unet")


# names, types, shapes


EVIL = [
    "text_model.__class__.__base__.__getattribute__",
    "text_model.embeddings.__init__.__globals__.os",
    "__class__",
    "..",
    "../../../etc/passwd",
    "/etc/passwd",
    "text_model.final_layer_norm.forward",
    "\x1b[2J\x1b]0;title\x07",
    "a" * 100_000,
    "",
]


def classes() -> dict[str, Any]:
    """What a name set along a path would change: the methods of the classes on the way."""
    kinds = (CLIPTextModel, torch.nn.Module, torch.nn.LayerNorm, torch.nn.Embedding)
    return {f"{kind.__name__}.{name}": value for kind in kinds for name, value in vars(kind).items()}


def with_tensors(source: Path, target: Path, **tensors: np.ndarray) -> Path:
    """A copy of a net's folder whose weights have some more tensors, or others in their place."""
    shutil.copytree(source, target)
    path = folder.weights_file(target)
    safetensors.save(path, safetensors.load_numpy(path) | tensors)
    return target


def test_hostile_names_are_listed_five_at_most_and_never_set(tower, tmp_path):
    before = classes()
    path = with_tensors(tower, tmp_path / "net", **{name: np.ones(2, np.float32) for name in EVIL})
    with pytest.raises(CartoucheError, match=f"{len(EVIL)} unexpected") as caught:
        folder.load_net(path)
    said = str(caught.value)
    assert said.isprintable() and len(said) < 2000 and said.endswith(", ...")
    assert sum(f"{name}, " in said for name in EVIL if name.isprintable()) <= 5
    assert classes() == before
    fit = inspect.check(path)[0]
    assert set(fit.left_over) == set(EVIL) and not fit.missing


@pytest.mark.parametrize("name", EVIL)
def test_a_hostile_name_makes_no_adapter_and_no_word_of_it_does_harm(tmp_path, name):
    before = classes()
    tensors = {f"lora_te_{name}.lora_down.weight": np.ones((1, 16), np.float32)}
    tensors |= {f"lora_te_{name}.lora_up.weight": np.ones((16, 1), np.float32)}
    safetensors.save(tmp_path / "a.safetensors", tensors)
    adapter = lora.read(tmp_path / "a.safetensors")
    with pytest.raises(CartoucheError, match="changes layers that this model's text_encoder has not") as caught:
        adapter.fitted("text_encoder", folder.shapes(CLIPTextModel(TEXT)))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000
    safetensors.save(tmp_path / "b.safetensors", {name: np.ones((1, 16), np.float32)})
    assert embeddings.read(tmp_path / "b.safetensors").word == name  # a word as any other
    assert classes() == before


def test_wrong_types_and_shapes_are_refused_by_name(tower, tmp_path):
    name = "text_model.final_layer_norm.bias"
    for i, (odd, said) in enumerate(
        [
            (np.ones(16, np.int64), f"another kind of number than the net's: {name}"),
            (np.ones(16, bool), f"another kind of number than the net's: {name}"),
            (np.ones(17, np.float32), r"1 of another shape: .*\(17,\) for \(16,\)"),
            (np.ones((1, 16), np.float32), "1 of another shape"),
            (np.ones((), np.float32), "1 of another shape"),
        ]
    ):
        with pytest.raises(CartoucheError, match=said):
            folder.load_net(with_tensors(tower, tmp_path / str(i), **{name: odd}))


def test_two_spellings_of_one_weight_are_refused(tower, tmp_path):
    path = with_tensors(tower, tmp_path / "net", **{"final_layer_norm.bias": np.ones(16, np.float32)})
    with pytest.raises(CartoucheError, match="in two spellings"):
        folder.load_net(path)
