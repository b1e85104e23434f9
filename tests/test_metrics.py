"""Metrics of labels, boxes, masks, answers and characters: closed forms, then the reference packages on random data."""

import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cartouche.config import CartoucheError
from cartouche.metrics import boxes, characters, classify, masks, questions
from cartouche.metrics.boxes import Boxes


def rng(seed=0):
    return np.random.default_rng(seed)


# labels


def test_accuracy_is_the_share_that_is_right():
    assert classify.accuracy(["cat", "dog", "cat", "fox"], ["cat", "dog", "dog", "fox"]) == 0.75
    with pytest.raises(CartoucheError, match="as many of both"):
        classify.accuracy(["cat"], [])


def test_precision_recall_and_f1_have_their_closed_forms():
    report = classify.f1(["a", "a", "a", "b"], ["a", "a", "b", "c"])
    assert report.classes["a"] == classify.Scores(1.0, 2 / 3, 0.8, 3)
    assert report.classes["b"] == classify.Scores(0.0, 0.0, 0.0, 1)
    assert report.classes["c"] == classify.Scores(0.0, 0.0, 0.0, 0)
    assert report.micro.f1 == classify.accuracy(["a", "a", "a", "b"], ["a", "a", "b", "c"])


def test_precision_recall_and_f1_are_those_of_scikit_learn():
    from sklearn.metrics import precision_recall_fscore_support

    for seed in range(5):
        truth, said = rng(seed).integers(0, 7, 90), rng(seed + 100).integers(0, 8, 90)
        names = [str(name) for name in np.union1d(truth, said)]
        report = classify.f1(truth, said)
        for average, got in (("macro", report.macro), ("micro", report.micro)):
            wanted = precision_recall_fscore_support(truth, said, average=average, zero_division=0)
            assert (got.precision, got.recall, got.f1) == pytest.approx(wanted[:3], abs=1e-12)
        for name, *wanted in zip(
            names, *precision_recall_fscore_support(truth, said, average=None, zero_division=0), strict=True
        ):
            here = report.classes[name]
            assert (here.precision, here.recall, here.f1, here.support) == pytest.approx(wanted, abs=1e-12)


def test_top_k_is_that_of_scikit_learn_and_at_k_1_the_accuracy_of_the_best():
    from sklearn.metrics import top_k_accuracy_score

    scores, truth = rng(1).normal(size=(200, 9)), rng(2).integers(0, 9, 200)
    for k in (1, 2, 5):
        assert classify.top_k(truth, scores, k) == pytest.approx(top_k_accuracy_score(truth, scores, k=k))
    assert classify.top_k(truth, scores, 1) == classify.accuracy(truth, scores.argmax(1))
    assert classify.top_k(truth, scores, 9) == 1
    with pytest.raises(CartoucheError, match="choose 1 to 9"):
        classify.top_k(truth, scores, 10)


def test_recall_at_k_counts_the_queries_that_find_something():
    similarity = np.array([[0.9, 0.1, 0.3], [0.8, 0.2, 0.3], [0.5, 0.6, 0.4]])
    assert [classify.recall_at_k(similarity, k=k) for k in (1, 2, 3)] == [1 / 3, 1 / 3, 1]
    wanted = np.array([[0, 0, 1], [1, 0, 0], [1, 1, 0]], bool)
    assert [classify.recall_at_k(similarity, wanted, k) for k in (1, 2)] == [2 / 3, 1]
    with pytest.raises(CartoucheError, match="each query wants something"):
        classify.recall_at_k(similarity, np.zeros((3, 3), bool))


# boxes


def some_boxes(seed, pictures=25, classes=4, most=8):
    """Truth, and finds that are shifted copies of most of it with some strays: [(Boxes, Boxes)]."""
    r = rng(seed)
    made = []
    for _ in range(pictures):
        count = int(r.integers(0, most))
        low = r.uniform(0, 90, (count, 2))
        true = np.concatenate([low, low + r.uniform(8, 60, (count, 2))], 1)
        names = [f"c{i}" for i in r.integers(0, classes, count)]
        kept = r.random(count) < 0.85
        corners = np.concatenate([true[kept] + r.normal(0, 3, (kept.sum(), 4)), r.uniform(0, 60, (2, 4)).cumsum(1)])
        found = [n for n, keep in zip(names, kept, strict=True) if keep] + [f"c{i}" for i in r.integers(0, classes, 2)]
        made.append((Boxes(corners, found, np.round(r.random(len(found)), 2)), Boxes(true, names)))
    return made


def coco_figures(pairs):
    """mAP and mAP@.5 as faster-coco-eval has them."""
    from faster_coco_eval import COCO, COCOeval_faster

    names = sorted({name for _, truth in pairs for name in truth.names})
    numbers = {name: i + 1 for i, name in enumerate(names)}
    truths, finds, mark = [], [], itertools.count(1)
    for i, (found, truth) in enumerate(pairs):
        for corners, name in zip(truth.corners, truth.names, strict=True):
            wide = [*corners[:2], *(corners[2:] - corners[:2])]
            row = {"id": next(mark), "image_id": i, "category_id": numbers[name], "iscrowd": 0}
            truths.append(row | {"bbox": wide, "area": wide[2] * wide[3]})
        for corners, name, score in zip(found.corners, found.names, found.scores, strict=True):
            if name in numbers:
                wide = [*corners[:2], *(corners[2:] - corners[:2])]
                finds.append({"image_id": i, "category_id": numbers[name], "bbox": wide, "score": score})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        coco = COCO({
            "images": [{"id": i, "width": 200, "height": 200} for i in range(len(pairs))],
            "categories": [{"id": i, "name": name} for name, i in numbers.items()],
            "annotations": truths,
        })  # fmt: skip
        judge = COCOeval_faster(coco, coco.loadRes(finds), "bbox")
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"][..., 0, 2]  # (T, R, K): all areas, 100 detections
    return precision.mean(), precision[0].mean()


def test_overlaps_have_their_closed_forms():
    a = np.array([[0, 0, 10, 10], [0, 0, 0, 0]])
    b = np.array([[5, 0, 15, 10], [20, 20, 30, 30], [0, 0, 10, 10], [0, 0, 0, 0]])
    np.testing.assert_allclose(boxes.iou(a, b), [[1 / 3, 0, 1, 0], [0, 0, 0, 0]], atol=1e-15)


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_that_of_coco(seed):
    pairs = some_boxes(seed)
    ours = boxes.average_precision([found for found, _ in pairs], [truth for _, truth in pairs])
    assert (ours.map, ours.map50) == pytest.approx(coco_figures(pairs), abs=1e-9)


def test_only_a_hundred_finds_of_a_picture_count():
    r = rng(3)
    corners = np.repeat(np.array([[0.0, 0, 10, 10]]), 140, 0) + r.uniform(20, 90, (140, 1))
    corners[-1] = [0, 0, 10, 10]  # the right one is the least sure
    pairs = [(Boxes(corners, ["a"] * 140, np.linspace(1, 0.1, 140)), Boxes(np.array([[0.0, 0, 10, 10]]), ["a"]))]
    assert boxes.average_precision([pairs[0][0]], [pairs[0][1]]).map50 == 0
    assert coco_figures(pairs)[1] == pytest.approx(0, abs=1e-12)


def test_perfect_finds_have_precision_one_and_none_zero():
    truth = [Boxes(np.array([[0.0, 0, 9, 9], [20, 0, 29, 9]]), ["a", "a"])]
    perfect = [Boxes(truth[0].corners, truth[0].names, np.array([0.5, 0.5]))]
    assert boxes.average_precision(perfect, truth).map == 1
    assert boxes.average_precision([Boxes(np.zeros((0, 4)), [], np.zeros(0))], truth).map == 0
    with pytest.raises(CartoucheError, match="nothing to find"):
        boxes.average_precision([perfect[0]], [Boxes(np.zeros((0, 4)), [])])
    with pytest.raises(CartoucheError, match=r"lack 0\.5"):
        boxes.average_precision(perfect, truth, [0.75])


# masks


def test_masks_overlap_as_their_pixels_do():
    a, b = np.zeros((1, 4, 4), bool), np.zeros((2, 4, 4), bool)
    a[0, :2], b[0, 1:3] = True, True
    np.testing.assert_allclose(masks.iou(a, b), [[1 / 3, 0]])


def test_mean_iou_is_the_jaccard_score_of_scikit_learn():
    from sklearn.metrics import jaccard_score

    said, truth = rng(1).integers(0, 4, (3, 20, 20)), rng(2).integers(0, 4, (3, 20, 20))
    wanted = jaccard_score(truth.ravel(), said.ravel(), average=None)
    np.testing.assert_allclose(masks.class_iou(said, truth, 5)[:4], wanted, atol=1e-12)
    assert masks.mean_iou(said, truth, 5) == pytest.approx(wanted.mean(), abs=1e-12)
    kept = truth != 2
    assert masks.mean_iou(np.where(said == 2, 1, said), truth, 4, ignore=2) == pytest.approx(
        jaccard_score(truth[kept], np.where(said == 2, 1, said)[kept], average=None).mean(), abs=1e-12
    )
    with pytest.raises(CartoucheError, match=r"0 \.\.\. 2"):
        masks.mean_iou(said, truth, 3)


def disc(x, y, radius, side=80):
    ys, xs = np.mgrid[:side, :side]
    return (xs - x) ** 2 + (ys - y) ** 2 <= radius**2


def test_boundary_f_is_one_for_the_same_outline_and_falls_with_the_shift():
    here = disc(40, 40, 20)
    values = [masks.boundary_f(disc(40 + dx, 40, 20), here) for dx in range(6)]
    assert values[0] == 1
    assert all(a > b for a, b in itertools.pairwise(values))
    assert masks.boundary_f(np.zeros((9, 9), bool), np.zeros((9, 9), bool)) == 1
    assert masks.boundary_f(np.zeros((80, 80), bool), here) == 0


@pytest.mark.parametrize("tolerance", [0.0075, 0.03])
def test_boundary_f_is_that_of_exact_distances(tolerance):
    from scipy.ndimage import binary_erosion, distance_transform_edt

    for seed in range(4):
        shapes = [disc(*rng(seed + k).uniform(25, 55, 2), rng(seed + k).uniform(8, 25)) for k in (0, 50)]
        lines = [one & ~binary_erosion(one, border_value=1) for one in shapes]
        near = [distance_transform_edt(~line) <= tolerance * np.hypot(80, 80) for line in lines]
        precision, recall = near[1][lines[0]].mean(), near[0][lines[1]].mean()
        wanted = 2 * precision * recall / (precision + recall) if precision + recall else 0
        assert masks.boundary_f(*shapes, tolerance) == pytest.approx(wanted, abs=1e-12)


# answers


def test_three_people_who_agree_make_an_answer_right_and_fewer_make_it_partly_so():
    others = ["dog", "fox", "owl", "bee", "ant", "cow", "hen"]
    assert questions.accuracy("cat", ["cat"] * 4 + others[:6]) == 1
    assert questions.accuracy("cat", ["cat"] * 3 + others) == pytest.approx(0.9)  # three times 2/3, seven times 1
    assert questions.accuracy("cat", ["cat", *others]) == pytest.approx(7 / 24)
    assert questions.accuracy("cat", others) == 0
    assert questions.mean_accuracy(["cat", "cat"], [["cat"] * 10, ["dog"] * 10]) == 0.5


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("The Cat.", "cat"),
        ("two", "2"),
        ("none", "0"),
        ("an apple, a pear", "apple pear"),
        ("1,000 people", "1000 people"),
        ("3.5", "3.5"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("red/blue", "red blue"),
        ("  what?\n", "what"),
        ("blue-ish", "blue ish"),
        ("(yes) !", "yes"),
    ],
)
def test_answers_are_normalised_as_the_official_evaluation_does(answer, wanted):
    """The wanted values are what the official evaluation code gives; 20,000 random answers were compared with it."""
    assert questions.normal(answer) == wanted


def test_where_all_people_agree_nothing_is_normalised():
    assert questions.accuracy("Cat", ["cat"] * 10) == 0
    assert questions.accuracy("Cat", ["cat"] * 9 + ["dog"]) == 1


# characters


def test_edit_distances_have_their_textbook_values():
    assert characters.distance("kitten", "sitting") == 3
    assert characters.distance("", "abc") == 3
    assert characters.distance("abc", "") == 3
    assert characters.distance(["a", "b"], ["b", "a"]) == 2


@given(st.text("abc", max_size=7), st.text("abc", max_size=7), st.text("abc", max_size=7))
def test_edit_distance_is_a_metric(a, b, c):
    d = characters.distance
    assert d(a, b) == d(b, a)
    assert (d(a, b) == 0) == (a == b)
    assert d(a, c) <= d(a, b) + d(b, c)
    assert d(a, b) == edits(a, b)


def edits(a, b):
    """The definition, without thought for time."""
    if not a or not b:
        return len(a) + len(b)
    if a[0] == b[0]:
        return edits(a[1:], b[1:])
    return 1 + min(edits(a[1:], b), edits(a, b[1:]), edits(a[1:], b[1:]))


def test_error_rates_weigh_texts_by_their_length():
    assert characters.cer(["abcd", "x"], ["abcd", "yz"]) == 2 / 6
    assert characters.wer(["the cat sat", "on"], ["the cat sat", "on mats"]) == 1 / 5
    with pytest.raises(CartoucheError, match="nothing is written"):
        characters.cer(["a"], [""])
    with pytest.raises(CartoucheError, match="two lists"):
        characters.cer("abc", "abd")
