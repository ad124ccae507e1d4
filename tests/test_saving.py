"""A saved folder is whole: it loads where this package is not installed, by every Auto class and SparseEncoder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import FAMILIES, bert
from sentence_transformers import SparseEncoder
from transformers import AutoModel, AutoTokenizer

import hsvae_hf
from hsvae_hf.loading import load_for_inference

ONE_OF_A_TYPE = {family.config_class.model_type: family for family in FAMILIES if family.gru}
TRANSFORMER = next(family for family in FAMILIES if family.name == "hsvae-bert")
SENTENCES = ["the cat sees a dog", "one and two", "", "paris has a river and the road to rome is long and old too"]

FAMILIES_SAVED = [*ONE_OF_A_TYPE.values(), TRANSFORMER]

ELSEWHERE = """
import os, sys, torch
sys.modules["hsvae_hf"] = None  # as if it were not installed
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification
from transformers import AutoTokenizer, pipeline
sentences, trust, found = {sentences!r}, dict(trust_remote_code=True), {{}}
for name, model_type in {families!r}.items():
    folder, again = name + "/saved", name + "/again"
    tokenizer = AutoTokenizer.from_pretrained(folder, **trust)
    inputs = tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")
    assert AutoConfig.from_pretrained(folder, **trust).model_type == model_type
    codes = AutoModel.from_pretrained(folder, **trust).eval()(**inputs).sparse_embedding
    assert AutoModelForPreTraining.from_pretrained(folder, **trust)(**inputs).loss.isfinite()
    classifier = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, num_samples=0, **trust).eval()
    assert all(p.isfinite().all() and p.abs().max() < 10 for p in classifier.parameters())
    classifier.config.id2label = {{0: "a", 1: "b", 2: "c"}}
    classifier.save_pretrained(again)
    tokenizer.save_pretrained(again)
    logits = classifier(**inputs).logits
    features = pipeline("feature-extraction", again, device="cpu", **trust)(sentences[0])
    scores = pipeline("text-classification", again, device="cpu", **trust)(sentences[0], top_k=None)
    found[name] = dict(codes=codes, logits=logits, features=torch.tensor(features), scores=scores)
torch.save(found, "found.pt")
"""


@pytest.fixture(scope="module")
def elsewhere(tokenizer, tmp_path_factory):
    """Models of all families, and what one clean process that cannot import this package computed with them."""
    root, models = tmp_path_factory.mktemp("elsewhere"), {}
    for family in FAMILIES_SAVED:
        changes = {"vocab_size": len(tokenizer)} | ({} if family.gru else bert(len(tokenizer)))
        torch.manual_seed(0)
        models[family.name] = family.pretraining(family.config(**changes)).eval()
        models[family.name].save_pretrained(root / family.name / "saved")
        tokenizer.save_pretrained(root / family.name / "saved")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(root / "home"), "HF_HUB_OFFLINE": "1"}
    families = {family.name: family.config_class.model_type for family in FAMILIES_SAVED}
    code = ELSEWHERE.format(sentences=SENTENCES, families=families)
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=root, env=environment
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return root, models, torch.load(root / "found.pt", weights_only=True)


@pytest.mark.parametrize("family", FAMILIES_SAVED, ids=lambda family: family.name)
def test_a_saved_model_works_without_this_package(family, tokenizer, elsewhere):
    root, models, everything = elsewhere
    model, found, folder = models[family.name], everything[family.name], root / family.name / "saved"
    inputs = tokenizer(SENTENCES, padding=True, truncation=True, return_tensors="pt")
    codes = model.model(**inputs).sparse_embedding
    assert torch.equal(found["codes"], codes)
    torch.testing.assert_close(found["features"], codes[:1], atol=1e-6, rtol=1e-5)
    probabilities = {row["label"]: row["score"] for row in found["scores"]}
    expected = found["logits"][0].exp().tolist()
    for index, label in enumerate("abc"):
        assert probabilities[label] == pytest.approx(expected[index], rel=1e-4)

    again = root / family.name / "again"  # saved by the code in the folder, not by this package
    auto_map = json.loads((again / "config.json").read_text())["auto_map"]
    assert set(auto_map) == {
        "AutoConfig",
        "AutoModel",
        "AutoModelForPreTraining",
        "AutoModelForSequenceClassification",
    }
    for value in auto_map.values():
        assert (again / f"{value.partition('.')[0]}.py").is_file()
    code = {path.name for path in folder.glob("*.py")}
    assert code <= {path.name for path in again.glob("*.py")}
    assert torch.equal(hsvae_hf_codes(again, inputs), codes)


def hsvae_hf_codes(folder, inputs):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder).eval()
    assert type(model).__module__.startswith("hsvae_hf.")  # with the package, its own code is used, without trust
    return model(**inputs).sparse_embedding


def test_only_the_needed_code_is_saved(tmp_path):
    for name, absent in (("hsvae", "modeling_mat_vae.py"), ("mat-vae", "modeling_hsvae.py")):
        family = ONE_OF_A_TYPE[name]
        family.model(family.config()).save_pretrained(tmp_path / name)
        files = {path.name for path in (tmp_path / name).iterdir()}
        assert "modeling_text_vae.py" in files
        assert absent not in files
        assert not files & {"training.py", "data.py", "__init__.py", "encoding.py"}


@pytest.mark.parametrize("family", ONE_OF_A_TYPE.values(), ids=lambda family: family.name)
def test_sparse_encoder_gives_the_same_codes(family, tokenizer, tmp_path):
    model = family.pretraining(family.config(vocab_size=len(tokenizer))).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoder = SparseEncoder(str(tmp_path), device="cpu")
    codes = hsvae_hf.encode(model, tokenizer, SENTENCES).toarray()
    found = encoder.encode(SENTENCES)
    assert (found.to_dense().numpy() == codes).all()
    assert encoder.get_embedding_dimension() == model.config.latent_size
    statistics = encoder.sparsity(found)
    assert statistics["active_dims"] == pytest.approx((codes != 0).sum() / len(SENTENCES))
    assert statistics["sparsity_ratio"] == pytest.approx((codes == 0).mean())
    torch.testing.assert_close(encoder.similarity(found, found), torch.tensor(codes @ codes.T), atol=1e-6, rtol=1e-5)
    kept = encoder.encode(SENTENCES, max_active_dims=2).to_dense().numpy()
    assert (kept == hsvae_hf.encode(model, tokenizer, SENTENCES, max_active_dims=2).toarray()).all()


def test_pickles_are_not_read(tokenizer, tmp_path):
    family = ONE_OF_A_TYPE["hsvae"]
    model = family.pretraining(family.config(vocab_size=len(tokenizer)))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    for arguments in ({}, {"use_safetensors": False}):
        with pytest.raises(OSError, match=r"To convert a \.bin checkpoint that you trust") as caught:
            family.pretraining.from_pretrained(tmp_path, **arguments)
    with pytest.raises(ValueError, match="`model_name_or_path` must be"):
        load_for_inference(tmp_path)
    convert = str(caught.value).partition("run in its folder: ")[2]
    subprocess.run([sys.executable, "-c", convert], cwd=tmp_path, check=True)
    loaded = family.pretraining.from_pretrained(tmp_path)
    for one, other in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_the_encoder_in_the_repository_gives_codes_at_once():
    folder = Path(hsvae_hf.__file__).parent.parent / "model_cards/hsvae-dbpedia-16"
    for path in folder.glob("*.py"):  # what a Hub user would run; save the model again when the package changes
        assert path.read_text() == (Path(hsvae_hf.__file__).parent / path.name).read_text(), path.name
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    sentences = ["a small village in the north of iran", "a town in turkey", "an american jazz guitarist and composer"]
    codes = hsvae_hf.encode(model, tokenizer, sentences)
    assert codes.shape == (3, 128)
    assert (codes.getnnz(axis=1) < 64).all()
    scores = (codes @ codes.T).toarray()
    assert scores[0, 1] > 1.5 * max(scores[0, 2], scores[1, 2])
    contributions = hsvae_hf.explain(model, tokenizer, *sentences[:2])
    assert contributions.similarity == pytest.approx(float(scores[0, 1]), rel=1e-4)
