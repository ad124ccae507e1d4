"""The whole circle: train, push, load where hsvae_hf is not installed, embed, fine-tune, push, classify.

Every number is compared with the number of the local model. `pytest tests/test_hub_circle.py -m slow -s` shows them.
"""

import math
import subprocess
import sys
import time
import venv
from pathlib import Path

import circle
import datasets
import pytest
import torch
from datasets import DatasetDict
from hub_server import Hub
from safetensors.torch import load as load_weights
from transformers import AutoModelForSequenceClassification

import hsvae_hf
from hsvae_hf.data import load_text_dataset

ROOT = Path(__file__).parent.parent
PUSH = """
from datasets import DatasetDict
from hsvae_hf.hub import push_to_hub
push_to_hub({run!r}, "tester/hsvae")
DatasetDict.load_from_disk({data!r}).push_to_hub("tester/docstrings")
"""
START = time.monotonic()


def step(text):
    print(f"\n[{time.monotonic() - START:5.1f} s] {text}")


def agree(name, there, here):
    """Print one number or many of the Hub's model, which are those of the local model bit for bit."""
    assert there.shape == here.shape, name
    print(f"    {name}: {f'{there.item():.6f}' if there.numel() == 1 else f'{there.numel()} numbers'}, the same")
    assert 0 < here.abs().max() < float("inf"), name
    assert torch.equal(there, here), name


@pytest.fixture
def clean_python(tmp_path):
    """An interpreter of a new environment with all that is installed here, except hsvae_hf."""
    venv.create(tmp_path / "clean", symlinks=True, with_pip=False)
    (packages,) = (tmp_path / "clean").glob("lib/python*/site-packages")
    # The folder itself: the .pth files in it, that of an editable install among them, are not read again.
    (packages / "parent.pth").write_text(f"{Path(datasets.__file__).parent.parent}\n")
    return tmp_path / "clean/bin/python"


@pytest.fixture
def local(tmp_path):
    """A small HSVAE, trained on docstrings, and its data."""
    splits = load_text_dataset("docstrings", max_train_samples=6_000, max_samples=256)
    splits = DatasetDict({name: splits[name] for name in ("train", "test")})
    sizes = {"vocab_size": 3_000, "max_length": 32, "embedding_size": 48, "hidden_size": 96, "latent_size": 32}
    weights = hsvae_hf.RELEASED | {"gamma_kl_weight": 0.0, "word_dropout": 0.5}
    training = {"num_train_epochs": 6, "per_device_train_batch_size": 32, "learning_rate": 4e-3, "report_to": "none"}
    steps = {"lr_scheduler_type": "linear", "eval_strategy": "no", "save_strategy": "no"}
    run = hsvae_hf.train(splits, tmp_path / "run", **sizes, **weights, **training, **steps)
    splits.save_to_disk(tmp_path / "data")
    return tmp_path / "run", splits, run.metrics


@pytest.mark.slow
def test_round_the_circle(tmp_path, local, clean_python):
    folder, splits, metrics = local
    sentences, shown = splits["test"]["text"][:], splits["test"]["text"][: circle.SHOWN]
    step(f"trained on {len(splits['train'])} sentences of docstrings: loss {metrics['train_loss']:.2f}")
    with Hub(tmp_path) as hub:

        def ask(*command, **environment):
            done = subprocess.run(
                list(map(str, command)), env=hub.environment(**environment), capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr[-3000:]

        push = PUSH.format(run=str(folder), data=str(tmp_path / "data"))
        ask(sys.executable, "-c", push, PYTHONPATH=str(ROOT))
        size = sum(map(len, hub.files("tester/hsvae").values()))
        step(f"pushed tester/hsvae, {len(hub.files('tester/hsvae'))} files, {size:,} bytes, and tester/docstrings")

        program, there = ROOT / "tests/circle.py", tmp_path / "there"
        arguments = ("tester/hsvae", "tester/docstrings", there, "tester/classifier", tmp_path / "first.pt")
        ask(clean_python, program, *arguments, PYTHONPATH=None)
        remote = torch.load(tmp_path / "first.pt")
        assert Path(remote.pop("environment")) == tmp_path / "clean"
        step("without hsvae_hf: loaded tester/hsvae, embedded, trained a classifier with Trainer, pushed it")
        ask(clean_python, program, "tester/classifier", "tester/docstrings", tmp_path / "second.pt", PYTHONPATH=None)
        remote |= torch.load(tmp_path / "second.pt")
        remote.pop("environment")
        step("without hsvae_hf, in a new process: loaded tester/classifier with pipeline")
        pushed = load_weights(hub.files("tester/classifier")["model.safetensors"])
        code = {name for name in hub.files("tester/hsvae") if name.endswith(".py")}
        assert code | {"tokenizer.json", "config.json", "modules.json"} <= set(hub.files("tester/classifier"))
        assert not hub.failures

    here = circle.embed(folder, sentences)
    here |= circle.fine_tune(folder, splits, tmp_path / "here")
    here |= circle.classify(tmp_path / "here", shown)
    step("the same with hsvae_hf and the local folder; the Hub's model and the local one:")
    assert remote.keys() == here.keys()
    for name in remote:
        agree(name, remote[name], here[name])
    kept = AutoModelForSequenceClassification.from_pretrained(tmp_path / "here").eval()
    for name, weight in kept.state_dict().items():
        assert torch.equal(pushed[name], weight), name
    print(f"    weights of the classifier: {sum(map(torch.numel, pushed.values())):,} numbers, the same")

    majority = max(splits["test"]["label"].count(label) for label in set(splits["test"]["label"])) / len(sentences)
    print(f"    test accuracy {remote['test accuracy'].item():.3f}; of the most frequent class {majority:.3f}")
    # Equal numbers say little of a classifier that guesses: the model is just large enough that it does not.
    assert remote["training loss"] < math.log(splits["train"].features["label"].num_classes) - 0.1
