"""Pickled checkpoints become safetensors in a process that can do nothing else, or are refused and leave nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from cartouche.cli import main
from cartouche.config import CartoucheError
from cartouche.weights import convert, safetensors, unpickle

ROOT = Path(__file__).parents[1]


class Attack:
    """What a pickle can carry: a call, made when it is opened."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


def refused(tmp_path: Path, *arguments: Any, **settings: Any) -> str:
    """Why a conversion is refused; that nothing is left of it is checked on the way."""
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CartoucheError) as caught:
        convert.convert(*arguments, **settings)
    assert sorted(tmp_path.iterdir()) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


# whole conversions


def test_the_weights_of_a_checkpoint_come_out_bit_for_bit_and_the_rest_is_named(tmp_path, capsys):
    shared = torch.randn(3, 4)
    state = OrderedDict(
        a=shared.half(), b=torch.nn.Parameter(shared.T), c=shared[1:, ::2], d=torch.tensor(7), e=shared.bfloat16()
    )
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": state, "global_step": 7, "optimizer_states": [{"lr": 0.1}]}, path)
    assert main(["weights", "convert", str(path), "--json"]) == 0
    said = capsys.readouterr()
    assert "left out, being no weights: global_step, optimizer_states" in said.err
    facts = json.loads(said.out)
    assert (facts["tensors"], facts["parameters"]) == (5, 12 + 12 + 4 + 1 + 12)
    found = safetensors.load(facts["path"])
    assert facts["path"] == str(tmp_path / "model.safetensors") and found.keys() == state.keys()
    assert all(torch.equal(found[name], one) and found[name].dtype == one.dtype for name, one in state.items())
    assert refused(tmp_path, path).endswith("choose another name, or --force to write over it")


def test_a_checkpoint_that_runs_code_is_refused_in_one_line_and_runs_nothing(tmp_path, capsys):
    torch.save({"state_dict": {"a": torch.zeros(2), "b": Attack(tmp_path / "canary")}}, tmp_path / "model.ckpt")
    assert main(["weights", "convert", str(tmp_path / "model.ckpt")]) == 2
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1
    assert "posix.system, which is code and not numbers" in said.err and "weights_only=False" not in said.err
    assert os.listdir(tmp_path) == ["model.ckpt"]


def test_a_small_file_that_unfolds_without_end_meets_the_limit_of_memory(tmp_path):
    torch.save({"a": torch.zeros(1).expand(10**11)}, tmp_path / "bomb.pt")
    assert "more memory than" in refused(tmp_path, tmp_path / "bomb.pt")


def test_a_reading_that_takes_too_long_meets_the_limit_of_time(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "slow.pt")  # importing torch alone takes longer than a second
    with pytest.raises(CartoucheError, match="more than 1 s of processor time"):
        convert.convert(tmp_path / "slow.pt", seconds=1)
    assert os.listdir(tmp_path) == ["slow.pt"]


# what is refused before any process is started


def test_places_that_cannot_be_are_refused_before_anything_is_read(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pt")
    (tmp_path / "folder").mkdir()
    assert "no checkpoint at" in refused(tmp_path, tmp_path / "absent.ckpt")
    assert "is a folder" in refused(tmp_path, tmp_path / "a.pt", tmp_path / "folder")


@pytest.mark.parametrize(("version", "said"), [("2.9.1", "run code even with weights_only"), (None, "needs torch")])
def test_a_torch_that_can_be_got_round_or_none_is_refused(tmp_path, monkeypatch, version, said):
    def told(_: str) -> str:
        if version is None:
            raise convert.importlib.metadata.PackageNotFoundError
        return version

    (tmp_path / "a.pt").write_bytes(b"PK")
    monkeypatch.setattr(convert.importlib.metadata, "version", told)
    assert said in refused(tmp_path, tmp_path / "a.pt")


@pytest.mark.parametrize("version", ["2.10.0", "2.13.0+cpu", "3.0.0a1"])
def test_newer_torches_are_taken(monkeypatch, version):
    monkeypatch.setattr(convert.importlib.metadata, "version", lambda _: version)
    convert.check_torch()


# which tensors are the weights


A, B = torch.zeros(2), torch.ones(3)


@pytest.mark.parametrize(
    ("loaded", "kept", "left"),
    [
        ({"a": A, "b": B}, {"a": A, "b": B}, []),
        ({"state_dict": {"a": A}, "epoch": 3}, {"a": A}, ["epoch"]),
        ({"model": {"a": A, "n": 5}, "ema": {"a": B}}, {"a": A}, ["ema", "n"]),
        ({"params_ema": {"a": A}, "params": {"a": B}}, {"a": A}, ["params"]),
        ({"string_to_param": {"*": A}, "name": "cat", "string_to_token": {"*": 265}}, {"emb_params": A}, None),
        ({3: A, "a": B, "__class__.x": A}, {"a": B, "__class__.x": A}, ["3"]),
    ],
)
def test_weights_are_found_where_training_programs_keep_them(loaded, kept, left):
    found, others = unpickle.weights_of(loaded)
    assert found.keys() == kept.keys() and all(found[name] is one for name, one in kept.items())
    assert left is None or others == left


@pytest.mark.parametrize("loaded", [A, [A], {}, {"a": 1}, {"state_dict": {}}, {"string_to_param": {"*": A, "+": B}}])
def test_what_holds_no_named_tensors_is_refused(loaded):
    with pytest.raises(CartoucheError, match="it holds"):
        unpickle.weights_of(loaded)


def test_torchs_advice_to_trust_the_file_is_not_passed_on():
    torch_says = (
        "Weights only load failed. ... set `weights_only=False` if you trust. Unsupported global: GLOBAL a.b was"
    )
    assert unpickle.reason(RuntimeError(torch_says)) == "it holds a.b, which is code and not numbers"
    assert unpickle.reason(ValueError("set weights_only=False\nplease")).endswith("numbers alone (ValueError)")


# what the reading process may do


TRIES = {
    "socket.__new__": "import socket; socket.socket()",
    "os.system": "import os; os.system('true')",
    "subprocess.Popen": "import subprocess; subprocess.run(['true'])",
    "os.fork": "import os; os.fork()",
    "pickle.find_class": "import pickle; pickle.loads(b'cos\\nsystem\\n.')",
    "open": "open('made', 'w')",
    "sqlite3.connect": "import sqlite3; sqlite3.connect('made')",
    "import": "import wave",
    "os.remove": "import os; os.remove('kept')",
    "os.rename": "import os; os.rename('kept', 'made')",
    "ctypes.dlopen": "import ctypes; ctypes.CDLL('libc.so.6')",
}


@pytest.mark.parametrize("event", TRIES)
def test_the_reading_process_ends_at_the_first_thing_it_may_not_do(tmp_path, event):
    (tmp_path / "kept").touch()
    code = (
        "import ctypes, os, socket, sqlite3, subprocess, sys\n"
        "from cartouche.weights.unpickle import forbid; sys.addaudithook(forbid)\n"
        f"try:\n    {TRIES[event]}\nexcept BaseException:\n    pass\nprint('alive')"
    )
    command = [sys.executable, "-B", "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (unpickle.REFUSED, "")
    assert f"it tried {event}" in done.stderr
    assert os.listdir(tmp_path) == ["kept"]


def alone(code: str) -> str:
    """What Python code prints in a process of its own."""
    command = [sys.executable, "-c", code]
    environment = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_reading_process_reaches_no_network():
    may = "import ctypes; print(ctypes.CDLL(None).unshare(0x50000000))"  # a user and a network of its own
    if sys.platform != "linux" or alone(may) != "0":
        pytest.skip("this system lets no process leave its network")
    code = "import socket; from cartouche.weights.unpickle import give_up_network; give_up_network()\n"
    assert alone(code + "print([name for _, name in socket.if_nameindex()])") == "['lo']"


def test_the_reading_process_takes_no_more_than_it_may():
    code = (
        "import resource; from cartouche.weights.unpickle import limit\n"
        "for name, value in (('RLIMIT_AS', 2 << 30), ('RLIMIT_CPU', 9), ('RLIMIT_FSIZE', 1000)):\n"
        "    limit(name, value); assert resource.getrlimit(getattr(resource, name)) == (value, value)\n"
        "limit('RLIMIT_CPU', 1 << 40); assert resource.getrlimit(resource.RLIMIT_CPU)[1] == 9; print('held')"
    )
    assert alone(code) == "held"
