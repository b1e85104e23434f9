"""The reading nets as graphs: one command writes them all, and each computes what its net does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_readers import PIXELS, reading_model

from cartouche import images
from cartouche.engine import CompileCache, OpenVINONet, TorchNet
from cartouche.read.describe import Describer
from cartouche.read.locate import Locator
from cartouche.read.speech import Manner
from cartouche.weights import folder as folders
from cartouche.weights import graph

CALLS = {
    "clip": ("encode_image", "encode_text"),
    "detector": ("detect", "queries"),
    "segmenter": ("features", "queries", "segment"),
    "captioner": ("features", "embed", "step"),
}
EACH = [(part, call) for part, calls in CALLS.items() for call in calls]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reading_model(tmp_path_factory.mktemp("reads") / "model")


@pytest.fixture(scope="module")
def written(model: Path) -> list[Path]:
    return graph.export(model)


def arrays(part: str, call: str, rows: int, seen: int) -> dict[str, np.ndarray]:
    """Inputs of a method of the small nets."""
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, np.float32)

    if call in ("queries", "encode_text"):
        return {"ids": random.integers(1, 500, (rows, 16))}
    if call in ("features", "detect", "encode_image"):
        return {"pixels": normal(rows, 3, PIXELS, PIXELS)}
    if call == "segment":
        return {"features": normal(rows, 2, 17, 32), "queries": normal(rows, 24)}
    if call == "embed":
        return {"ids": random.integers(0, 500, (rows, 7))}
    return {"embeds": normal(rows, 4, 32), "keys": normal(2, rows, 2, seen, 8), "values": normal(2, rows, 2, seen, 8)}


def tuples(outputs: Any) -> tuple[np.ndarray, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def test_one_command_writes_every_graph(model: Path, written: list[Path]) -> None:
    assert sorted(written) == sorted(model / part / f"{call}.onnx" for part, call in EACH)
    assert all(path.stat().st_size < 300_000 for path in written)


@pytest.mark.parametrize(("part", "call"), EACH)
@pytest.mark.usefixtures("written")
def test_a_graph_computes_what_its_net_does(model: Path, tmp_path: Path, part: str, call: str) -> None:
    cache = CompileCache(tmp_path)
    stored = OpenVINONet(model / part / f"{call}.onnx", "fp32", cache)
    torch_net = TorchNet(folders.load_net(model / part), "fp32", call)
    for rows, seen in ((1, 0), (3, 6)):
        given = arrays(part, call, rows, seen)
        ours, theirs = stored(**given), torch_net(**given)
        for one, other in zip(tuples(ours), tuples(theirs), strict=True):
            assert one.shape == other.shape
            np.testing.assert_allclose(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("written")
def test_reading_by_graphs_and_by_torch_is_the_same(model: Path) -> None:
    pictures = images.from_uint8(np.random.default_rng(0).integers(0, 256, (2, PIXELS, PIXELS, 3), np.uint8))
    said = [Describer(model, engine).caption(pictures, manner=Manner(longest=6)) for engine in ("openvino", "torch")]
    assert [one.text for one in said[0]] == [one.text for one in said[1]]
    found = [Locator(model, engine).find(pictures, ["cat", "dog"], 0.0)[0] for engine in ("openvino", "torch")]
    np.testing.assert_allclose([one.box for one in found[0]], [one.box for one in found[1]], atol=1e-2)


@pytest.mark.usefixtures("written")
def test_reading_by_graphs_imports_no_torch(model: Path) -> None:
    code = (
        "import sys, numpy as np; from cartouche.read.describe import Describer;"
        "from cartouche.read.locate import Locator;"
        f"x = np.zeros((1, 3, {PIXELS}, {PIXELS}), np.float32); Describer({str(model)!r}, 'openvino').scene(x);"
        f"Locator({str(model)!r}, 'openvino').find(x, ['cat'], 0.0); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
