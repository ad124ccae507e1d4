"""What the tests of sentence vectors share: encoders, models and the scripts."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from families import FAMILIES

import hsvae_hf

ROOT = Path(__file__).parent.parent
VECTOR_FAMILIES = [family for family in FAMILIES if not family.words]
SENTENCES = ["the cat sees a dog", "one", "", "paris has a river and the road to rome is long"]


def as_sentence_transformers(folder, pooling="mean", normalize=True, **config):
    """Make a folder that of a sentence-transformers model; `config` goes to config_sentence_transformers.json."""
    kinds = ["Transformer", "Pooling", "Normalize"][: 3 if normalize else 2]
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [
        {"idx": index, "name": str(index), "path": paths[kind], "type": f"sentence_transformers.models.{kind}"}
        for index, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    names = {"mean": "mean_tokens", "cls": "cls_token", "lasttoken": "lasttoken", "max": "max_tokens"}
    modes = {f"pooling_mode_{name}": mode == pooling for mode, name in names.items()}
    (folder / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 16, **modes}))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(config))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 7, "do_lower_case": False}))


def vector_model(folder, **config):
    return hsvae_hf.HSVAEForPreTraining.from_encoder_pretrained(
        str(folder), decoder_type="vector", latent_size=6, **config
    ).eval()


def small(model_type="hsvae", **config):
    """A model of vectors of 5 numbers, without an encoder."""
    config_class, _, model_class, _ = hsvae_hf.MODELS[model_type]
    sizes = {"encoder_type": "vector", "vector_size": 5, "decoder_type": "vector", "latent_size": 6}
    return model_class(config_class(**(sizes | {"tie_word_embeddings": False} | config))).eval()


def script(name, *arguments):
    arguments = [str(argument) for argument in arguments]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{name}.py", *arguments])
        runpy.run_path(str(ROOT / f"scripts/{name}.py"))["main"]()
