"""Names of dimensions: from log odds, with the model wherever it goes, in explanations, cards and `decode`."""

import copy
import json
import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from scipy import sparse
from sentence_transformers import SentenceTransformer, SparseEncoder
from transformers import AutoModel
from transformers.utils.hub import PushToHubMixin
from vector_models import SENTENCES, as_sentence_transformers, small

import hsvae_hf
from hsvae_hf.dimension_names import DimensionNames, decode, name_dimensions, names_of_model
from hsvae_hf.hub import model_card
from hsvae_hf.loading import load_for_inference
from hsvae_hf.sentence_transformers import SparseCodes, add_codes, find_codes

TEXTS = [f"{topic} {place}" for topic in ("password reset", "jazz guitar") for place in ("here", "there")] * 6
HERE = np.array(["here" in text.split() for text in TEXTS])
JAZZ = np.array(["jazz" in text for text in TEXTS])
# Two rows of passwords and one of jazz have dimension 0 below 0, which is too few to name it by.
MIXED = np.where(JAZZ, 2.0, 0.0) + np.where(np.arange(24) < 5, -0.5, 0.0)
CODES = sparse.csr_matrix(np.stack([MIXED, np.where(HERE, 1.0, -3.0), np.zeros(24)], axis=1))


def names_for(size, **ends):
    """Names of so many dimensions, `p3="a b"` for the words of 3+, `n3` for those of 3-."""
    signs = {"p": "+", "n": "-"}
    found = {f"{key[1:]}{signs[key[0]]}": {"share": 0.25, "words": words.split()} for key, words in ends.items()}
    return DimensionNames(size, 100, found)


def every_end(size):
    """Names in which each end has one word of its own."""
    words = {f"{sign}{index}": f"{sign}{index}" for index in range(size) for sign in "pn"}
    return names_for(size, **words)


@pytest.fixture
def dense(encoder):
    as_sentence_transformers(encoder)
    return SentenceTransformer(str(encoder), device="cpu")


@pytest.fixture
def codes(dense):
    """A SparseEncoder with codes of 24 dimensions, values of both signs."""
    coder = small(vector_size=16, latent_size=24)
    torch.nn.init.normal_(coder.model.latent_head.gate.weight, std=0.5)
    return add_codes(dense, coder)


def test_words_are_those_of_the_largest_log_odds():
    """By hand, from four counts of sentences for each word and end."""
    for dimension, sign in ((0, 1), (0, -1), (1, 1), (1, -1)):
        on = sign * CODES.toarray()[:, dimension] > 0
        scores = {}
        for word in ("password", "reset", "jazz", "guitar", "here", "there"):
            has = np.array([word in text.split() for text in TEXTS])
            a, b, c, d = (float(part.sum()) + 0.5 for part in (on & has, on & ~has, ~on & has, ~on & ~has))
            if (on & has).sum() >= 5:
                scores[word] = math.log(a / b * d / c) / math.sqrt(1 / a + 1 / b + 1 / c + 1 / d)
        best = sorted((word for word in scores if scores[word] > 2), key=lambda word: (-scores[word], word))
        names = name_dimensions(CODES, TEXTS)
        end = f"{dimension}{'+' if sign > 0 else '-'}"
        if best:
            assert names.ends[end] == {"share": pytest.approx(on.mean(), rel=1e-3), "words": best[:3]}
        assert (end in names.ends) == bool(best)
        assert names.of(dimension, sign * 0.1) == (", ".join(best[:3]) or end)
    assert names.of(0, 2) == "guitar, jazz"
    assert names.of(1, -2.0) == "there"
    assert names.of(0, -1.0) == "0-"
    assert names.of(2, np.float32(1)) == "2+"  # it is never on
    assert (names.latent_size, names.sentences) == (3, 24)
    assert name_dimensions(CODES, iter(TEXTS), num_words=1).of(0, 1) == "guitar"


def test_labels_are_of_every_end_and_no_two_alike():
    names = names_for(4, p0="password reset", n1="password reset", p1="jazz", n3="")
    assert list(names.labels) == ["0+", "0-", "1+", "1-", "2+", "2-", "3+", "3-"]
    assert [names.labels[end] for end in ("0+", "0-", "1+", "3-")] == ["password, reset (0+)", "0-", "jazz", "3-"]
    assert names.labels["1-"] == "password, reset (1-)"
    assert names.of(1, -1) == "password, reset"
    assert len(set(names.labels.values())) == 8


def test_they_are_saved_whole_and_travel_with_every_form_of_the_model(tmp_path, codes, dense, monkeypatch):
    coder, names = find_codes(codes).coder, every_end(24)
    coder.save_pretrained(tmp_path / "coder")
    assert not (tmp_path / "coder/dimensions.json").exists()
    names.save(tmp_path / "coder")
    assert DimensionNames.load(tmp_path / "coder") == names
    assert not list((tmp_path / "coder").glob(".*"))

    loaded, _ = load_for_inference(tmp_path / "coder")
    assert names_of_model(loaded) == names
    whole = SparseCodes(tmp_path / "coder")
    whole.save(str(tmp_path / "module"))
    assert DimensionNames.load(str(tmp_path / "module")) == names
    assert names_of_model(SparseCodes.load(str(tmp_path / "module"))) == names
    whole.coder.model.save_pretrained(tmp_path / "body")
    assert names_of_model(AutoModel.from_pretrained(tmp_path / "body")) == names
    add_codes(dense, whole.coder).save_pretrained(str(tmp_path / "encoder"))
    assert DimensionNames.load(tmp_path / "encoder") == names
    other = names_for(24, p3="jazz")
    other.save(tmp_path / "encoder")  # lands in the folder of the codes
    assert not (tmp_path / "encoder/dimensions.json").exists()
    assert names_of_model(SparseEncoder(str(tmp_path / "encoder"), device="cpu", trust_remote_code=True)) == other

    uploaded = []
    monkeypatch.setattr(
        PushToHubMixin,
        "_upload_modified_files",
        lambda self, folder, repo_id, times, **options: uploaded.extend(
            path.name for path in folder.iterdir() if path.name not in times
        ),
    )
    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **options: SimpleNamespace(repo_id=repo_id))
    loaded.save_pretrained(tmp_path / "pushed", push_to_hub=True)
    assert {"dimensions.json", "config.json"} <= set(uploaded)


def test_a_light_form_keeps_them_and_training_on_drops_them(make_trainer, saved_model, small_config):
    every_end(small_config.latent_size).save(saved_model)
    model = hsvae_hf.HSVAEForPreTraining.from_pretrained(saved_model)
    assert names_of_model(model) is not None
    trainer = make_trainer(model=lambda: model, max_steps=1, save_strategy="no")
    trainer.train()
    assert names_of_model(model) is None
    light = small(latent_size=6)
    every_end(6).attach(light)
    assert names_of_model(light.without_encoder()) == every_end(6)


def test_decode_names_the_strongest_first_whatever_the_form():
    names = names_for(4, p0="password reset", n2="jazz", n3="jazz")
    rows = np.array([[0.25, 0.0, -0.5, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, -0.25]], dtype=np.float32)
    expected = [
        [("jazz (2-)", -0.5), ("password, reset", 0.25)],
        [],
        [("1+", 1.0), ("jazz (3-)", -0.25)],
    ]
    forms = [rows, rows.tolist(), sparse.csr_matrix(rows), torch.tensor(rows), torch.tensor(rows).to_sparse()]
    for form in forms:
        assert hsvae_hf.decode(names, form) == expected
        assert decode(names, form, top_k=1) == [row[:1] for row in expected]
    for single in (rows[0], rows[0].tolist(), torch.tensor(rows[0]), torch.tensor(rows[0]).to_sparse()):
        assert decode(names, single) == expected[0]
    assert decode(small(latent_size=4), rows)[0] == [("2-", -0.5), ("0+", 0.25)]  # a model without names


def test_the_librarys_decode_and_its_helpers_tell_the_truth(codes, tmp_path):
    found = codes.encode(SENTENCES)
    matrix = found.to_dense().numpy()
    assert (matrix < 0).any()
    index, value = int(np.abs(matrix[0]).argmax()), float(matrix[0][np.abs(matrix[0]).argmax()])
    assert codes.decode(found[0])[0] == (f"{index}{'+' if value > 0 else '-'}", pytest.approx(value))  # no names yet
    every_end(24).attach(codes)
    for row, named in zip(matrix, codes.decode(found), strict=True):
        shown = {f"{'p' if row[number] > 0 else 'n'}{number}": row[number] for number in np.flatnonzero(row)}
        assert dict(named) == pytest.approx(shown)
        sizes = [abs(weight) for _, weight in named]
        assert sizes == sorted(sizes, reverse=True)
    assert codes.decode(found, top_k=2) == [named[:2] for named in codes.decode(found)]
    shared = codes.decode(codes.intersection(found[0], found[0]))  # products, which have lost the sign
    assert {name for name, _ in shared} == {f"p{number}" for number in np.flatnonzero(matrix[0])}
    codes.save_pretrained(str(tmp_path))
    again = SparseEncoder(str(tmp_path), device="cpu", trust_remote_code=True)
    for encoder in (again, copy.deepcopy(codes), pickle.loads(pickle.dumps(codes))):
        assert encoder.decode(found) == codes.decode(found) == decode(encoder, found)


def test_a_text_model_as_sparse_encoder_is_decoded_by_the_function(saved_model, small_config, tokenizer, sentences):
    size = small_config.latent_size
    every_end(size).save(saved_model)
    encoder = SparseEncoder(str(saved_model), device="cpu")
    found = encoder.encode(sentences)
    named = decode(encoder, found)
    for row, pairs in zip(found.to_dense().numpy(), named, strict=True):
        assert {name for name, _ in pairs} == {f"{'p' if row[i] > 0 else 'n'}{i}" for i in np.flatnonzero(row)}


def test_explanations_and_cards_have_names_where_the_model_has(saved_model, small_config, tokenizer):
    size, pair = small_config.latent_size, ("the cat sees a dog", "the road to rome is long")
    every_end(size).save(saved_model)
    model, _ = load_for_inference(saved_model)
    found = hsvae_hf.explain(model, tokenizer, *pair)
    codes = hsvae_hf.encode(model, tokenizer, pair).toarray()
    assert found.contributions
    for (index, product), name in zip(found.contributions, found.names, strict=True):
        signs = ["p" if code > 0 else "n" for code in codes[:, index]]
        assert name == (f"{signs[0]}{index}" if product > 0 else f"p{index} against n{index}")
    assert hsvae_hf.explain(model, tokenizer, *pair[::-1]) == found
    card = str(model_card(saved_model, "me/model"))
    assert "| 0+ | 25.0% | p0 |" in card
    assert "of 100 sentences" in card
    assert "Dimensions have no names" not in card

    (saved_model / "dimensions.json").unlink()
    plain, _ = load_for_inference(saved_model)
    assert hsvae_hf.explain(plain, tokenizer, *pair).names is None
    assert hsvae_hf.explain(plain, tokenizer, *pair, names=every_end(size)) == found
    assert "Dimensions have no names" in str(model_card(saved_model, "me/model"))


@pytest.mark.parametrize(
    "damage",
    [
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"latent_size": 6, "sentences": 9}',
        b'{"latent_size": 6, "sentences": 9, "ends": {"6+": {"share": 0.1, "words": []}}}',
        b'{"latent_size": 6, "sentences": 9, "ends": {"5+": {"share": 0.1, "words": "one"}}}',
        b'{"latent_size": 6, "sentences": 9, "ends": {"5+": {"share": "0.1", "words": ["one"]}}}',
        b'{"latent_size": 6, "sentences": 9, "ends": {"5+": ["one"]}}',
        b'{"latent_size": "6", "sentences": 9, "ends": {}}',
    ],
)
def test_a_damaged_file_is_one_clear_error_and_the_model_still_loads(saved_model, tokenizer, damage):
    (saved_model / "dimensions.json").write_bytes(damage)
    with pytest.raises(
        ValueError, match=r"^`folder_or_hub_id` must have an intact dimensions.json, got .* name the dim"
    ):
        DimensionNames.load(saved_model)
    model, _ = load_for_inference(saved_model)
    assert hsvae_hf.encode(model, tokenizer, ["the cat"]).shape == (1, 6)
    for call in (lambda: hsvae_hf.explain(model, tokenizer, "a", "b"), lambda: decode(model, np.ones(6))):
        with pytest.raises(ValueError, match="^`model` must have an intact dimensions.json, got that of"):
            call()


def test_what_cannot_be_named_is_refused(saved_model, tmp_path):
    names, model = every_end(6), small(latent_size=4)
    for call, message in (
        (lambda: names.of(6, 1.0), "`dimension` must be from 0 to 5, got 6"),
        (lambda: names.of(True, 1.0), "`dimension` must be from 0 to 5, got True"),
        (lambda: names.of(0, 0.0), "`value` must be above 0 or below, got 0.0"),
        (lambda: names.of(0, math.nan), "`value` must be above 0 or below, got nan"),
        (lambda: names.attach(model), "`model` must have the 6 dimensions that are named, got one with 4"),
        (
            lambda: names.attach(torch.nn.Linear(2, 2)),
            "`model` must be a loaded model of this package, .* got a Linear",
        ),
        (lambda: names_for(4).save(saved_model), "`folder` must be of the model that is named, with 4 dim.* with 6"),
        (lambda: DimensionNames.load(saved_model), "`folder_or_hub_id` must hold dimensions.json, got .* name the dim"),
        (lambda: DimensionNames.load(tmp_path / "nowhere"), "`folder_or_hub_id` must be the folder or the Hub id"),
        (lambda: decode("runs/model", np.ones(6)), "`encoder_or_names` must be a loaded model .* got a str; load it"),
        (lambda: decode(names, np.ones(5)), r"`codes` must be numbers, \(rows, 6\)"),
        (lambda: decode(names, np.ones(6), top_k=0), "`top_k` must be at least 1"),
        (lambda: name_dimensions(CODES, TEXTS, num_words=0), "`num_words` must be at least 1"),
        (lambda: name_dimensions(CODES, TEXTS[1:]), "`texts` must be those of the 24 codes, got 23"),
        (lambda: name_dimensions(CODES.toarray()[0], TEXTS), r"`codes` must be numbers, \(rows, latent_size\)"),
        (lambda: name_dimensions(CODES, "one string"), "`texts` must be several strings"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    (saved_model / "dimensions.json").write_text(json.dumps({"latent_size": 4, "sentences": 9, "ends": {}}))
    with pytest.raises(ValueError, match="`model` must have names of its 6 dimensions, got those of 4"):
        names_of_model(AutoModel.from_pretrained(saved_model))


def test_no_two_labels_are_alike():
    words = {"0+": ["x"], "1+": ["x"], "2+": ["x (0+)"], "2-": ["1-"]}
    labels = DimensionNames(3, 9, {end: {"share": 0.1, "words": found} for end, found in words.items()}).labels
    assert len(set(labels.values())) == 6
