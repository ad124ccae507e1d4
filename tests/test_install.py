"""The package as a user gets it: built, installed without extras into an empty environment, and used there."""

import os
import shutil
import subprocess
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENCODER = ROOT / "model_cards/hsvae-dbpedia-16"
pytestmark = pytest.mark.install

USE = """
import sys
from importlib.util import find_spec
from pathlib import Path
for name in ("evaluate", "matplotlib", "sentence_transformers", "sklearn", "tensorboard"):
    assert find_spec(name) is None, name
import hsvae_hf
from hsvae_hf.active_dims import calibrate_threshold
from hsvae_hf.loading import load_for_inference
from hsvae_hf.hub import model_card
from hsvae_hf.tokenization import train_tokenizer
encoder, prefix = sys.argv[1:]
assert Path(hsvae_hf.__file__).is_relative_to(prefix), hsvae_hf.__file__

model, tokenizer = load_for_inference(encoder)
sentences = ["a small village in the north of iran", "a town in turkey", "an american jazz guitarist and composer"]
codes = hsvae_hf.encode(model, tokenizer, sentences)
assert codes.getnnz(axis=1).tolist() == [27, 31, 33]
assert abs(hsvae_hf.explain(model, tokenizer, *sentences[:2]).cosine - 0.69) < 0.01
model.save_pretrained("saved")
tokenizer.save_pretrained("saved")
assert Path("saved/modeling_hsvae.py").is_file()  # what loads without the package
assert "hsvae" in str(model_card("saved", "me/saved"))

words = train_tokenizer(["the cat sees a dog", "a dog sees the cat"], max_length=8)
sizes = dict(vocab_size=len(words), embedding_size=8, hidden_size=12, latent_size=6)
small = hsvae_hf.HSVAEForPreTraining(hsvae_hf.HSVAEConfig(**sizes)).eval()
inputs = words(["the cat sees a dog"], return_tensors="pt")
assert small.generate(**inputs, num_beams=2, max_new_tokens=5).shape[0] == 1
assert small.sample_prior(3).shape[0] == 3
calibrate_threshold(small, words, ["the cat sees a dog", "a dog sees the cat"], 3)

import numpy as np
options = dict(latent_size=64, target_active_dims=12, max_steps=3, max_train_samples=200, max_samples=50)
run = hsvae_hf.train("docstrings", model_type="hsvae", output_dir="runs/first", **options)
assert abs(run.metrics["eval_active_dims"] - 12) < 1
assert hsvae_hf.encode(run.model, run.tokenizer, sentences).shape == (3, 64)
vectors = np.random.default_rng(0).normal(size=(500, 32))
coder = hsvae_hf.fit(vectors, latent_size=1024, target_active_dims=32, max_steps=3)
assert hsvae_hf.encode_vectors(coder, vectors).shape == (500, 1024)
"""


def run(*command, **options):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, **options)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of an empty environment, in which no more than setuptools of the lock can build."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    venv.create(folder, with_pip=True)
    run(folder / "bin/python", "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", "setuptools")
    return folder / "bin/python"


@pytest.fixture(scope="module")
def wheel(python, tmp_path_factory):
    """Built from a copy of what git has, since a build leaves files in the tree."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    parts = ("hsvae_hf", "pyproject.toml", "README.md", "LICENSE")
    for name in run("git", "ls-files", *parts, cwd=ROOT).stdout.split():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    run(python, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", target, source)
    (built,) = target.iterdir()
    return built


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    files = run("git", "ls-files", "hsvae_hf", cwd=ROOT).stdout.split()
    packed = zipfile.ZipFile(wheel).namelist()
    assert sorted(name for name in packed if ".dist-info/" not in name) == sorted(files)
    assert {"hsvae_hf/py.typed", "hsvae_hf/model_card_template.md"} <= set(files)
    assert any(name.endswith("licenses/LICENSE") for name in packed)


def test_a_bare_install_encodes_saves_generates_and_trains(python, wheel, tmp_path):
    constraints = ["-c", ROOT / "constraints.txt"]
    run(python, "-m", "pip", "install", "-q", *constraints, wheel)
    run(python, "-I", "-c", USE, ENCODER, python.parent.parent, cwd=tmp_path)
