"""`cartouche doctor` tells what is here and never fails, whatever is missing."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cartouche import device, doctor, engine
from cartouche.cli import main
from cartouche.draw.model import Model
from cartouche.weights import builtin

NAMES = ["python", "processor", "threads", "memory", "gpu", "torch", "openvino", "disk", "model", "draws"]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Another machine: its /proc and /sys are empty folders, to be filled."""
    monkeypatch.setattr(device, "PROC", tmp_path / "proc")
    monkeypatch.setattr(device, "SYS", tmp_path / "sys")
    cached = (device.processor_flags, device.processor_share)
    for one in cached:
        one.cache_clear()
    yield tmp_path
    for one in cached:
        one.cache_clear()


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A model's folder with neither graphs nor weights: enough to say what would draw it."""
    left_out = shutil.ignore_patterns("*.onnx", "*.safetensors")
    return Path(shutil.copytree(builtin.builtin(), tmp_path / "model", ignore=left_out))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def found(model: Path | None = None) -> dict[str, doctor.Finding]:
    return {one.name: one for one in doctor.examine(model)}


def without(name: str) -> Any:
    def raises(*_: object) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    return raises


# what it says


def test_the_screen_says_everything_once_and_is_one_screen(capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    starts = [line.split()[0] for line in lines if line and not line.startswith(" ")]
    assert starts[: len(NAMES)] == NAMES
    assert len(lines) <= 30 and max(map(len, lines)) <= 120


def test_as_json_each_finding_is_a_line_with_its_facts(capsys):
    assert main(["doctor", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["name"] for line in lines] == NAMES and all(line["facts"] for line in lines)


def test_what_it_says_will_draw_is_what_draws():
    facts = found()["draws"].facts
    from cartouche.draw.paint import Painter

    painter = Painter()
    assert (facts["engine"], facts["precision"]) == (painter.engine, painter.net("unet").precision)


def test_a_model_without_graphs_is_drawn_by_torch_and_the_command_that_helps_is_named(bare):
    said = found(bare)["draws"]
    assert said.facts["engine"] == "torch" and f"cartouche weights export {bare}" in str(said.advice)


def test_a_model_with_graphs_that_torch_draws_is_said_to_be_drawn_so_for_the_gpu(monkeypatch):
    monkeypatch.setattr(Model, "_engine", lambda self, engine: "torch")
    said = found()["draws"]
    assert said.text.endswith("there is a GPU") and said.advice is None


def test_the_built_in_model_is_whole_and_every_file_of_it_is_sealed(tmp_path):
    folder = builtin.builtin()
    assert builtin.damaged(folder) == []
    sealed = {line.split("  ")[1] for line in (folder / builtin.SUMS).read_text().splitlines()}
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert sealed == there - {builtin.SUMS}


def test_a_damaged_or_missing_file_of_the_built_in_model_is_named(tmp_path, monkeypatch):
    for name in ("model_index.json", "unet/config.json", "vae/config.json"):
        write(tmp_path / name, "{}")
    builtin.seal(tmp_path)
    assert builtin.damaged(tmp_path) == []
    write(tmp_path / "unet" / "config.json", "{ }")
    (tmp_path / "vae" / "config.json").unlink()
    monkeypatch.setattr(doctor.builtin, "builtin", lambda: tmp_path)
    said = found()["model"]
    assert said.facts["damaged"] == ["unet/config.json", "vae/config.json"]
    assert "reinstall" in str(said.advice)


# whatever is missing


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("error", [OSError("broken"), RuntimeError("two\nlines"), ImportError(), KeyError("x")])
def test_a_probe_that_fails_says_so_in_its_line_and_the_others_go_on(monkeypatch, name, error):
    def fails(_: object) -> doctor.Finding:
        raise error

    quick = {one: (lambda _, one=one: doctor.Finding(one, "well")) for one in NAMES}
    monkeypatch.setattr(doctor, "PROBES", quick | {name: fails})
    findings = doctor.examine()
    assert [one.name for one in findings] == NAMES
    assert {one.name for one in findings if one.text.startswith("unknown: ")} == {name}
    assert all("\n" not in one.text for one in findings)


def test_without_proc_and_sys_every_line_is_still_there(machine, capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "features not told" in out and "unknown" not in out


def test_without_torch_drawing_goes_on_and_a_model_without_graphs_says_what_to_install(monkeypatch, bare):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(doctor, "_installed", lambda package: package != "torch")
    said = found()
    assert said["torch"].text.startswith("absent") and said["draws"].facts["engine"] == "openvino"
    assert not any(one.text.startswith("unknown") for one in said.values())
    assert found(bare)["draws"].advice == "pip install 'cartouche-ai[torch]'"


def test_without_openvino_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(engine, "openvino_has_bf16", without("openvino"))
    said = found()
    assert said["openvino"].advice == "pip install openvino" == said["draws"].advice


def test_a_model_that_cannot_be_opened_is_said_not_to_be(tmp_path):
    (tmp_path / "model_index.json").write_text("[" * 100_000)
    assert found(tmp_path)["draws"].text.startswith("unknown: ")
    assert found(tmp_path / "absent")["draws"].text.startswith("unknown: model folder")


def test_a_cache_that_cannot_be_written_is_told(monkeypatch):
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert "XDG_CACHE_HOME" in str(found()["disk"].advice)


# machines


CPUINFO = "processor\t: 0\nmodel name\t: Some Processor\nflags\t\t: fpu avx2 avx512_bf16 amx_int8\n\nprocessor\t: 1\n"


def test_the_processor_is_named_with_what_matters_of_its_features(machine):
    write(machine / "proc" / "cpuinfo", CPUINFO)
    said = found()["processor"]
    assert said.text == "Some Processor; avx2 avx512_bf16 amx_int8" and said.facts["bf16"]


def test_cores_are_counted_once_however_many_threads_they_run(machine):
    for cpu, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        write(machine / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", siblings)
    assert device.cores() == 2


@pytest.mark.parametrize(
    ("group", "files"),
    [
        ("0::/box", {"box/memory.max": "1073741824", "box/cpu.max": "150000 100000", "memory.max": "max"}),
        ("0::/", {"memory.max": "1073741824", "cpu.max": "50000 100000"}),
        ("4:memory:/box\n1:cpu,cpuacct:/box", {"memory/box/memory.limit_in_bytes": "1073741824"}),
    ],
)
def test_a_containers_limits_hold(machine, group, files):
    write(machine / "proc" / "self" / "cgroup", f"{group}\n")
    write(machine / "proc" / "meminfo", "MemTotal:  8388608 kB\nMemFree: 1 kB\nMemAvailable: 4194304 kB\n")
    for name, text in files.items():
        write(machine / "sys" / "fs" / "cgroup" / name, f"{text}\n")
    assert device.memory() == (8 << 30, 4 << 30, 1 << 30)
    assert "1.0 GB allowed here" in found()["memory"].text
    share = device.processor_share()
    assert share == (None if "cpu,cpuacct" in group else 2 if "box" in group else 1)
    assert device.processors() <= (share or 1_000_000)


def test_no_limit_is_no_limit(machine):
    write(machine / "proc" / "self" / "cgroup", "4:memory:/\n1:cpu:/\n")
    write(machine / "proc" / "meminfo", "MemTotal:  8388608 kB\n")
    write(machine / "sys/fs/cgroup/memory/memory.limit_in_bytes", str(2**63 - 4096))
    write(machine / "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1")
    write(machine / "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000")
    assert device.memory() == (8 << 30, None, None) and device.processor_share() is None
    assert device.processors() >= 1


def test_a_gpu_that_only_the_driver_knows_is_named_and_what_it_lacks(machine, monkeypatch):
    write(machine / "proc/driver/nvidia/gpus/0000:01:00.0/information", "Model: \t Some Card\nIRQ: 5\n")
    monkeypatch.setattr(doctor, "_installed", lambda _: False)
    said = found()["gpu"]
    assert said.text.startswith("Some Card, which torch cannot use") and "CUDA" in str(said.advice)


def test_a_gpu_that_torch_can_use_is_named_with_its_memory_and_the_command_that_uses_it(machine, monkeypatch):
    import torch

    card = SimpleNamespace(name="Some Card", total_memory=48 << 30)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    said = found()["gpu"]
    assert said.text.startswith("Some Card, 48.0 GB") and "--engine torch" in str(said.advice)
