"""How weights move: rates, averages and gradients by their closed forms, Muon by singular values and by torch's own."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from cartouche.nets.clip import CLIPTextConfig, CLIPTextModel
from cartouche.train import optim
from cartouche.train.drawing import Drawer
from cartouche.train.loop import TrainSettings

SMALL_TEXT = {
    "vocab_size": 30,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 6,
    "eos_token_id": 29,
}


def test_the_learning_rate_warms_up_linearly_and_falls_as_a_half_cosine():
    settings = TrainSettings(steps=110, warmup=10, learning_rate=1.0, decay="cosine", floor=0.1)
    rates = [optim.learning_rate(settings, step) for step in range(110)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55)  # half way between the peak and the floor
    assert rates[35] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert rates[109] == pytest.approx(0.1, abs=1e-3)
    assert rates[9:] == sorted(rates[9:], reverse=True)


def test_a_cooldown_falls_linearly_from_wherever_the_rate_is():
    settings = TrainSettings(steps=100, warmup=0, learning_rate=1.0, decay="constant", floor=0.0, cooldown=20)
    rates = [optim.learning_rate(settings, step) for step in range(100)]
    assert rates[:81] == [1.0] * 81
    assert rates[80:] == pytest.approx([(100 - step) / 20 for step in range(80, 100)])


def test_the_average_of_weights_has_its_closed_form():
    average, weights = nn.Linear(1, 1, bias=False).requires_grad_(False), nn.Linear(1, 1, bias=False)
    nn.init.zeros_(average.weight)
    nn.init.ones_(weights.weight)
    left = 1.0
    for step in range(50):
        decay = optim.ema_decay(0.8, step)
        assert decay == min(0.8, (1 + step) / (10 + step))
        optim.update_average(average, weights, decay)
        left *= decay
    assert float(average.weight) == pytest.approx(1 - left, rel=1e-5)


def test_buffers_of_the_average_are_those_of_the_net():
    one, two = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    two(torch.randn(8, 2) + 5)
    optim.update_average(one, two, 0.9)
    assert torch.equal(one.running_mean, two.running_mean)  # type: ignore[arg-type]


def test_only_matrices_decay():
    groups = optim.adamw(nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 5)), 0.1, (0.9, 0.99), 0.5).param_groups
    assert [(one["weight_decay"], {p.ndim for p in one["params"]}) for one in groups] == [(0.5, {2}), (0.0, {1})]


def test_a_long_gradient_is_cut_to_length_and_a_short_one_is_not():
    layer = nn.Linear(3, 1, bias=False)
    for length, most, wanted in [(10.0, 2.0, 2.0), (1.0, 2.0, 1.0), (10.0, 0.0, 10.0)]:
        layer.weight.grad = torch.tensor([[0.6, 0.0, 0.8]]) * length
        assert optim.clip_gradient(layer, most) == pytest.approx(length)
        assert float(layer.weight.grad.norm()) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (16, 16), (1, 9), (256, 256), (64, 600)])
def test_an_orthogonalised_matrix_keeps_its_directions_and_evens_out_their_lengths(monkeypatch, shape):
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    given = left @ torch.diag(torch.logspace(0, -2, min(shape))) @ right
    for native in (False, True):  # in float32 the directions are kept exactly; bfloat16's rounding turns them a little
        monkeypatch.setattr(optim, "has_bf16", lambda device, native=native: native)
        made = left.T @ optim.orthogonal(given) @ right.T
        assert ((made.diagonal() > 0.6) & (made.diagonal() < 1.25)).all()
        assert native or (made - torch.diag(made.diagonal())).abs().max() < 1e-3


def test_muon_moves_a_matrix_as_torchs_own_does():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(24, 12, bias=False), nn.Linear(24, 12, bias=False)
    theirs.load_state_dict(ours.state_dict())
    mine = optim.Muon(ours, 0.02, (0.9, 0.99), 0.1)
    reference = torch.optim.Muon(theirs.parameters(), lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    start = ours.weight.detach().clone()
    for _ in range(5):
        gradient = torch.randn(12, 24)
        ours.weight.grad, theirs.weight.grad = gradient, gradient.clone()
        mine.step()
        reference.step()
    moved = (theirs.weight - start).norm()
    assert (ours.weight - theirs.weight).norm() < 0.02 * moved  # the other rounds to bfloat16


def test_kernels_move_as_matrices_and_the_rest_as_adamw_moves_it():
    torch.manual_seed(0)
    net = nn.ModuleDict({"kernel": nn.Conv2d(3, 4, 3), "table": nn.Embedding(5, 2), "still": nn.Linear(2, 2)})
    net["still"].requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = optim.Muon(net, 0.1, (0.9, 0.99), 0.0)
    loss = net["kernel"](torch.randn(2, 3, 5, 5)).square().sum() + net["table"](torch.tensor([1])).sum()
    loss.backward()
    optimizer.step()
    moves = {name: value - before[name] for name, value in net.state_dict().items()}
    lengths = torch.linalg.svdvals(moves["kernel.weight"].flatten(1)) / (0.1 * 0.2 * math.sqrt(27))
    assert lengths.min() > 0.6 and lengths.max() < 1.25
    assert moves["kernel.bias"].abs() == pytest.approx(0.1, rel=1e-3)  # AdamW's first step is the sign of the gradient
    assert [bool(row.any()) for row in moves["table.weight"]] == [False, True, False, False, False]
    assert not moves["still.weight"].any()


@pytest.mark.parametrize("kind", [optim.adamw, optim.Muon])
def test_a_part_may_learn_at_a_rate_of_its_own_and_at_none(kind):
    text = CLIPTextModel(CLIPTextConfig(**SMALL_TEXT))
    unet = nn.Linear(4, 4)
    for rate, moved in [(0.25, True), (0.0, False)]:
        drawer = Drawer(copy.deepcopy(unet), copy.deepcopy(text), rate)  # type: ignore[arg-type]
        optimizer = kind(drawer, 1e-3, (0.9, 0.95), 0.0)
        optim.set_rate(optimizer, 8e-3)
        rates = {id(one): group["lr"] for group in optimizer.param_groups for one in group["params"]}
        assert {rates[id(one)] for one in drawer.unet.parameters()} == {8e-3}
        assert {rates.get(id(one)) for one in drawer.text_encoder.parameters()} == ({2e-3} if moved else {None})
