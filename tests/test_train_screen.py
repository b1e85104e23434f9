"""What a person sees of a training: words, bar, journal, plot and sheets."""

import json
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from cartouche.train import journal, screen, sheets
from cartouche.train.loop import Progress


def progress(step: int, loss: float, **notes: float) -> Progress:
    return Progress(step, 100, loss, notes, 0.1, 1.0, 50.0, 1.0, 300.0, 0, nn.Identity(), nn.Identity())


def test_chance_is_said_in_words():
    chance = math.log(128)
    assert ", at chance (ln 128 = 4.85)" in screen.describe(progress(1, 4.84, chance=chance))
    assert ", worse than chance (ln 128 = 4.85)" in screen.describe(progress(1, 6.0, chance=chance))
    assert "chance" not in screen.describe(progress(1, 3.0, chance=chance))
    assert "chance" not in screen.describe(progress(1, 6.0, chance=chance, contrast=3.0))
    assert ", at chance" in screen.describe(progress(1, 9.0, chance=chance, contrast=4.84))
    assert "5 min left" in screen.describe(progress(1, 3.0))


def test_a_terminal_gets_a_bar_and_a_pipe_gets_lines():
    import io

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal, pipe = Terminal(), io.StringIO()
    for target in (terminal, pipe):
        with screen.Screen(target, pause=1000) as shown:
            for step in range(1, 4):
                shown.show(progress(step, 2.0))
    assert "3/100" in terminal.getvalue()
    assert pipe.getvalue().count("\n") == 1 and pipe.getvalue().startswith("step 1/100")


def test_a_resumed_journal_tells_one_straight_story(tmp_path: Path):
    first = journal.Journal(tmp_path, 1)
    for step in range(1, 8):
        first.write(progress(step, 1.0))
    with open(tmp_path / "journal.jsonl", "a") as file:
        file.write('{"step": 8, "lo')
    second = journal.Journal(tmp_path, 1)
    for step in range(5, 10):
        second.write(progress(step, 2.0))
    lines = list(journal.read(tmp_path / "journal.jsonl"))
    assert [(one["step"], one["loss"]) for one in lines] == [(s, 1.0 if s < 5 else 2.0) for s in range(1, 10)]


def test_a_journal_line_holds_the_mean_since_the_last(tmp_path: Path):
    notes = journal.Journal(tmp_path, 3)
    for step in range(1, 7):
        notes.write(progress(step, float(step)))
    assert [(one["step"], one["mean"]) for one in journal.read(tmp_path / "journal.jsonl")] == [
        (1, 1.0), (3, 2.5), (6, 5.0),
    ]  # fmt: skip


def test_the_plot_falls_where_the_loss_falls(tmp_path: Path):
    picture = sheets.curve([(0, 4.0), (50, 3.0), (100, 2.0)], "loss", {"chance": 4.5})
    ink = (np.asarray(picture) == sheets.LINE).all(-1)
    across = np.flatnonzero(ink.any(0))
    heights = [np.flatnonzero(ink[:, x]).mean() for x in (across[0], across[len(across) // 2], across[-1])]
    assert heights[0] < heights[1] < heights[2]  # rows are counted from the top


def test_the_plot_has_the_line_of_chance_where_the_loss_is_the_contrast_alone(tmp_path: Path):
    drawn = {}
    for name, notes in {
        "no": {},
        "alone": {"note/chance": 4.8},
        "part": {"note/chance": 4.8, "note/contrast": 1.0},
    }.items():
        (tmp_path / name).mkdir()
        lines = (json.dumps({"step": step, "mean": 5.0 - step, **notes}) for step in range(3))
        (tmp_path / name / journal.FILE).write_text("\n".join(lines) + "\n")
        drawn[name] = journal.plot(tmp_path / name).read_bytes()
    assert drawn["part"] == drawn["no"] != drawn["alone"]


def test_a_sheet_shows_every_picture_in_its_place():
    pictures = torch.stack([torch.full((3, 8, 8), value) for value in (-1.0, 0.0, 1.0)])
    sheet = sheets.sheet(pictures, columns=2, gap=2)
    assert sheet.size == (18, 18)
    assert [sheet.getpixel(place) for place in [(1, 1), (11, 1), (1, 11)]] == [(0,) * 3, (128,) * 3, (255,) * 3]


def test_the_matrix_is_darkest_where_it_is_closest():
    picture: Image.Image = sheets.matrix(np.eye(4), side=8)
    assert picture.getpixel((1, 1)) == (12, 50, 105) and picture.getpixel((7, 0)) == (255, 255, 255)
