"""SceneEval: a perfect judge finds no fault, a run goes on where it was stopped."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import cartouche
from cartouche.cli import main
from cartouche.config import CartoucheError
from cartouche.data import palette
from cartouche.data.scenes import rng_of
from cartouche.draw.paint import Picture
from cartouche.draw.recipe import Recipe, Request
from cartouche.measure import sceneeval
from cartouche.measure.judge import ADDED, Errors, Judge, Seen, Thing, colour_in, counted, relations, truth_of, verdict
from cartouche.measure.prompts import FORM, LINES, STYLES, demands, names, scene_of
from cartouche.measure.sceneeval import Judged, report, run
from cartouche.measure.sheet import sheet
from cartouche.metrics.intervals import Tally
from cartouche.nets.referee import Referee, RefereeConfig
from cartouche.weights.folder import save_net


def benchmark():
    """benchmarks/sceneeval.py, which breaks plans."""
    folder = Path(__file__).parents[1] / "benchmarks"
    spec = importlib.util.spec_from_file_location("benchmarks_sceneeval", folder / "sceneeval.py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(folder))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
    return module


def of(line):
    return [one for one in demands() if one.line == line]


# the judge


def test_a_perfect_judge_finds_every_demand_met_in_its_own_scene_and_unmet_in_a_broken_one():
    script = benchmark()
    for one in demands():
        rng = rng_of(1, one.number)
        met = verdict(one, truth_of(scene_of(one.plan, rng)))
        assert met["whole"] and not met[ADDED], one
        missed = verdict(one, truth_of(scene_of(script.broken(one, rng), rng)))
        assert not missed["whole"], one
        more = script.added(one.plan, rng)
        if more is not None:
            assert verdict(one, truth_of(scene_of(more, rng)))[ADDED]
        assert not verdict(one, Seen((), "", tuple(one.avoided[:1])))["whole"]


def test_things_that_were_not_asked_for_do_no_harm_but_are_counted():
    one = of("single object")[0]
    truth = truth_of(scene_of(one.plan, rng_of(1, 1)))
    more = replace(truth, things=(Thing("1f988", "", (0, 0, 9, 9)), *truth.things))
    assert verdict(one, more) == {"whole": True, ADDED: True}


def test_positions_are_told_by_geneval_s_rule():
    here = (50, 50, 70, 70)
    assert relations((0, 52, 20, 72), here) == {"left"}
    assert relations((100, 50, 120, 70), here) == {"right"}
    assert relations((50, 0, 70, 20), here) == {"above"}
    assert relations((50, 100, 70, 120), here) == {"below"}
    assert relations((0, 0, 20, 20), here) == {"left", "above"}
    assert relations((52, 51, 72, 71), here) == set()  # hardly beside it


def test_one_thing_does_not_answer_for_two():
    one = of("counting")[0]
    thing = Thing(one.plan.concepts[0], "", (0, 0, 9, 9))
    assert verdict(one, Seen((thing,), "", ()))["whole"] is False
    one = replace(of("two objects")[0], plan=replace(of("two objects")[0].plan, concepts=("1f988", "1f988")))
    assert verdict(one, Seen((Thing("1f988", "", (0, 0, 9, 9)),), "", ()))["whole"] is False


@pytest.mark.parametrize("colour", palette.NAMES)
def test_the_colour_of_a_thing_is_that_of_what_stands_out_in_its_box(colour):
    ground = "white" if colour != "white" else "blue"
    pixels = np.empty((64, 64, 3), np.uint8)
    pixels[:] = palette.COLOURS[ground].rgb
    rgb = np.array(palette.COLOURS[colour].rgb)
    ys, xs = np.mgrid[:64, :64]
    ring = np.abs(np.hypot(ys - 32, xs - 32) - 16)  # a thin line, with blended rims
    share = np.clip(2.5 - ring, 0, 1)[..., None]
    pixels = (share * rgb + (1 - share) * pixels).astype(np.uint8)
    assert colour_in((14, 14, 50, 50), pixels) == colour
    assert colour_in((-5, -5, 70, 70), pixels) == colour
    assert colour_in((80, 80, 90, 90), pixels) == ""


def test_errors_are_counted_by_line_and_clause():
    rows = [("a", {"whole": said}, {"whole": true}) for said, true in ((1, 1), (0, 1), (1, 1), (0, 0), (1, 0))]
    assert counted(rows)["a"]["whole"] == Errors(Tally(2, 3), Tally(1, 2))


def write_judge(folder):
    torch.manual_seed(0)
    config = RefereeConfig(tuple(names()), STYLES, palette.NAMES, width=16, depth=1)
    save_net(folder, Referee(config).eval())
    return folder


def test_a_judge_knows_its_errors_only_if_they_are_of_its_own_weights(tmp_path):
    judge = Judge(write_judge(tmp_path))
    assert "never counted" in judge.note
    stored = {"judge": judge.hash, "lines": {"style": {"whole": {"sensitivity": [9, 10], "specificity": [8, 10]}}}}
    (tmp_path / "confusion.json").write_text(json.dumps(stored))
    again = Judge(tmp_path)
    assert again.note == ""
    assert again.confusion["style", "whole"].specificity == (8, 10)
    (tmp_path / "confusion.json").write_text(json.dumps(stored | {"judge": "another"}))
    assert "of another judge" in Judge(tmp_path).note
    assert Judge(tmp_path).confusion == {}


@pytest.mark.parametrize("said", ["{", "[]", '{"judge": "x"}', '{"judge": "x", "lines": {"style": {"whole": [1]}}}'])
def test_damaged_errors_of_a_judge_are_refused(tmp_path, said):
    (write_judge(tmp_path) / "confusion.json").write_text(said)
    with pytest.raises(CartoucheError, match=r"confusion\.json is damaged .*count them"):
        Judge(tmp_path)


class Paper:
    """A pack whose drawings are dark squares: every name in every style that it has."""

    def of(self, split):
        return [one.drawing(style) for one in names().values() for style in STYLES if style not in one.missing]

    def pixels(self, drawing):
        return np.full((128, 128, 4), (40, 40, 40, 255), np.uint8)


def test_the_benchmark_counts_the_errors_as_the_judge_reads_them(tmp_path):
    script, judge = benchmark(), Judge(write_judge(tmp_path))
    made = script.measure(Paper(), judge, rounds=1, asked=demands()[:10])
    assert made["scenes"] == 30
    (tmp_path / "confusion.json").write_text(json.dumps(made))
    again = Judge(tmp_path)
    assert again.note == ""
    assert again.confusion["single object", "whole"].sensitivity.n == 2
    assert again.confusion["single object", "whole"].specificity.n == 1
    assert again.confusion["single object", ADDED].sensitivity.n == 1


def test_the_judge_sees_pictures_of_any_size(tmp_path):
    judge = Judge(write_judge(tmp_path))
    seen = judge.see(np.random.default_rng(0).integers(0, 255, (2, 40, 56, 3), np.uint8))
    assert len(seen) == 2
    assert Seen.from_dict(json.loads(json.dumps(seen[0].to_dict()))).style == seen[0].style


# runs


class Easel:
    """Draws grey pictures and counts them; `after` pictures it breaks down."""

    name, hash = "easel", "0123456789"

    def __init__(self, after=10**6):
        self.drawn, self.after = 0, after

    def draw(self, prompt, **settings):
        if self.drawn == self.after:
            raise KeyboardInterrupt
        self.drawn += 1
        request = Request(prompt, **settings)
        shared = {name: value for name, value in vars(request).items() if name != "count"} | {"width": 8, "height": 8}
        recipe = Recipe(**shared, model="easel", model_hash=self.hash, engine="none", precision="fp32", version="0")
        return [Picture(np.full((8, 8, 3), request.seed % 256, np.uint8), recipe)]


class Eye:
    """Sees what the plan of picture `seed` shows, as a perfect judge would, and counts the looks."""

    confusion, note = {}, ""

    def __init__(self, name="eye"):
        self.hash, self.looks = name, 0

    def see(self, pixels):
        self.looks += len(pixels)
        return [truth_of(scene_of(demands()[int(one[0, 0, 0])].plan, rng_of(0, 0))) for one in pixels]


def test_an_interrupted_run_goes_on_where_it_was_stopped(tmp_path):
    some = demands()[:6]
    first = Easel(after=7)
    with pytest.raises(KeyboardInterrupt):
        list(run(first, Eye(), tmp_path, some, 2))
    log = tmp_path / "verdicts-eye.jsonl"
    assert len(log.read_text().splitlines()) == 7
    with log.open("a") as file:
        file.write('{"prompt": 3, "ind')  # killed while it wrote
    second, eye = Easel(), Eye()
    judged = list(run(second, eye, tmp_path, some, 2))
    assert (second.drawn, eye.looks, len(judged)) == (5, 5, 12)
    assert all(one.verdict["whole"] for one in judged)
    third, eye = Easel(), Eye()
    assert [one.seen for one in run(third, eye, tmp_path, some, 2)] == [one.seen for one in judged]
    assert (third.drawn, eye.looks) == (0, 0)
    assert len(log.read_text().splitlines()) == 12


def test_another_judge_looks_at_the_same_pictures(tmp_path):
    list(run(Easel(), Eye(), tmp_path, demands()[:3], 1))
    easel, other = Easel(), Eye("other")
    list(run(easel, other, tmp_path, demands()[:3], 1))
    assert (easel.drawn, other.looks) == (0, 3)


@pytest.mark.parametrize("change", ["steps", "model"])
def test_pictures_of_another_model_or_of_other_settings_are_refused(tmp_path, change):
    list(run(Easel(), Eye(), tmp_path, demands()[:2], 1))
    easel, settings = Easel(), {}
    if change == "steps":
        settings = {"num_inference_steps": 3}
    else:
        easel.hash = "another"
    with pytest.raises(CartoucheError, match="choose another --out"):
        list(run(easel, Eye(), tmp_path, demands()[:2], 1, settings))


def test_a_picture_that_is_drawn_anew_is_judged_anew(tmp_path):
    some = demands()[:3]
    list(run(Easel(), Eye(), tmp_path, some, 1))
    (tmp_path / "pictures" / "001-0.png").unlink()
    easel, eye = Easel(), Eye()
    list(run(easel, eye, tmp_path, some, 1))
    assert (easel.drawn, eye.looks) == (1, 1)


# rates


def told(judge, line, sensitivity, specificity, clause="whole", n=500):
    judge.confusion = judge.confusion | {
        (line, clause): Errors(Tally(round(sensitivity * n), n), Tally(round(specificity * n), n))
    }


def judged_by_chance(rng, line, true, sensitivity=1.0, specificity=1.0, pictures=4):
    """Judged pictures of a line of which a share `true` is right; prompts differ in how hard they are."""
    rows = []
    for one in of(line):
        chance = rng.beta(4 * true, 4 * (1 - true))
        for k in range(pictures):
            good = rng.random() < chance
            yes = rng.random() < (sensitivity if good else 1 - specificity)
            seen = truth_of(scene_of(one.plan, rng_of(0, 0))) if yes else Seen((), "", ())
            rows.append(Judged(one, k, Path(), seen))
    return rows


def test_a_report_has_every_rate_with_the_judges_errors_and_the_corrected_rate():
    judge, rng = Eye(), np.random.default_rng(0)
    judge.confusion = {}
    for line in FORM:
        told(judge, line, 0.9, 0.95)
    told(judge, "single object", 0.9, 0.9, ADDED)
    rows = [row for line in LINES for row in judged_by_chance(rng, line, 0.5)]
    made = report(rows, judge)
    line = made["lines"]["single object"]["whole"]
    assert line["pictures"] == 220
    assert 55 <= line["effective"] < 220
    assert line["sensitivity"]["value"] == 0.9
    assert line["corrected"]["low"] < line["corrected"]["value"] < line["corrected"]["high"]
    assert made["mean of six lines"]["corrected"]["high"] - made["mean of six lines"]["corrected"]["low"] < 0.2
    assert made["lines"]["style"]["whole"]["corrected"] is None
    assert made["lines"]["negative prompt"]["whole"]["chance"] == 1 - 4 / 11
    assert made["lines"]["French, said in English"]["whole"]["pictures"] == 4 * 56
    assert made["hallucination"]["corrected"]["value"] == 0
    assert set(made["lines"]["counting"]) == {"whole", "number"}
    json.dumps(made, allow_nan=False)


def test_what_the_judge_cannot_tell_is_not_judgeable_and_never_a_number():
    judge = Eye()
    judge.confusion = {}
    told(judge, "position", 0.5, 0.55)
    made = report(judged_by_chance(np.random.default_rng(0), "position", 0.5), judge)
    line = made["lines"]["position"]["whole"]
    assert line["corrected"] is None
    assert line["why"].startswith("not judgeable")
    assert made["mean of six lines"] == {"lines": 1, "seen": None, "corrected": None}


def test_corrected_intervals_hold_planted_rates_where_prompts_differ_in_how_hard_they_are():
    line, n = of("two objects"), 200
    for true in (0.1, 0.3, 0.5, 0.7, 0.9):
        rng, hits = np.random.default_rng(int(100 * true)), 0
        for _ in range(600):
            chance = np.repeat(rng.beta(4 * true, 4 * (1 - true), len(line)), 4)
            good = rng.random(len(chance)) < chance
            yes = rng.random(len(chance)) < np.where(good, 0.9, 0.15)
            errors = Errors(Tally(rng.binomial(n, 0.9), n), Tally(rng.binomial(n, 0.85), n))
            seeds = np.repeat(np.arange(len(line)), 4)
            found = sceneeval.corrected([bool(one) for one in yes], seeds.tolist(), errors)
            hits += found.low <= true <= found.high
        assert hits >= 0.93 * 600, (true, hits)


def test_a_sheet_shows_pictures_with_their_verdicts(tmp_path):
    judged = list(run(Easel(), Eye(), tmp_path, demands()[:12], 1))
    page = sheet(judged)
    assert page.dtype == np.uint8
    assert page.shape[1] > page.shape[0] > 2 * 128
    greens = (page == (30, 140, 60)).all(-1).sum()
    assert greens > 12 * 4 * 128 * 0.9
    assert not (sheet([replace(judged[0], seen=Seen((), "", ()))]) == (30, 140, 60)).all(-1).any()


# the command


def test_the_command_draws_judges_and_says_how_sure_it_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cartouche, "load", lambda *_: Easel())
    judge = write_judge(tmp_path / "judge")
    command = ["measure", "scenes", "--judge", str(judge), "--quick", "--prompts", "11", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    said = capsys.readouterr()
    assert said.out.startswith("SceneEval")
    assert "GenEval" not in said.out + said.err
    assert "never counted" in said.out
    assert len(list((tmp_path / "out" / "pictures").glob("*.png"))) == 11
    stored = json.loads((tmp_path / "out" / "report.json").read_text())
    assert stored["pictures"] == 11
    assert len(list((tmp_path / "out").glob("sheet-*.png"))) == 10
    assert main([*command, "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["event"] for one in events] == ["judged"] * 11 + ["scenes"]
    assert events[-1]["lines"] == stored["lines"]
    assert main([*command, "--steps", "2"]) == 2
    assert "choose another --out" in capsys.readouterr().err
    assert main(["measure", "scenes", "--judge", str(tmp_path)]) == 2
    assert "no referee" in capsys.readouterr().err
