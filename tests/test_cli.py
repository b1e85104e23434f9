"""The command, run as a person runs it: in a process of its own, on a tiny random model."""

import json
import os
import pty
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cartouche import images
from cartouche.cli import draw as cli_draw
from cartouche.cli import main
from cartouche.cli.draw import difference
from cartouche.config import CartoucheError

ROOT = Path(__file__).parents[1]
PROMPT = "a red apple on a blue background"
FEW = ("--steps", "3", "--seed", "7")


def command(*arguments, **options):
    """`python -m cartouche ...`; stdin is empty."""
    return subprocess.run(
        [sys.executable, "-m", "cartouche", *map(str, arguments)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
        **options,
    )


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    """Every test in an empty folder of its own, the package still found."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def draw(tiny_model, capsys):
    """`cartouche draw` in this process: (exit code, stdout, stderr)."""

    def run(*arguments, prompt=PROMPT):
        code = main(["draw", prompt, "--model", str(tiny_model), *FEW, *map(str, arguments)])
        return (code, *capsys.readouterr())

    return run


# the whole way, in processes


def test_a_person_draws_and_draws_again_and_no_torch_is_touched(tiny_model, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('torch was imported')")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ['PYTHONPATH']}"}
    drawn = command("draw", PROMPT, "--model", tiny_model, *FEW, env=environment)
    assert (drawn.stdout, drawn.stderr, drawn.returncode) == ("a-red-apple-on-a-blue-background-7.png\n", "", 0)
    again = command("redraw", drawn.stdout.strip(), "--model", tiny_model, env=environment)
    assert again.stdout == "a-red-apple-on-a-blue-background-7.png: the same pixels\n"
    assert again.returncode == 0


def processor_seconds():
    """Of all finished children: unlike the clock, it does not count what else the machine is doing."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_answers_at_once():
    best = 9.0
    for _ in range(3):
        before = processor_seconds()
        done = command("--help")
        best = min(best, processor_seconds() - before)
    assert "draw" in done.stdout
    assert best < 0.4, f"{best:.2f} s of processor time"


def test_without_arguments_it_says_what_it_can_do():
    done = command()
    assert (done.returncode, done.stderr) == (0, "")
    assert "redraw" in done.stdout
    assert command("--version").stdout.startswith("cartouche 0.")


def test_the_bar_is_for_terminals_and_previews_for_those_with_colours(tiny_model):
    def seen(**more):
        leader, follower = pty.openpty()
        environment = {**os.environ, "TERM": "xterm-256color", **more}
        arguments = [sys.executable, "-m", "cartouche", "draw", PROMPT, "--model", str(tiny_model), *FEW, "--force"]
        child = subprocess.Popen(arguments, stderr=follower, stdout=subprocess.PIPE, env=environment, text=True)
        os.close(follower)
        shown = b""
        while True:
            try:
                piece = os.read(leader, 65536)
            except OSError:
                break
            if not piece:
                break
            shown += piece
        os.close(leader)
        out, _ = child.communicate()
        return shown.decode(), out, child.returncode

    plain, out, code = seen()
    assert (out, code) == ("a-red-apple-on-a-blue-background-7.png\n", 0)
    assert "drawing" in plain
    assert "▀" not in plain
    assert "▀" in seen(COLORTERM="truecolor")[0]
    assert "▀" not in seen(COLORTERM="truecolor", NO_COLOR="1")[0]


def test_ctrl_c_leaves_nothing_behind(tiny_model, tmp_path):
    child = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "cartouche",
            "draw",
            PROMPT,
            "--model",
            str(tiny_model),
            "--steps",
            "1000",
            "--count",
            "50",
            "--json",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    assert json.loads(child.stdout.readline())["event"] == "step"
    child.send_signal(signal.SIGINT)
    _, error = child.communicate()
    assert child.returncode == 130
    assert "Traceback" not in error
    assert list(tmp_path.glob("*.png*")) == []


def test_a_listener_that_leaves_is_no_trouble(tiny_model):
    child = subprocess.Popen(
        [sys.executable, "-m", "cartouche", "draw", PROMPT, "--model", str(tiny_model), *FEW, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    child.stdout.close()
    error = child.stderr.read()
    child.stderr.close()
    assert child.wait() == 1
    assert error == ""


# drawing


def test_the_file_holds_the_picture_that_python_draws_too(draw, tiny_model):
    import cartouche

    assert draw("--out", "a.png")[0] == 0
    picture = cartouche.load(tiny_model).draw(PROMPT, seed=7, num_inference_steps=3)[0]
    assert (images.read_pixels("a.png") == picture.pixels).all()
    assert images.read_recipe("a.png") == picture.recipe.to_dict()


def test_every_option_reaches_the_recipe(draw):
    asked = "--negative grey --guidance 3.5 --steps 4 --sampler euler_a --seed 9 --size 24x16 --out a.png".split()
    assert draw(*asked)[0] == 0
    recipe = images.read_recipe("a.png")
    assert recipe["negative_prompt"] == "grey"
    assert recipe["guidance_scale"] == 3.5
    assert recipe["num_inference_steps"] == 4
    assert recipe["sampler"] == "euler_a"
    assert recipe["seed"] == 9
    assert (recipe["width"], recipe["height"]) == (24, 16)
    assert images.read_pixels("a.png").shape == (16, 24, 3)


def test_without_a_seed_one_is_chosen_and_told(tiny_model, capsys):
    seeds = set()
    for _ in range(2):
        assert main(["draw", PROMPT, "--model", str(tiny_model), "--steps", "1"]) == 0
        name = capsys.readouterr().out.strip()
        seeds.add(images.read_recipe(name)["seed"])
        assert name == f"a-red-apple-on-a-blue-background-{images.read_recipe(name)['seed']}.png"
    assert len(seeds) == 2


def test_many_pictures_are_numbered_and_each_is_what_it_would_be_alone(draw, tiny_model, capsys):
    code, out, _ = draw("--count", 3, "--out", "a.png")
    assert (code, out.split()) == (0, ["a-0.png", "a-1.png", "a-2.png"])
    assert len({images.read_pixels(name).tobytes() for name in out.split()}) == 3
    for name in out.split():
        assert main(["redraw", name, "--model", str(tiny_model)]) == 0
    assert capsys.readouterr().out.count("the same pixels") == 3


def test_a_grid_and_a_film_strip_come_along(draw):
    code, out, _ = draw("--count", 2, "--grid", "--film-strip", "1,3", "--out", "a.png")
    assert (code, out.split()) == (0, ["a-0.png", "a-1.png", "a-grid.png", "a-film.png"])
    first, second = images.read_pixels("a-0.png"), images.read_pixels("a-1.png")
    grid, film = images.read_pixels("a-grid.png"), images.read_pixels("a-film.png")
    assert (grid[:, :16] == first).all()
    assert (grid[:, 18:] == second).all()
    assert film.shape == (34, 34, 3)


def test_json_lines_tell_every_step_and_every_file(draw):
    code, out, _ = draw("--json", "--count", 2, "--grid", "--out", "a.png")
    events = lines(out)
    assert code == 0
    assert events[:3] == [{"event": "step", "step": i, "steps": 3} for i in (1, 2, 3)]
    assert events[3:5] == [{"event": "picture", "path": f"a-{i}.png", "seed": 7, "index": i} for i in (0, 1)]
    assert events[5:] == [{"event": "grid", "path": "a-grid.png"}]


def test_no_metadata_leaves_no_word_of_the_prompt(draw):
    assert draw("--no-metadata", "--out", "a.png")[0] == 0
    with open("a.png", "rb") as file:
        assert b"apple" not in file.read()
    with pytest.raises(CartoucheError, match="no recipe"):
        images.read_recipe("a.png")


def test_both_engines_draw_nearly_the_same_picture(draw):
    assert draw("--out", "a.png")[0] == draw("--out", "b.png", "--engine", "torch")[0] == 0
    one, other = (images.read_pixels(name).astype(int) for name in ("a.png", "b.png"))
    assert np.abs(one - other).mean() < 4


def test_a_prompt_that_is_too_long_is_drawn_and_the_lost_words_are_named(draw):
    code, out, error = draw("--out", "a.png", prompt=f"{PROMPT} " + "and a cat left of a dog " * 40 + "zebra")
    assert (code, out) == (0, "a.png\n")
    assert error.startswith("note: the prompt is longer")
    assert error.endswith("zebra\n")


def test_a_preview_can_be_asked_for(draw):
    assert "▀" in draw("--preview", "--out", "a.png")[2]
    assert draw("--out", "b.png")[2] == ""


# redrawing


def test_redraw_says_how_far_another_picture_is_and_can_keep_its_own(draw, tiny_model, capsys):
    draw("--out", "a.png")
    pixels = images.read_pixels("a.png").copy()
    pixels[0, 0] ^= 8
    images.save_png("b.png", pixels, images.read_recipe("a.png"))
    assert main(["redraw", "b.png", "--model", str(tiny_model), "--out", "c.png"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out == ["c.png", "b.png: 1 pixels differ, by at most 8 of 255"]
    assert (images.read_pixels("c.png") == images.read_pixels("a.png")).all()
    assert main(["redraw", "a.png", "--model", str(tiny_model), "--json"]) == 0
    assert lines(capsys.readouterr().out) == [
        {"event": "redraw", "path": "a.png", "same": True, "differ": 0, "largest": 0}
    ]


def test_pictures_of_two_sizes_differ_everywhere():
    zeros = np.zeros((2, 3, 3), np.uint8)
    assert difference(zeros, zeros) == (0, 0)
    assert difference(zeros, np.zeros((4, 3, 3), np.uint8)) == (12, 255)
    assert difference(np.array([[[0, 255, 0]]], np.uint8), np.array([[[255, 250, 0]]], np.uint8)) == (1, 255)


# errors: one line, exit code 2, nothing half-written

BAD = {
    "an empty prompt": (("--out", "a.png"), "the prompt is empty"),
    "no steps": (("--steps", "0"), "steps=0"),
    "too many steps": (("--steps", "1001"), "1001"),
    "a misspelt sampler": (("--sampler", "euler_b"), "did you mean 'euler_a'?"),
    "a size the net cannot draw": (("--size", "17"), "multiple of"),
    "a size that is none": (("--size", "big"), "--size big is not a size"),
    "a size beyond measure": (("--size", "100000"), "choose at most"),
    "no pictures": (("--count", "0"), "--count"),
    "a negative seed": (("--seed", "-1"), "seed=-1"),
    "a guidance that is no number": (("--guidance", "nan"), "guidance_scale=nan"),
    "an unknown engine": (("--engine", "tensorflow"), "unknown engine"),
    "an unknown option": (("--stpes", "3"), "--steps"),
    "a missing model": (("--model", "nowhere"), "nowhere"),
    "a folder without a model": (("--model", "."), "model_index.json"),
    "a folder that is not there": (("--out", "nowhere/a.png"), "nowhere"),
    "another format": (("--out", "a.gif"), "NAME.png"),
    "a film strip of words": (("--film-strip", "all"), "--film-strip all"),
    "a film strip beyond the end": (("--film-strip", "1,9"), "choose steps from 1 to 3"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_is_said_in_one_line_and_nothing_is_written(what, draw, tmp_path):
    arguments, said = BAD[what]
    code, out, error = draw(*arguments, prompt="  " if what == "an empty prompt" else PROMPT)
    assert code == 2
    assert out == ""
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_exists_stops_the_drawing_before_it_begins(draw, monkeypatch):
    assert draw("--out", "a.png")[0] == 0
    monkeypatch.setattr("cartouche.load", None)
    code, _, error = draw("--out", "a.png")
    assert code == 2
    assert "a.png exists already" in error


def test_force_writes_over_it(draw):
    draw("--out", "a.png")
    draw("--out", "a.png", "--force", "--seed", "8")
    assert images.read_recipe("a.png")["seed"] == 8


def test_a_folder_that_may_not_be_written_is_named(draw, tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir(mode=0o500)
    monkeypatch.setattr(cli_draw.os, "access", lambda path, mode: mode == os.R_OK)  # root too
    code, _, error = draw("--out", "locked")
    assert (code, error) == (2, "error: locked is not a folder that can be written; choose another --out\n")


def test_a_full_disk_is_one_line_and_leaves_nothing(draw, tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    code, out, error = draw("--out", "a.png")
    assert (code, out, error) == (2, "", "error: cannot write a.png: No space left on device\n")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_behind_stdout_is_one_line_too():
    with open("/dev/full", "wb") as full:
        arguments = [sys.executable, "-m", "cartouche", "--help"]
        done = subprocess.run(arguments, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: ")


def test_without_torch_the_error_names_the_extra(draw, monkeypatch, capsys):
    def missing(*_, **__):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr("cartouche.load", missing)
    code, _, error = draw("--engine", "torch")
    assert code == 2
    assert "pip install 'cartouche-ai[torch]'" in error


def test_a_mistake_of_ours_is_not_dressed_up_as_one_of_theirs(draw, monkeypatch):
    def broken(*_, **__):
        raise ModuleNotFoundError("No module named 'cartouche.drawn'", name="cartouche.drawn")

    monkeypatch.setattr("cartouche.load", broken)
    with pytest.raises(ModuleNotFoundError):
        draw()


# training and folders


def test_train_hands_over_the_recipe_and_its_changes(monkeypatch):
    import cartouche.train.run

    seen = []
    monkeypatch.setattr(cartouche.train.run, "train", lambda recipe, changes: seen.append((recipe, changes)) or 130)
    assert main(["train", "clip", "steps=5", "settings.batch=2"]) == 130
    assert main(["train", "clip"]) == 130
    assert seen == [("clip", ["steps=5", "settings.batch=2"]), ("clip", [])]


def test_a_recipe_that_is_not_there_is_one_line(capsys):
    assert main(["train", "nothing"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_weights_export_says_what_it_wrote(monkeypatch, tmp_path, capsys):
    import cartouche.weights.graph

    monkeypatch.setattr(cartouche.weights.graph, "export", lambda folder: [folder / "unet/graph.onnx"])
    assert main(["weights", "export", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/unet/graph.onnx\n"
