"""Errors of scripts: they name the option that was typed."""

import shutil

import numpy as np
import pytest
from vector_models import small

from hsvae_hf.argument_names import known_as


def test_only_what_an_error_begins_with_is_renamed():
    for text, wanted in (
        ("`vectors` must be finite, see `vectors`.", "`input` must be finite, see `vectors`."),
        ("`other` must be finite.", "`other` must be finite."),
        ("The `vectors` are wrong.", "The `vectors` are wrong."),
        ("`vectors` must hold a string in every row, got 3.", "`vectors` must hold a string in every row, got 3."),
    ):
        with pytest.raises(ValueError) as caught, known_as(vectors="input"):
            raise ValueError(text)
        assert str(caught.value) == wanted
    with pytest.raises(KeyError), known_as(vectors="input"):
        raise KeyError("`vectors` must be finite")


@pytest.fixture
def places(saved_model, encoder, tmp_path, monkeypatch):
    """A folder with models and files of every kind."""
    monkeypatch.chdir(tmp_path)
    small(vector_size=16).save_pretrained("coder")
    np.save("wide.npy", np.ones((3, 9)))
    (tmp_path / "in.txt").write_text("one\ntwo\n")
    (tmp_path / "bare").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "bare" / name).write_bytes((encoder / name).read_bytes())
    shutil.copytree("bare", "damaged")
    (tmp_path / "damaged/tokenizer.json").write_text("{")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/letter.txt").write_text("dear")
    (tmp_path / "nothing.csv").write_text("a,b\n1,2\n")


@pytest.mark.parametrize(
    ("words", "begin"),
    [
        ("embed --model_name_or_path coder --input wide.npy --output a.npz", "`input` must be numbers, (rows, 16)"),
        ("embed --model_name_or_path coder --input wide.npy --output a", "`input` must be numbers, (rows, 16)"),
        ("embed --model_name_or_path no/where --input in.txt --output a --vectors", "`model_name_or_path` must be"),
        ("embed --model_name_or_path bare --input in.txt --output a --vectors", "`model_name_or_path` must be"),
        (
            "embed --model_name_or_path coder --encoder_name_or_path bare --input in.txt --output a.npz",
            "`encoder_name_or_path` must be a folder or a Hub id with a tokenizer, got 'bare'",
        ),
        (
            "embed --model_name_or_path encoder --input in.txt --output a --vectors --prompt_name query",
            "`prompt_name` must be",
        ),
        ("export_onnx --model_name_or_path saved-model --output_dir full", "`output_dir` must be new, empty or"),
        (
            "export_onnx --model_name_or_path saved-model --output_dir a --calibration nowhere.csv",
            "`calibration` must be",
        ),
        ("search index --input nowhere --encoder saved-model --index a", "`input` must be"),
        ("search index --input in.txt --encoder ./nowhere --index a", "`encoder` must be"),
        ("search index --input in.txt --encoder encoder --codes ./nowhere --index a", "`codes` must be"),
        ("search index --input in.txt --encoder saved-model --index full", "`index` must hold an index alone"),
        ("search query --index full --query a", "`index` must"),
        ("search export --index full --format qdrant --output a.jsonl", "`index` must"),
        ("evaluate_model --model_name_or_path coder --vectors wide.npy --output a.json", "`vectors` must be"),
        ("push_to_hub --model_name_or_path full --repo_id me/it", "`model_name_or_path` must be"),
        (
            "train --encoder_name_or_path damaged --dataset in.txt --decoder_type vector --output_dir a",
            "`encoder_name_or_path` must be",
        ),
        (
            "train --encoder_name_or_path bare --dataset in.txt --output_dir a",
            "`encoder_name_or_path` must be a folder or a Hub id with a tokenizer, got 'bare'",
        ),
        (
            "train --tokenizer_name_or_path damaged --dataset in.txt --output_dir a",
            "`tokenizer_name_or_path` must be a folder or a Hub id with a tokenizer, got 'damaged'",
        ),
    ],
)
def test_a_script_names_the_option(words, begin, places, refused):
    line = refused(*words.split())
    assert line.startswith(f"error: {begin}"), line
