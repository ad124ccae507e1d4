"""What the tests share: no network, one thread, fixed seeds, real text where there is some."""

import json
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")

import pytest
import torch
import transformers
from datasets import Dataset
from families import bert
from vector_models import script

import hsvae_hf
from hsvae_hf.batching import TextCollator
from hsvae_hf.cli import run
from hsvae_hf.data import tokenize_dataset
from hsvae_hf.tokenization import train_tokenizer
from hsvae_hf.trainer import TextVAETrainer
from hsvae_hf.training_arguments import TextVAETrainingArguments

TOPICS = {
    "animals": [
        "the cat sees a dog",
        "a horse and a cow eat grass",
        "the bird sings to the cat",
        "a dog barks at birds",
    ],
    "numbers": ["one and two make three", "four minus one is three", "ten is twice five", "two times five is ten"],
    "cities": [
        "the road to rome is long",
        "trains from paris to london",
        "london and rome are old",
        "paris has a river",
    ],
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    torch.set_flush_denormal(False)  # which scripts switch on for their whole process


@pytest.fixture
def data_dir():
    folder = os.environ.get("HSVAE_DATA_DIR")
    if not folder:
        pytest.skip("set HSVAE_DATA_DIR to the folder with the Yelp, Yahoo and DBpedia parquet files")
    return Path(folder)


@pytest.fixture(scope="session")
def sentences():
    return [text for texts in TOPICS.values() for text in texts]


@pytest.fixture(scope="session")
def labels():
    return [topic for topic, texts in TOPICS.items() for _ in texts]


@pytest.fixture
def corpus(tmp_path, sentences, labels):
    """File of the sentences and their classes, each three times."""
    path = tmp_path / "corpus.jsonl"
    rows = [{"text": text, "label": label} for text, label in zip(sentences, labels, strict=True)] * 3
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def ended(capsys):
    """A function that runs a script which does not end well: its exit code and the lines of stderr."""

    def end(name, *arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            run(lambda: script(name, *arguments))
        return caught.value.code, capsys.readouterr().err.replace("\r", "\n").strip().split("\n")

    return end


@pytest.fixture
def refused(ended):
    """A function that runs a script on bad input: the line that it ends with."""

    def refuse(name, *arguments):
        code, lines = ended(name, *arguments)
        assert code == 2
        assert lines[-1].startswith("error: ")
        return lines[-1]

    return refuse


@pytest.fixture(scope="session")
def tokenizer(sentences):
    return train_tokenizer(sentences, max_length=12)


@pytest.fixture
def small_config(tokenizer):
    sizes = {"vocab_size": len(tokenizer), "embedding_size": 8, "hidden_size": 12, "latent_size": 6}
    return hsvae_hf.HSVAEConfig(**sizes, **hsvae_hf.RELEASED)


@pytest.fixture
def make_trainer(small_config, tokenizer, sentences, tmp_path):
    """A trainer of a tiny model on the sentences."""

    def make(folder="run", model=None, **options):
        torch.manual_seed(0)
        rows = tokenize_dataset(Dataset.from_dict({"text": sentences}), tokenizer)
        defaults = {"per_device_train_batch_size": 4, "logging_steps": 1, "report_to": "none", "seed": 7}
        arguments = TextVAETrainingArguments(output_dir=str(tmp_path / folder), **(defaults | options))
        return TextVAETrainer(
            model=hsvae_hf.HSVAEForPreTraining(small_config) if model is None else model(),
            args=arguments,
            train_dataset=rows,
            eval_dataset=rows.select(range(6)),
            data_collator=TextCollator(tokenizer),
            processing_class=tokenizer,
        )

    return make


@pytest.fixture
def saved_model(small_config, tokenizer, tmp_path):
    """Folder of an untrained pre-training model with its tokenizer."""
    folder = tmp_path / "saved-model"
    hsvae_hf.HSVAEForPreTraining(small_config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def encoder(tokenizer, tmp_path):
    """Folder of a plain text encoder with random weights."""
    folder = tmp_path / "encoder"
    torch.manual_seed(1)
    transformers.BertModel(bert(len(tokenizer))["encoder_config"]).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
