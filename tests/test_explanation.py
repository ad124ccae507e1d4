"""What dimensions mean: words, sentences, the decoder, and what two sentences share."""

import json
import math
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

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
def folder(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def script(monkeypatch, capsys):
    def call(*flags):
        monkeypatch.setattr(sys, "argv", ["explain.py", *map(str, flags)])
        main = runpy.run_path(str(Path(__file__).parent.parent / "scripts" / "explain.py"))["main"]
        capsys.readouterr()
        main()
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
    swapped = explain(model, tokenizer, b, a)
    assert swapped == found


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
    with pytest.raises(ValueError, match="`texts` must be those of the 48 codes, got 1"):
        describe_dimensions(codes, ["one"])
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
    with pytest.raises(ValueError, match="`dimension` must be from 0 to 5, got 6"):
        decode_switched(model, tokenizer, sentences[:1], 6)


def test_what_can_not_be_explained_is_refused(model, tokenizer, sentences):
    with pytest.raises(ValueError, match="`a` must be a sentence, got NoneType 'None'"):
        explain(model, tokenizer, None, "the cat")
    with pytest.raises(ValueError, match="`b` must be a sentence, got list"):
        explain(model, tokenizer, "the cat", ["a dog"])
    codes = hsvae_hf.encode(model, tokenizer, sentences)
    for given, message in (
        ((codes.toarray(), sentences), "`codes` must be a sparse matrix, as `encode` gives, got a ndarray"),
        ((codes, "one string"), "`texts` must be several strings"),
        (
            (codes, [*sentences[:-1], None]),
            "`texts` must be strings, got NoneType 'None' at index",
        ),
        ((codes, {"text": sentences}), "`texts` must be one column"),
        ((codes, sentences, 0), "`num_words` must be at least 1"),
        ((codes, sentences, 8, "3"), "`num_sentences` must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            describe_dimensions(*given)
    assert describe_dimensions(codes, iter(sentences)) == describe_dimensions(codes, sentences)
    for dimension in (-1, 6, 1.0, "1", None, True):
        with pytest.raises(ValueError, match="`dimension` must be from 0 to 5, got"):
            decode_switched(model, tokenizer, sentences, dimension)
    for texts in ("one string", ["the cat", None]):
        with pytest.raises(ValueError, match="`texts` must be"):
            decode_switched(model, tokenizer, texts, 1)
    assert decode_switched(model, tokenizer, [], 1) == []
    with pytest.raises(ValueError, match="`model` must decode words, got a HSVAEModel"):
        decode_switched(model.model, tokenizer, sentences, 1)


def test_the_script_explains_dimensions_and_pairs(script, folder, sentences, tmp_path):
    corpus, out = tmp_path / "corpus.txt", tmp_path / "explained.json"
    corpus.write_text("\n".join(sentences * 5) + "\n")
    options = ("--model_name_or_path", folder, "--dataset", corpus)
    printed = script(*options, "--output", out)
    found = json.loads(out.read_text())
    rows = [line for line in printed.splitlines() if re.match(r" *\d+[+-] ", line)]
    assert len(rows) == sum(end in one for one in found for end in ("positive", "negative"))
    assert f"{out}: all that was found" in printed
    assert f"{len(found)} of 6 dimensions are ever on" in printed
    assert re.search(r"next:\n  python explain.py .* --dimension \d\n$", printed)
    printed = script(*options, "--dimension", found[0]["dimension"])
    assert "the decoder, with it off and on" in printed
    pair = ("--model_name_or_path", folder, "--sentences", sentences[0])
    plain = script(*pair, sentences[3])
    values = [float(value) for value in re.findall(r"^ *(?:\d+|sum)  ([+-][\d.]+)", plain, re.MULTILINE)]
    assert values[-1] == pytest.approx(sum(values[:-1]), abs=1e-3)
    assert plain.endswith("add --dataset with text like what the model was trained on\n")
    printed = script(*pair, "the qwxyz cat 日本語")
    assert "words that the model does not know: qwxyz, 日本語\n" in printed

    words = {(one["dimension"], end): one[end]["words"] for one in found for end in one if end != "dimension"}
    shared = [int(number) for number in re.findall(r"^ *(\d+)  [+-]", plain, re.MULTILINE)]
    assert shared
    with_words = script(*pair, sentences[3], "--dataset", corpus)
    assert f"its words in {corpus}" in with_words
    assert "add --dataset" not in with_words
    for number in shared:
        line = next(line for line in with_words.splitlines() if re.match(rf" *{number}  [+-]", line))
        ends = [", ".join(text) or "-" for (dimension, _), text in words.items() if dimension == number]
        assert any(text in line for text in ends)
    (folder / "report.json").write_text(json.dumps({"dimensions": found}))
    lines = [line for line in with_words.splitlines() if re.match(r" *\d+  [+-]", line)]
    assert set(lines) <= set(script(*pair, sentences[3]).splitlines())  # the same words, of the report


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "Give `dataset`, `sentences`, or both, got neither"),
        (("--sentences", "one"), "`sentences` must be two"),
        (("--sentences", "a", "b", "--dimension", 1), "`dimension` must be left out with `sentences`"),
        (("--dataset", "docstrings", "--dimension", "6"), "`dimension` must be from 0 to 5"),
        (("--sentences", "a", "b", "--output", "x.txt"), "`output` must end in .json"),
    ],
)
def test_bad_options_are_named(script, folder, flags, message):
    with pytest.raises(ValueError, match=message):
        script("--model_name_or_path", folder, *flags)
