"""Saved folders: they load where this package is not installed, by every Auto class, by SparseEncoder, from 0.1.0."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from families import BY_NAME, FAMILIES, bert
from safetensors.torch import save_file
from sentence_transformers import SparseEncoder
from transformers import AutoModel, AutoModelForPreTraining, AutoTokenizer

import hsvae_hf
from hsvae_hf.loading import load_for_inference

ONE_OF_A_TYPE = {family.config_class.model_type: family for family in FAMILIES if family.gru}
SENTENCES = ["the cat sees a dog", "one and two", "", "paris has a river and the road to rome is long and old too"]

KINDS = ("", "ForPreTraining", "ForSequenceClassification")
FAMILIES_SAVED = [*ONE_OF_A_TYPE.values(), BY_NAME["hsvae-bert"]]
COMMITTED = Path(hsvae_hf.__file__).parent.parent / "model_cards/hsvae-dbpedia-16"

# What version 0.1.0 made of "a small village in the north of iran" with the encoder in the repository.
VILLAGE = {
    0: 0.197028, 1: -0.345072, 6: -0.67808, 29: -1.60253, 32: 1.05185, 33: -0.487501, 41: 0.241428,
    52: 0.369443, 54: 2.05377, 57: 0.320392, 58: -0.208528, 59: -1.13928, 61: -1.25852, 71: 0.491843,
    77: 0.191965, 81: -0.19924, 95: -1.09601, 98: 1.10962, 100: 0.179621, 102: -1.00382, 103: 0.911418,
    105: 0.288016, 106: 0.18592, 107: -0.361635, 110: -0.224101, 122: 1.93313, 127: 1.44285,
}  # fmt: skip
# By model type: names and shapes of the latent head's weights in checkpoints of version 0.1.0, fields of its
# config.json that are gone, and its codes for the weights and vectors of the test.
OF_0_1_0 = {
    "hsvae": (
        {"gate.weight": (12, 5), "gate.bias": (12,), "slab.weight": (12, 5), "slab.bias": (12,)},
        {"gate_balance_weight": 0.0},
        [[0.0, 0.0, 0.0, 0.0, -0.06514324, 0.138336], [0.0, 0.0, 0.0, 0.0, 0.0, 1.168098]],
    ),
    "gaussian-vae": (
        {"posterior.weight": (12, 5), "posterior.bias": (12,)},
        {"code_snr_min": 0.0},
        [[-0.4918417, 1.05354, 0.0, 0.0, 0.0, 0.4579483], [0.0, 2.302902, 0.0, -1.61656, 0.0, 0.4318066]],
    ),
    "vsc": (
        {
            "pseudo_inputs": (16, 5),
            "posterior.weight": (18, 5),
            "posterior.bias": (18,),
            "selector.weight": (16, 5),
            "selector.bias": (16,),
        },
        {"pseudo_inputs": "features", "pseudo_length": 8},
        [[0.0, -2.733716, 0.0, 2.117675, 1.249543, 0.0], [0.0, -0.598851, 0.6358141, 0.0, 0.0, -1.075248]],
    ),
}
# What all such checkpoints hold besides.
BESIDES = {
    "model.code_scale": (6,),
    "model.standardizer.mean": (5,),
    "model.standardizer.std": (5,),
    "decoder.output.weight": (5, 6),
    "decoder.output.bias": (5,),
    "decoder.log_std": (),
}

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
    """Models of all families and the committed one; what a process without this package computed with them."""
    root, models = tmp_path_factory.mktemp("elsewhere"), {}
    for family in FAMILIES_SAVED:
        changes = {"vocab_size": len(tokenizer)} | ({} if family.gru else bert(len(tokenizer)))
        torch.manual_seed(0)
        models[family.name] = family.pretraining(family.config(**changes)).eval()
        models[family.name].save_pretrained(root / family.name / "saved")
        tokenizer.save_pretrained(root / family.name / "saved")
    models["committed"] = AutoModelForPreTraining.from_pretrained(COMMITTED, dtype=torch.float32).eval()
    models["committed"].save_pretrained(root / "committed/saved")
    AutoTokenizer.from_pretrained(COMMITTED).save_pretrained(root / "committed/saved")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(root / "home"), "HF_HUB_OFFLINE": "1"}
    families = {name: model.config.model_type for name, model in models.items()}
    code = ELSEWHERE.format(sentences=SENTENCES, families=families)
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=root, env=environment
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return root, models, torch.load(root / "found.pt", weights_only=True)


@pytest.mark.parametrize("name", [*(family.name for family in FAMILIES_SAVED), "committed"])
def test_a_saved_model_works_without_this_package(name, elsewhere):
    root, models, everything = elsewhere
    model, found, folder = models[name], everything[name], root / name / "saved"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(SENTENCES, padding=True, truncation=True, return_tensors="pt")
    codes = model.model(**inputs).sparse_embedding
    assert torch.equal(found["codes"], codes)
    torch.testing.assert_close(found["features"], codes[:1], atol=1e-6, rtol=1e-5)
    probabilities = {row["label"]: row["score"] for row in found["scores"]}
    expected = found["logits"][0].exp().tolist()
    for index, label in enumerate("abc"):
        assert probabilities[label] == pytest.approx(expected[index], rel=1e-4)

    again = root / name / "again"  # saved by the code in the folder, not by this package
    auto_map = json.loads((again / "config.json").read_text())["auto_map"]
    assert set(auto_map) == {"AutoConfig", *(f"AutoModel{kind}" for kind in KINDS)}
    for value in auto_map.values():
        assert (again / f"{value.partition('.')[0]}.py").is_file()
    code = {path.name for path in folder.glob("*.py")}
    assert code <= {path.name for path in again.glob("*.py")}
    assert "modeling_text_vae.py" in code
    assert (model.config.model_type == "mat-vae") == ("modeling_mat_vae.py" in code), "code of other models was saved"
    assert not code & {"training.py", "data.py", "__init__.py", "encoding.py"}
    for trust in (False, True):
        loaded = AutoModel.from_pretrained(again, trust_remote_code=trust).eval()
        assert type(loaded).__module__.startswith("hsvae_hf.")  # with the package, its own code is used
        assert torch.equal(loaded(**inputs).sparse_embedding, codes)


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
    unit = codes / np.linalg.norm(codes, axis=1, keepdims=True).clip(1e-12)  # compared by cosine
    torch.testing.assert_close(encoder.similarity(found, found), torch.tensor(unit @ unit.T), atol=1e-6, rtol=1e-5)
    model.config.similarity_fn_name = "dot"
    model.config.save_pretrained(tmp_path)
    assert SparseEncoder(str(tmp_path), device="cpu").similarity_fn_name == "dot"
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
    for name, value in family.pretraining.from_pretrained(tmp_path).state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


def test_the_encoder_in_the_repository_gives_codes_at_once():
    tokenizer = AutoTokenizer.from_pretrained(COMMITTED)
    model = AutoModel.from_pretrained(COMMITTED, dtype=torch.float32)
    sentences = ["a small village in the north of iran", "a town in turkey", "an american jazz guitarist and composer"]
    codes = hsvae_hf.encode(model, tokenizer, sentences)
    assert codes.shape == (3, 128)
    assert (codes.getnnz(axis=1) < 64).all()
    scores = (codes @ codes.T).toarray()
    assert scores[0, 1] > 1.5 * max(scores[0, 2], scores[1, 2])
    contributions = hsvae_hf.explain(model, tokenizer, *sentences[:2])
    assert contributions.similarity == pytest.approx(float(scores[0, 1]), rel=1e-4)
    assert dict(zip(codes[0].indices.tolist(), codes[0].data.tolist(), strict=True)) == pytest.approx(VILLAGE, rel=1e-4)


def wave(step, *shape):
    """Numbers that no version of torch draws differently."""
    return torch.arange(math.prod(shape)).mul(step).sin().view(shape)


@pytest.mark.parametrize("model_type", OF_0_1_0)
def test_a_vector_checkpoint_of_0_1_0_gives_the_codes_of_0_1_0(model_type, tmp_path):
    shapes, fields, expected = OF_0_1_0[model_type]
    shapes = {f"model.latent_head.{name}": shape for name, shape in shapes.items()} | BESIDES
    weights = {name: wave(1.0 + len(name), *shape) for name, shape in shapes.items()}
    for name in ("model.code_scale", "model.standardizer.std"):
        weights[name] = weights[name].abs() + 0.5
    sizes = {"encoder_type": "vector", "vector_size": 5, "decoder_type": "vector", "latent_size": 6}
    options = {"tie_word_embeddings": False, "max_active_dims": 3, "learn_decoder_std": False}
    config = {"model_type": model_type, **sizes, **options, **fields}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    model, report = AutoModelForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    codes = model.eval().model(vectors=wave(0.7, 2, 5)).sparse_embedding
    assert torch.equal(codes != 0, torch.tensor(expected) != 0)
    torch.testing.assert_close(codes, torch.tensor(expected), rtol=1e-4, atol=1e-5)
    assert torch.equal(model.decoder.log_std, weights["decoder.log_std"])
