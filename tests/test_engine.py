"""The engines: one face, one result; the compile cache; nothing said over the network."""

import gc
import os
import shutil
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from cartouche import engine
from cartouche.config import CartoucheError
from cartouche.engine import CompileCache, OpenVINONet, TorchNet
from cartouche.weights import folder as folders
from cartouche.weights import safetensors

GRAPHS = ("text_encoder/graph.onnx", "unet/graph.onnx", "vae/decoder.onnx", "vae/encoder.onnx")
FP32 = 1e-4
BF16 = 0.06  # of the largest number: eight bits through a dozen layers


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return CompileCache(tmp_path_factory.mktemp("cache") / "compiled")


@pytest.fixture(scope="module")
def arrays():
    """Inputs of each graph, two rows each."""
    random = np.random.default_rng(0)

    def normal(*shape):
        return random.standard_normal(shape, np.float32)

    states = normal(2, 16, 32)
    return {
        "text_encoder/graph.onnx": ("forward", {"ids": random.integers(0, 500, (2, 16))}),
        "unet/graph.onnx": (
            "forward",
            {"sample": normal(2, 4, 8, 12), "timestep": np.float32([998, 3]), "encoder_hidden_states": states},
        ),
        "vae/decoder.onnx": ("decode", {"z": normal(2, 4, 6, 9)}),
        "vae/encoder.onnx": ("encode", {"x": normal(2, 3, 16, 24)}),
    }


def torch_net(model, graph, call, precision="fp32"):
    return TorchNet(folders.load_net((model / graph).parent), precision, call)


def tuples(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)


@pytest.mark.parametrize("graph", GRAPHS)
def test_both_engines_compute_the_same_in_fp32_and_nearly_the_same_in_bf16(tiny_model, arrays, cache, graph):
    call, inputs = arrays[graph]
    expected = tuples(torch_net(tiny_model, graph, call)(**inputs))
    for precision, tolerance in (("fp32", FP32), ("bf16", BF16)):
        found = tuples(OpenVINONet(tiny_model / graph, precision, cache)(**inputs))
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.dtype == np.float32 and ours.shape == theirs.shape
            assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


def test_torch_computes_nearly_the_same_in_bf16(tiny_model, arrays):
    call, inputs = arrays["unet/graph.onnx"]
    exact, short = (torch_net(tiny_model, "unet/graph.onnx", call, kind)(**inputs) for kind in ("fp32", "bf16"))
    assert 0 < np.abs(short - exact).max() <= BF16 * np.abs(exact).max()


@pytest.mark.parametrize(("rows", "height", "width"), [(1, 4, 4), (3, 6, 10), (8, 8, 8)])
def test_one_graph_serves_every_batch_and_size(tiny_model, cache, rows, height, width):
    random = np.random.default_rng(1)
    inputs = {
        "sample": random.standard_normal((rows, 4, height, width), np.float32),
        "timestep": np.full(rows, 500, np.float32),
        "encoder_hidden_states": random.standard_normal((rows, 16, 32), np.float32),
    }
    ours = OpenVINONet(tiny_model / "unet/graph.onnx", "fp32", cache)(**inputs)
    theirs = torch_net(tiny_model, "unet/graph.onnx", "forward")(**inputs)
    np.testing.assert_allclose(ours, theirs, atol=FP32 * np.abs(theirs).max())


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_bf16_does_not_round_the_time_step(tiny_model, arrays, cache, engine):
    """Eight bits would take every step from 996 to 1000 for one of three numbers."""
    _, inputs = arrays["unet/graph.onnx"]

    def net(precision):
        if engine == "torch":
            return torch_net(tiny_model, "unet/graph.onnx", "forward", precision)
        return OpenVINONet(tiny_model / "unet/graph.onnx", precision, cache)

    for t in (997, 998, 999):
        rows = {**inputs, "timestep": np.float32([t, t])}
        before = {**inputs, "timestep": np.float32([t - 1, t - 1])}
        moved = net("bf16")(**rows) - net("bf16")(**before)
        expected = net("fp32")(**rows) - net("fp32")(**before)
        assert np.corrcoef(moved.ravel(), expected.ravel())[0, 1] > 0.5


def test_the_same_call_gives_the_same_bits_again(tiny_model, arrays, cache):
    _, inputs = arrays["unet/graph.onnx"]
    for precision in ("fp32", "bf16"):
        net = OpenVINONet(tiny_model / "unet/graph.onnx", precision, cache)
        assert (net(**inputs) == net(**inputs)).all()


def test_threads_may_share_a_net(tiny_model, arrays, cache):
    _, inputs = arrays["vae/decoder.onnx"]
    net = OpenVINONet(tiny_model / "vae/decoder.onnx", "fp32", cache)
    expected = [net(z=inputs["z"] * k) for k in range(4)]
    found: dict[int, np.ndarray] = {}
    threads = [threading.Thread(target=lambda k=k: found.update({k: net(z=inputs["z"] * k)})) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((found[k] == expected[k]).all() for k in range(4))


def test_what_cannot_run_is_said_in_one_line(tiny_model, arrays, cache, tmp_path):
    with pytest.raises(CartoucheError, match="cartouche weights export"):
        OpenVINONet(tmp_path / "graph.onnx")
    with pytest.raises(CartoucheError, match="unknown precision 'fp16'"):
        OpenVINONet(tiny_model / "vae/decoder.onnx", "fp16", cache)
    _, inputs = arrays["vae/decoder.onnx"]
    for net in (OpenVINONet(tiny_model / "vae/decoder.onnx", "fp32", cache), torch_net(tiny_model, "vae/x", "decode")):
        with pytest.raises(CartoucheError, match="got latents; it takes z"):
            net(latents=inputs["z"])
    with pytest.raises(CartoucheError, match="cannot run on z") as caught:
        OpenVINONet(tiny_model / "vae/decoder.onnx", "fp32", cache)(z=inputs["z"][:, :3])
    assert "\n" not in str(caught.value)


def test_a_graph_without_its_weights_is_refused(tiny_model, cache, tmp_path):
    (tmp_path / "decoder.onnx").write_bytes((tiny_model / "vae/decoder.onnx").read_bytes())
    with pytest.raises(CartoucheError, match="does not belong to the weights beside it"):
        OpenVINONet(tmp_path / "decoder.onnx", "fp32", cache)


def test_a_graph_whose_weights_have_moved_in_their_file_is_refused(tiny_model, cache, tmp_path):
    graph = copied(tiny_model, tmp_path)
    weights = graph.with_name("diffusion_pytorch_model.safetensors")
    safetensors.save(weights, safetensors.load(weights), {"another": "header"})
    with pytest.raises(CartoucheError, match="cartouche weights export"):
        OpenVINONet(graph, "fp32", cache)


NAMED = b"\x08location\x12\x23diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (b"\x08location\x12\x23../fusion_pytorch_model.safetensors", r"'\.\./fusion"),
        (b"\x08location\x12\x23/etc/ssl/certs/pytorch/ca-cert.0000", "'/etc/ssl"),
        (b"\x88\x00location\x12\x22../usion_pytorch_model.safetensors", r"'\.\./usion"),
        (b"\x08location\x1a\x23diffusion_pytorch_model.safetensors", "unusual entry"),
    ],
)
def test_a_graph_takes_numbers_only_from_a_file_beside_it(tiny_model, cache, tmp_path, entry, said):
    graph = copied(tiny_model, tmp_path / "model")
    content = graph.read_bytes()
    assert NAMED in content
    graph.write_bytes(content.replace(NAMED, entry))
    with pytest.raises(CartoucheError, match=f"{said}.*wanted a file beside it"):
        OpenVINONet(graph, "fp32", cache)


def test_a_file_that_is_no_graph_is_refused(cache, tmp_path):
    (tmp_path / "decoder.onnx").write_bytes(b"no graph")
    with pytest.raises(CartoucheError, match="is not an ONNX graph"):
        OpenVINONet(tmp_path / "decoder.onnx", "fp32", cache)


# the cache


def copied(tiny_model, folder):
    """A graph of its own with its weights."""
    folder.mkdir(exist_ok=True)
    for name in ("decoder.onnx", "diffusion_pytorch_model.safetensors"):
        (folder / name).write_bytes((tiny_model / "vae" / name).read_bytes())
    return folder / "decoder.onnx"


def test_the_second_opening_comes_from_the_cache_with_the_same_bits(tiny_model, arrays, tmp_path):
    z = arrays["vae/decoder.onnx"][1]["z"]
    cache = CompileCache(tmp_path / "cache")
    first = OpenVINONet(tiny_model / "vae/decoder.onnx", "bf16", cache)(z=z)
    (stored,) = cache.folder.iterdir()
    kept = stored.read_bytes()
    os.utime(stored, (1, 1))
    assert (OpenVINONet(tiny_model / "vae/decoder.onnx", "bf16", cache)(z=z) == first).all()
    assert stored.read_bytes() == kept and stored.stat().st_mtime > 1  # used, and marked as used


def test_other_weights_or_another_precision_are_another_entry(tiny_model, arrays, tmp_path):
    z = arrays["vae/decoder.onnx"][1]["z"]
    cache, graph = CompileCache(tmp_path / "cache"), copied(tiny_model, tmp_path / "model")
    first = OpenVINONet(graph, "fp32", cache)(z=z)
    OpenVINONet(graph, "bf16", cache)
    weights = graph.with_name("diffusion_pytorch_model.safetensors")
    state, data = weights.stat(), bytearray(weights.read_bytes())
    data[-4000:] = bytes(4000)
    weights.write_bytes(data)
    os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert not (OpenVINONet(graph, "fp32", cache)(z=z) == first).all()
    assert len(list(cache.folder.iterdir())) == 3


@pytest.mark.parametrize("damage", [b"", b"abc", b"\0" * 10_000])
def test_a_damaged_entry_is_compiled_anew(tiny_model, arrays, tmp_path, damage):
    z = arrays["vae/decoder.onnx"][1]["z"]
    cache = CompileCache(tmp_path / "cache")
    first = OpenVINONet(tiny_model / "vae/decoder.onnx", "fp32", cache)(z=z)
    (stored,) = cache.folder.iterdir()
    stored.write_bytes(damage)
    assert (OpenVINONet(tiny_model / "vae/decoder.onnx", "fp32", cache)(z=z) == first).all()
    assert cache.read(stored.name) is not None  # whole again; how long it is changes from one compilation to the next


def test_an_entry_of_another_build_is_compiled_anew(tiny_model, arrays, tmp_path):
    """The check sum holds, but openvino does not know the content."""
    z = arrays["vae/decoder.onnx"][1]["z"]
    cache = CompileCache(tmp_path / "cache")
    first = OpenVINONet(tiny_model / "vae/decoder.onnx", "fp32", cache)(z=z)
    (stored,) = cache.folder.iterdir()
    cache.write(stored.name, b"not a model" * 100)
    assert (OpenVINONet(tiny_model / "vae/decoder.onnx", "fp32", cache)(z=z) == first).all()


def test_a_cache_that_cannot_be_written_is_no_error(tiny_model, arrays, tmp_path):
    z = arrays["vae/decoder.onnx"][1]["z"]
    (tmp_path / "file").write_text("in the way")
    assert OpenVINONet(tiny_model / "vae/decoder.onnx", "fp32", CompileCache(tmp_path / "file" / "cache"))(z=z).any()


def test_the_cache_drops_the_least_recently_used_and_never_exceeds_its_limit(tmp_path):
    cache = CompileCache(tmp_path, limit=3 * 104)
    for age, key in enumerate("abc"):
        cache.write(key, bytes(100))
        os.utime(tmp_path / key, (age, age))
    assert cache.read("a") is not None  # used: now the youngest
    cache.write("d", bytes(100))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c", "d"]
    cache.write("huge", bytes(1000))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c", "d"]
    (tmp_path / "e.123.tmp").write_bytes(bytes(300))  # of a killed process
    cache.prune()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= cache.limit


def test_the_cache_lies_where_the_system_wants_it(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert CompileCache.default().folder.is_relative_to(tmp_path / "cartouche")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert CompileCache.default().folder.is_relative_to(tmp_path / "home" / ".cache" / "cartouche")


def test_without_a_home_nothing_is_cached_and_nothing_fails(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    cache = CompileCache.default()
    cache.write("x", b"abc")
    assert cache.read("x") is None and not Path("~").exists()


# what else it must not do


def test_openvino_is_opened_without_its_telemetry_and_without_torch(tiny_model, tmp_path):
    code = f"""
import socket, sys
def refuse(*a, **k): raise SystemExit("a socket was opened")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from cartouche.engine import OpenVINONet
assert not {{"openvino", "torch"}} & set(sys.modules)
OpenVINONet({str(tiny_model / "vae/decoder.onnx")!r})
assert "torch" not in sys.modules
assert not [name for name in sys.modules if "telemetry" in name]
"""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_the_core_outlives_its_nets_for_signals_are_handled_on_its_stack(tiny_model, cache):
    core = weakref.ref(engine.openvino_core())
    net = OpenVINONet(tiny_model / "text_encoder/graph.onnx", "fp32", cache)
    del net
    gc.collect()
    assert core() is engine.openvino_core()


class Halved(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(self.conv(x)) / 2


LOUD = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # torch's compiler itself


@LOUD
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler here")
def test_a_compiled_net_computes_the_same():
    net, x = Halved(), np.linspace(-1, 1, 144, dtype=np.float32).reshape(2, 2, 6, 6)
    compiled = TorchNet(net, "fp32", compiled=True)
    np.testing.assert_allclose(compiled(x=x), TorchNet(net, "fp32")(x=x), atol=1e-6)
    assert compiled(x=x[:1]).shape == (1, 3, 4, 4)


@LOUD
def test_without_a_compiler_a_compiled_net_says_what_to_do():
    import torch._inductor.config as inductor

    gone = inductor.patch({"cpp.cxx": (None, "/no/such/compiler"), "fx_graph_cache": False})
    with gone, pytest.raises(CartoucheError, match="install a C\\+\\+ compiler or use engine=torch"):
        TorchNet(Halved(), "fp32", compiled=True)(x=np.zeros((1, 2, 9, 9), np.float32))
