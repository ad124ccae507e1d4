"""What dimensions mean: words, sentences, the decoder, and what two sentences share."""

import json
import math
import re

import numpy as np
import pytest
import torch
from scipy import sparse
from vector_models import script

import hsvae_hf
from hsvae_hf.explanation import decode_switched, describe_dimensions, explain

TEXTS = [
    f"{animal} {place} number {i}" for i in range(12) for animal in ("cat", "dog") for place in ("house", "garden")
]


@pytest.fixture
def model(small_config):
    model = hsvae_hf.HSVAEForPreTraining(small_config).eval()
    torch.nn.init.normal_(model.model.latent_head.gate.weight, std=3.0)  # gates that move with the sentence
    return model


@pytest.fixture
def printed(capsys):
    """A function that runs the script: what it prints."""

    def call(*flags):
        capsys.readouterr()
        script("explain", *flags)
        return capsys.readouterr().out

    return call


def test_contributions_sum_to_the_dot_product_of_the_codes(model, tokenizer):
    a, b = "the cat sees a dog", "the road to rome is long"
    codes = hsvae_hf.encode(model, tokenizer, [a, b]).toarray().astype(np.float64)
    found = explain(model, tokenizer, a, b)
    assert found.similarity == math.fsum(value for _, value in found.contributions)
    assert found.similarity == pytest.approx(codes[0] @ codes[1], rel=1e-12)
    assert found.cosine == pytest.approx(codes[0] @ codes[1] / np.prod(np.linalg.norm(codes, axis=1)), rel=1e-12)
    assert {index for index, _ in found.contributions} == set(np.flatnonzero(codes[0] * codes[1]))
    sizes = [abs(value) for _, value in found.contributions]
    assert len(sizes) > 0
    assert sizes == sorted(sizes, reverse=True)
    assert explain(model, tokenizer, b, a) == found


def test_words_and_sentences_are_those_that_switch_a_dimension_on():
    cats = np.array([1.0 + 0.01 * i if text.startswith("cat") else 0.0 for i, text in enumerate(TEXTS)])
    gardens = np.array([-2.0 if "garden" in text else 1.0 for text in TEXTS])
    rare = np.array([1.0] + [0.0] * (len(TEXTS) - 1))
    codes = sparse.csr_matrix(np.stack([0 * cats, cats, gardens, rare], axis=1))
    found = describe_dimensions(codes, TEXTS)
    assert [one["dimension"] for one in found] == [1, 2, 3]
    assert found[0]["positive"]["words"] == ["cat"]
    assert "negative" not in found[0]
    assert found[0]["positive"]["share"] == 0.5
    assert found[0]["positive"]["sentences"][0] == TEXTS[int(cats.argmax())]
    assert found[1]["positive"]["words"] == ["house"]
    assert found[1]["negative"]["words"] == ["garden"]
    assert found[1]["negative"]["mean"] == -2.0
    assert found[2]["positive"]["words"] == []  # one sentence is no evidence
    assert describe_dimensions(codes[:2], ["", ""])[0]["positive"]["words"] == []


def test_the_decoder_is_given_the_switched_latent(model, tokenizer, sentences, monkeypatch):
    seen, generate = [], model.generate
    monkeypatch.setattr(
        model, "generate", lambda latents, **options: (seen.append(latents), generate(latents=latents, **options))[1]
    )
    said = decode_switched(model, tokenizer, sentences[:3], 4, max_new_tokens=5)
    inputs = tokenizer(sentences[:3], padding=True, return_tensors="pt")
    assert [len(pair) for pair in said] == [2, 2, 2]
    assert (seen[0][:, 4] == 0).all()
    assert torch.equal(seen[1], model.model(**inputs).latent)
    assert torch.equal(seen[0] != seen[1], (torch.arange(6) == 4) & (seen[1] != 0))


def test_what_can_not_be_explained_is_refused(model, tokenizer, sentences):
    codes = hsvae_hf.encode(model, tokenizer, sentences)
    for function, arguments, message in (
        (explain, (model, tokenizer, None, "the cat"), "`a` must be a sentence, got NoneType 'None'"),
        (explain, (model, tokenizer, "the cat", ["a dog"]), "`b` must be a sentence, got list"),
        (describe_dimensions, (codes.toarray(), sentences), "`codes` must be a sparse matrix, .* got a ndarray"),
        (describe_dimensions, (codes, "one string"), "`texts` must be several strings"),
        (describe_dimensions, (codes, [*sentences[:-1], None]), "`texts` must be strings, got NoneType 'None' at"),
        (describe_dimensions, (codes, ["one"]), "`texts` must be those of the 12 codes, got 1"),
        (describe_dimensions, (codes, {"text": sentences}), "`texts` must be one column"),
        (describe_dimensions, (codes, sentences, 0), "`num_words` must be at least 1"),
        (describe_dimensions, (codes, sentences, 8, "3"), "`num_sentences` must be at least 1"),
        (decode_switched, (model, tokenizer, sentences, -1), "`dimension` must be from 0 to 5, got"),
        (decode_switched, (model, tokenizer, sentences, 6), "`dimension` must be from 0 to 5, got"),
        (decode_switched, (model, tokenizer, sentences, 1.0), "`dimension` must be from 0 to 5, got"),
        (decode_switched, (model, tokenizer, sentences, True), "`dimension` must be from 0 to 5, got"),
        (decode_switched, (model, tokenizer, ["the cat", None], 1), "`texts` must be"),
        (decode_switched, (model.model, tokenizer, sentences, 1), "`model` must decode words, got a HSVAEModel"),
    ):
        with pytest.raises(ValueError, match=message):
            function(*arguments)
    assert describe_dimensions(codes, iter(sentences)) == describe_dimensions(codes, sentences)
    assert decode_switched(model, tokenizer, [], 1) == []


def test_the_script_explains_dimensions_and_pairs(printed, model, tokenizer, sentences, tmp_path):
    folder, corpus, out = tmp_path / "model", tmp_path / "corpus.txt", tmp_path / "explained.json"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    corpus.write_text("\n".join(sentences * 5) + "\n")
    options = ("--model_name_or_path", folder, "--dataset", corpus)
    text = printed(*options, "--output", out)
    found = json.loads(out.read_text())
    rows = [line for line in text.splitlines() if re.match(r" *\d+[+-] ", line)]
    assert len(rows) == sum(end in one for one in found for end in ("positive", "negative"))
    assert f"{out}: all that was found" in text
    assert f"{len(found)} of 6 dimensions are ever on" in text
    assert re.search(r"next:\n  python explain.py .* --dimension \d\n$", text)
    text = printed(*options, "--dimension", found[0]["dimension"])
    assert "the decoder, with it off and on" in text
    pair = ("--model_name_or_path", folder, "--sentences", sentences[0])
    plain = printed(*pair, sentences[3])
    values = [float(value) for value in re.findall(r"^ *(?:\d+|sum)  ([+-][\d.]+)", plain, re.MULTILINE)]
    assert values[-1] == pytest.approx(sum(values[:-1]), abs=1e-3)
    assert plain.endswith("add --dataset with text like what the model was trained on\n")
    text = printed(*pair, "the qwxyz cat 日本語")
    assert "words that the model does not know: qwxyz, 日本語\n" in text

    words = {(one["dimension"], end): one[end]["words"] for one in found for end in one if end != "dimension"}
    shared = [int(number) for number in re.findall(r"^ *(\d+)  [+-]", plain, re.MULTILINE)]
    assert shared
    with_words = printed(*pair, sentences[3], "--dataset", corpus)
    assert f"its words in {corpus}" in with_words
    assert "add --dataset" not in with_words
    for number in shared:
        line = next(line for line in with_words.splitlines() if re.match(rf" *{number}  [+-]", line))
        ends = [", ".join(text) or "-" for (dimension, _), text in words.items() if dimension == number]
        assert any(text in line for text in ends)
    (folder / "report.json").write_text(json.dumps({"dimensions": found}))
    lines = [line for line in with_words.splitlines() if re.match(r" *\d+  [+-]", line)]
    assert set(lines) <= set(printed(*pair, sentences[3]).splitlines())  # the same words, of the report


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "Give `dataset`, `sentences`, or both, got neither"),
        (("--sentences", "one"), "`sentences` must be two"),
        (("--sentences", "a", "b", "--dimension", 1), "`dimension` must be left out with `sentences`"),
        (("--dataset", "docstrings", "--dimension", "6"), "`dimension` must be from 0 to 5"),
    ],
)
def test_bad_options_are_named(saved_model, flags, message):
    with pytest.raises(ValueError, match=message):
        script("explain", "--model_name_or_path", saved_model, *flags)
