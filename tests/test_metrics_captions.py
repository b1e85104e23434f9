"""Caption metrics: closed forms, the values of the reference packages on fixed captions, sacrebleu on random ones."""

import itertools

import numpy as np
import pytest

from cartouche.config import CartoucheError
from cartouche.metrics import captions, meteor
from cartouche.metrics.captions import words
from cartouche.metrics.stemmer import stem

PAIRS = (
    (
        "a red apple on a blue background",
        ["a red apple on a blue background, flat style", "red apple, blue background", "an apple on blue"],
    ),
    ("two green frogs, in flat style", ["two frogs in flat style, on white", "2 green frogs, white background"]),
    ("a cat to the left of a dog", ["a dog to the right of a cat", "a cat on the left and a dog on the right"]),
    ("three running horses on gray", ["three horses run on a gray background", "3 horses, gray background"]),
    ("an orange guitar", ["a violin, outline style, on a yellow background"]),
    (
        "a rabbit at the top, blob style, half purple on the left, half pink on the right",
        ["a rabbit at the top, background purple on the left and pink on the right, blob style"],
    ),
    (
        "the foxes jumped over the lazy dogs",
        ["a quick fox jumps over lazy dogs", "the foxes were jumping over a dog"],
    ),
    ("umbrella", ["an umbrella with rain drops", "umbrella"]),
)
SAID = [words(said) for said, _ in PAIRS]
KNOWN = [[words(one) for one in references] for _, references in PAIRS]

# what pycocoevalcap 1.2 says of the same words; METEOR by meteor-1.5.jar, modules exact and stem, weights 1 and 0.6
BLEU = [0.776518165, 0.65640168, 0.520471294, 0.43603124]
ROUGE = [0.658752468, 1.0, 0.758706468, 0.670821114, 0.647214854, 0.0, 0.764705882, 0.428571429, 1.0]
CIDER = [2.646193068, 4.549168869, 3.38007093, 2.825569236, 1.584652353, 0.0, 5.519659934, 1.585644342, 1.724778875]
METEOR = [0.341860536, 0.460404494, 0.370717093, 0.36420389, 0.287804878, 0.0, 0.473674433, 0.317662371, 1.0]


def some_captions(seed, count=40):
    """Random captions and one to four references of each, of few words so that n-grams are shared."""
    r = np.random.default_rng(seed)
    vocabulary = "a the cat dog red blue on of two three apples apple runs running".split()

    def sentence():
        return [vocabulary[i] for i in r.integers(0, len(vocabulary), r.integers(1, 14))]

    return [sentence() for _ in range(count)], [[sentence() for _ in range(r.integers(1, 5))] for _ in range(count)]


def test_words_are_lower_case_and_lose_their_punctuation_but_not_what_is_inside_them():
    assert words("A Red apple, on l'eau: T-shirt (3D)!") == ["a", "red", "apple", "on", "l'eau", "t-shirt", "3d"]
    assert words("œil à l’écran") == ["œil", "à", "l’écran"]


# BLEU


def test_bleu_of_papinenis_example_is_two_sevenths_for_words():
    said = "the the the the the the the".split()
    known = ["the cat is on the mat".split(), "there is a cat on the mat".split()]
    assert captions.bleu([said], [known], 1).corpus == pytest.approx(2 / 7)


def test_a_short_caption_pays_for_its_brevity():
    assert captions.bleu([["a", "cat"]], [["a cat on".split()]], 1).corpus == pytest.approx(np.exp(1 - 3 / 2))
    assert captions.bleu([[]], [[["a"]]], 1).corpus == 0


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_bleu_is_that_of_sacrebleu(order):
    from sacrebleu import metrics

    said, known = some_captions(order)
    oracle = metrics.BLEU(max_ngram_order=order, smooth_method="none", tokenize="none", force=True)
    most = max(map(len, known))
    texts = [" ".join(one) for one in said]
    columns = [[" ".join(one[i]) if i < len(one) else None for one in known] for i in range(most)]
    ours = captions.bleu(said, known, order)
    assert ours.corpus == pytest.approx(oracle.corpus_score(texts, columns).score / 100, abs=1e-9)
    alone = metrics.BLEU(max_ngram_order=order, smooth_method="none", tokenize="none", effective_order=False)
    for text, references, score in zip(texts, known, ours.each, strict=True):
        wanted = alone.sentence_score(text, [" ".join(one) for one in references]).score / 100
        assert score == pytest.approx(wanted, abs=1e-9)


def test_bleu_is_that_of_the_reference_package_on_our_captions():
    assert [captions.bleu(SAID, KNOWN, n).corpus for n in (1, 2, 3, 4)] == pytest.approx(BLEU, abs=1e-9)


# ROUGE-L, CIDEr-D


def test_rouge_l_of_lins_example():
    known = ["police killed the gunman".split()]
    first = captions.rouge_l([["police", "kill", "the", "gunman"]], [known]).corpus
    second = captions.rouge_l([["the", "gunman", "kill", "police"]], [known]).corpus
    assert (first, second) == pytest.approx((3 / 4, 2 / 4))


def test_rouge_l_and_cider_d_are_those_of_the_reference_package_on_our_captions():
    for ours, wanted in ((captions.rouge_l(SAID, KNOWN), ROUGE), (captions.cider_d(SAID, KNOWN), CIDER)):
        assert [ours.corpus, *ours.each] == pytest.approx(wanted, abs=1e-8)


def test_cider_d_is_ten_for_the_reference_itself_and_nothing_for_words_that_all_share():
    known = [["one", "two", "three", "four", "five"], ["six", "seven", "eight", "nine", "ten"]]
    assert captions.cider_d(known, [[one] for one in known]).corpus == pytest.approx(10)
    assert captions.cider_d([["a"], ["a"]], [[["a"]], [["a"]]]).corpus == 0
    longer = captions.cider_d([known[0] * 2, known[1]], [[one] for one in known]).each[0]
    assert longer < 10 * np.exp(-25 / 72)


# METEOR


def test_meteor_is_that_of_the_reference_program_on_our_captions():
    ours = meteor.meteor(SAID, KNOWN)
    assert [ours.corpus, *ours.each] == pytest.approx(METEOR, abs=1e-8)


def test_a_stem_counts_less_than_a_word_and_a_function_word_less_than_another():
    exact, stemmed = (meteor.meteor([[one, "x"]], [[["apples", "y"]]]).corpus for one in ("apples", "apple"))
    assert 0 < stemmed < exact
    common = meteor.meteor([["the", "x"]], [[["the", "y"]]]).corpus
    assert 0 < common < exact


def best_alignment(said, reference):
    """The definition: every set of pairs that uses no word twice, the cheapest of them."""
    stems = [[stem(word) for word in side] for side in (said, reference)]
    pairs = [(i, j) for i, a in enumerate(stems[0]) for j, b in enumerate(stems[1]) if a == b]
    best = (0, 0, 0)
    for size in range(1, min(len(said), len(reference)) + 1):
        for chosen in itertools.combinations(pairs, size):
            if len({i for i, _ in chosen}) == len({j for _, j in chosen}) == size:
                best = min(best, meteor._cost([meteor.Pair(i, j, 1.0) for i, j in sorted(chosen)]))
    return best


def test_alignments_are_the_best_there_are():
    said, known = some_captions(7)
    for one, other in zip(said, (references[0] for references in known), strict=True):
        one, other = one[:6], other[:6]
        assert meteor._cost(meteor.align(one, other)) == best_alignment(one, other)


def test_stems_are_porters():
    import snowballstemmer

    oracle = snowballstemmer.stemmer("porter")
    told = {"caresses": "caress", "ponies": "poni", "cats": "cat", "agreed": "agre", "plastered": "plaster"}
    told |= {"motoring": "motor", "hopping": "hop", "falling": "fall", "filing": "file", "happy": "happi", "sky": "sky"}
    told |= {"relational": "relat", "vietnamization": "vietnam", "electrical": "electr", "hopefulness": "hope"}
    told |= {"adoption": "adopt", "probate": "probat", "rate": "rate", "controll": "control", "roll": "roll"}
    endings = "s es ed ing ly y ies ness ful ization ational tional ment er ability ive eed".split()
    for word in [*told, *(root + end for root in "hop fizz tan agree appl conflat troubl".split() for end in endings)]:
        assert stem(word) == told.get(word, oracle.stemWord(word)), word
    assert [stem(word) for word in ("at", "été", "t-shirts")] == ["at", "été", "t-shirts"]


# use


def test_text_and_uneven_lists_are_refused_in_words():
    for metric in (captions.bleu, captions.rouge_l, captions.cider_d, meteor.meteor):
        with pytest.raises(CartoucheError, match=r"captions\.words"):
            metric(["a cat"], [["a cat"]])
        with pytest.raises(CartoucheError, match="as many of both"):
            metric([["a"]], [])
        with pytest.raises(CartoucheError, match="one or more"):
            metric([["a"]], [[]])
