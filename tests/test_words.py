"""What the U-Net is told of a prompt: weights, chunks and learned words, on both engines and as others do it."""

import shutil
import warnings

import numpy as np
import pytest
import torch

from cartouche.config import CartoucheError
from cartouche.draw.paint import Painter
from cartouche.text import Tokenizer
from cartouche.weights import embeddings, safetensors

PROMPT = "a red apple on a blue background"
LONG = "a red apple on a blue background, two green frogs, a cat left of a dog"
N, D = 16, 32  # of the tiny model


@pytest.fixture(scope="module")
def painter(tiny_model):
    return Painter(tiny_model, "openvino", "fp32")


@pytest.fixture(scope="module")
def theirs(tiny_model):
    from transformers import CLIPTextModel

    return CLIPTextModel.from_pretrained(tiny_model / "text_encoder", local_files_only=True).eval()


def told(painter, prompt):
    return painter.encode(prompt).context


def read(theirs, ids):
    with torch.no_grad():
        return theirs(torch.tensor(np.array(ids)[None])).last_hidden_state[0].numpy()


# plain prompts


def test_a_plain_prompt_is_told_as_ever(painter):
    ids = painter.tokenizer.encode(PROMPT).ids
    assert (told(painter, PROMPT) == painter.net("text_encoder")(ids=ids[None])[0]).all()
    assert told(painter, PROMPT).shape == (1, N, D)


@pytest.mark.parametrize("written", ["a (red:1.0) apple on a blue background", "([a red apple on]) a blue background"])
def test_weights_of_one_are_the_plain_prompt_to_the_bit(painter, written):
    assert (told(painter, written) == told(painter, PROMPT)).all()
    plain, weighed = (painter.draw(one, seed=7, num_inference_steps=2)[0].pixels for one in (PROMPT, written))
    assert (plain == weighed).all()


# weights


@pytest.fixture(scope="module")
def slanted(tiny_model, tmp_path_factory):
    """The same model, the mean of whose states is far from zero, as Stable Diffusion's is."""
    path = tmp_path_factory.mktemp("slanted") / "model"
    shutil.copytree(tiny_model, path)
    weights = path / "text_encoder" / "model.safetensors"
    tensors = safetensors.load(weights)
    tensors["text_model.final_layer_norm.bias"] = tensors["text_model.final_layer_norm.bias"] - 0.5
    safetensors.save(weights, tensors, safetensors.metadata(weights))
    return path


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_states_are_multiplied_and_their_mean_put_back_as_a1111_does(slanted, engine):
    from transformers import CLIPTextModel

    theirs = CLIPTextModel.from_pretrained(slanted / "text_encoder", local_files_only=True).eval()
    painter = Painter(slanted, engine, "fp32", device="cpu")
    tokenizer = painter.tokenizer
    weights = [("a", 1.0), ("(red:1.4)", 1.4), ("[apple]", 1 / 1.1)]
    ids, factors = [], []
    for text, weight in weights:
        own = tokenizer.words(text.strip("()[]:.014"))
        ids += [one for word in own for one in word.ids]
        factors += [weight] * (len(ids) - len(factors))
    states = read(theirs, tokenizer.row(ids))
    factors = np.array([1.0, *factors] + [1.0] * (N - len(factors) - 1))
    expected = states * factors[:, None]
    expected *= states.mean() / expected.mean()
    found = told(painter, " ".join(text for text, _ in weights))[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_weight_changes_the_picture(painter):
    plain, weighed = (
        painter.draw(one, seed=7, num_inference_steps=2)[0].pixels for one in (PROMPT, PROMPT.replace("red", "(red:3)"))
    )
    assert (plain != weighed).any()


# chunks


def test_long_prompts_are_read_in_chunks_whose_states_stand_behind_each_other(painter, theirs):
    found = told(painter, LONG)
    count = found.shape[1] // N
    assert found.shape == (1, count * N, D) and count > 1
    words = [one for word in painter.tokenizer.words(LONG) for one in word.ids]
    rows, row = [], []
    for word in painter.tokenizer.words(LONG):
        if len(row) + len(word.ids) > N - 2:
            rows, row = [*rows, row], []
        row = [*row, *word.ids]
    rows.append(row)
    assert [one for row in rows for one in row] == words
    expected = np.concatenate([read(theirs, painter.tokenizer.row(row)) for row in rows])
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_break_stands_where_a_chunk_ends(painter):
    found = told(painter, "a red apple BREAK two green frogs")
    parts = [told(painter, "a red apple"), told(painter, "two green frogs")]
    assert (found == np.concatenate(parts, axis=1)).all()


@pytest.mark.parametrize("engine", ["openvino", "torch"])
@pytest.mark.parametrize("prompts", [(PROMPT, LONG), (LONG, PROMPT), (LONG, "")])
def test_the_shorter_prompt_is_filled_up_with_empty_chunks(tiny_model, engine, prompts):
    painter = Painter(tiny_model, engine, "fp32", device="cpu")
    words, empty = painter.both(*prompts)
    assert words.context.shape == empty.context.shape and words.context.shape[1] > N
    short = words if prompts[0] == PROMPT else empty
    own = told(painter, min(prompts, key=len))
    assert (short.context[:, : own.shape[1]] == own).all()
    assert (short.context[:, -N:] == told(painter, "")).all()
    assert painter.draw(prompts[0], negative_prompt=prompts[1], seed=1, num_inference_steps=2)[0].pixels.any()


def test_the_words_after_the_first_chunk_are_seen(painter):
    a, b = (painter.draw(f"{LONG} {end}", seed=7, num_inference_steps=2)[0].pixels for end in ("frog", "dog"))
    assert (a != b).any()


# learned words


VECTORS = {1: np.random.default_rng(1).standard_normal((1, D)), 3: np.random.default_rng(3).standard_normal((3, D))}


def learned(folder, count, layout):
    """A file with a learned word of `count` vectors, and what the word is."""
    vectors = VECTORS[count].astype(np.float32)
    path = folder / {"diffusers": "learned_embeds.safetensors", "a1111": "Cat-Toy.safetensors"}[layout]
    word = {"diffusers": "<cat-toy>", "a1111": "Cat-Toy"}[layout]
    stored = vectors[0] if layout == "diffusers" and count == 1 else vectors
    safetensors.save(path, {word if layout == "diffusers" else "emb_params": stored})
    return path, word


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("layout", ["diffusers", "a1111"])
def test_a_learned_word_of_any_layout_is_told_as_diffusers_tells_it(tiny_model, tmp_path, count, layout):
    from transformers import CLIPTextModel, CLIPTokenizer

    path, word = learned(tmp_path, count, layout)
    tokenizer = CLIPTokenizer.from_pretrained(tiny_model / "tokenizer", local_files_only=True)
    tower = CLIPTextModel.from_pretrained(tiny_model / "text_encoder", local_files_only=True).eval()
    names = [f"<new{i}>" for i in range(count)]
    tokenizer.add_tokens(names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tower.resize_token_embeddings(len(tokenizer))
    with torch.no_grad():
        tower.get_input_embeddings().weight[-count:] = torch.from_numpy(VECTORS[count]).float()
    ids = tokenizer(f"a {' '.join(names)} on blue", padding="max_length", truncation=True)["input_ids"]
    expected = read(tower, ids)
    for engine in ("openvino", "torch"):
        painter = Painter(tiny_model, engine, "fp32", device="cpu", embeddings=[path])
        np.testing.assert_allclose(told(painter, f"a {word} on blue")[0], expected, atol=1e-5)
        assert (told(painter, f"a {word.upper()} on blue") == told(painter, f"a {word} on blue")).all()


def test_a_learned_word_can_be_weighed_and_does_not_touch_others(tiny_model, painter, tmp_path):
    path, word = learned(tmp_path, 3, "a1111")
    other = Painter(tiny_model, "openvino", "fp32", embeddings=[path])
    np.testing.assert_allclose(told(other, PROMPT), told(painter, PROMPT), atol=1e-6)
    assert np.abs(told(other, f"a ({word}:1.5) dog") - told(other, f"a {word} dog")).max() > 0.1
    assert Painter(tiny_model, "openvino", "fp32").tokenizer.words(word)[0].ids != other.tokenizer.words(word)[0].ids


def test_two_learned_words_have_rows_of_their_own(tiny_model, tmp_path):
    first, second = learned(tmp_path, 3, "a1111")[0], learned(tmp_path, 1, "diffusers")[0]
    painter = Painter(tiny_model, "torch", "fp32", device="cpu", embeddings=[first, second])
    rows = painter.tokenizer.vocab_size
    spelled = [word.ids for word in painter.tokenizer.words("cat-toy <cat-toy>")]
    size = painter.source.config("text_encoder")["vocab_size"]
    assert spelled == [(size, size + 1, size + 2), (size + 3,)] and rows >= size
    table = painter.net("text_encoder").module.text_model.embeddings.token_embedding.weight.detach().numpy()
    np.testing.assert_allclose(table[size:], np.concatenate([VECTORS[3], VECTORS[1]]), rtol=1e-6)


def test_a_learned_word_is_not_taken_for_the_end_of_the_text(tiny_model):
    """Early files name no end: it is the largest id, and learned words have larger ones."""
    from cartouche.nets.clip import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    tower = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=8,
            hidden_size=4,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=6,
            eos_token_id=2,
        )
    )
    longer = torch.cat([tower.text_model.embeddings.token_embedding.weight, torch.randn(2, 4)])
    tower.text_model.embeddings.token_embedding.weight = torch.nn.Parameter(longer)
    states, pooled = tower(torch.tensor([[6, 9, 1, 7, 7, 7]]))
    assert torch.equal(pooled[0], states[0, 3])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "it holds nothing"),
        ({"a": np.ones(3, np.float32), "b": np.ones(3, np.float32)}, "is no learned word: it holds a, b"),
        ({"<x>": np.ones((2, 2, 2), np.float32)}, "wanted \\(vectors, width\\)"),
        ({"<x>": np.ones((0, 4), np.float32)}, "wanted \\(vectors, width\\)"),
        ({"<x>": np.full(4, np.nan, np.float32)}, "not finite"),
        ({"clip_l": np.ones((2, 4), np.float32), "clip_g": np.ones((1, 4), np.float32)}, "as many for each"),
    ],
)
def test_what_is_no_learned_word_is_refused(tmp_path, tensors, message):
    safetensors.save(tmp_path / "x.safetensors", tensors)
    with pytest.raises(CartoucheError, match=message):
        embeddings.read(tmp_path / "x.safetensors")


def test_a_learned_word_of_another_model_or_of_the_vocabulary_is_refused(tiny_model, tmp_path):
    safetensors.save(tmp_path / "wide.safetensors", {"<x>": np.ones(D + 1, np.float32)})
    with pytest.raises(CartoucheError, match="made for another model"):
        Painter(tiny_model, embeddings=[tmp_path / "wide.safetensors"])
    path, _ = learned(tmp_path, 1, "diffusers")
    with pytest.raises(CartoucheError, match="'<cat-toy>' is learned already"):
        Painter(tiny_model, embeddings=[path, path])
    shutil.copy(path, tmp_path / "x.pt")
    with pytest.raises(CartoucheError, match="pickle"):
        Painter(tiny_model, embeddings=[tmp_path / "x.pt"])


def test_a_tokenizer_spells_a_learned_word_only_where_it_stands_alone():
    tokenizer = Tokenizer.train(["a red apple"], vocab_size=600, context=16)
    tokenizer.learn("Apple", [700, 701])
    tokenizer.learn("apple pie", [702])
    text = "  an APPLE, apples \u017f, apple-Apple Pie "
    spelled = [(word.ids, word.text) for word in tokenizer.words(text)]
    assert "".join(own for _, own in spelled) == text
    assert [one for one in spelled if max(one[0]) >= 700] == [
        ((700, 701), "APPLE"),
        ((700, 701), "apple"),
        ((702,), "Apple Pie "),
    ]
    for name in ("apple", " "):
        with pytest.raises(CartoucheError, match="learned already, or empty"):
            tokenizer.learn(name, [9])
