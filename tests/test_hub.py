"""Cards, and the way to the Hub and back, with the real client against the loopback Hub of hub_server.py."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from hub_server import Hub
from huggingface_hub import ModelCard

import hsvae_hf
from hsvae_hf.hub import model_card

ROOT = Path(__file__).parent.parent
SENTENCES = ["the cat sees a dog", "one and two", ""]
PUSH = """
import runpy, sys
sys.argv = ["push_to_hub.py", *{arguments!r}]
from hsvae_hf.cli import run
run(runpy.run_path({script!r})["main"])
"""
ALONE = """
import sys
sys.modules["hsvae_hf"] = None  # as if it were not installed
import torch
from transformers import *
repo, trust = "tester/hsvae", dict(trust_remote_code=True)
"""
CODES = """
tokenizer = AutoTokenizer.from_pretrained(repo, **trust)
inputs = tokenizer({sentences!r}, padding=True, return_tensors="pt")
codes = AutoModel.from_pretrained(repo, **trust).eval()(**inputs).sparse_embedding
print("CODES", codes.tolist())
"""


@pytest.fixture(params=[False], ids=["lfs"])
def hub(request, tmp_path):
    with Hub(tmp_path, xet=request.param) as hub:
        yield hub


@pytest.fixture
def run_folder(saved_model):
    """A run: a model, its tokenizer, and what the scripts write beside them."""
    report = {"rows": 12, "reconstruction_loss": 9.5, "active_dims": 2.25, "accuracy": {"code": 0.75, "tfidf": 0.8}}
    report["settings"] = {"split": "test", "hsvae_hf": "0.1.0"}
    (saved_model / "report.json").write_text(json.dumps(report))
    (saved_model / "all_results.json").write_text(json.dumps({"train_loss": 10.0}))
    (saved_model / "train_settings.json").write_text(json.dumps({"dataset": "dbpedia", "learning_rate": 8e-4}))
    shutil.copyfile(ROOT / "model_cards/quickstart-gates.png", saved_model / "gates.png")
    (saved_model / "checkpoint-1").mkdir()
    (saved_model / "checkpoint-1/optimizer.pt").write_bytes(b"not to be pushed")
    (saved_model / "notes.txt").write_text("not to be pushed")
    return saved_model


def push(hub, *arguments, **environment):
    code = PUSH.format(arguments=list(map(str, arguments)), script=str(ROOT / "scripts/push_to_hub.py"))
    return hub.run(code, PYTHONPATH=str(ROOT), **environment)


def commits(hub):
    return [request for request in hub.requests if request.method == "POST" and "/commit/" in request.path]


def snapshot(folder):
    return {str(path): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def codes_of(folder):
    model, tokenizer = hsvae_hf.encoding.load_for_inference(folder)
    return hsvae_hf.encode(model, tokenizer, SENTENCES).toarray()


def printed_codes(done):
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.tensor(json.loads(done.stdout.partition("CODES ")[2].splitlines()[0]))


def test_card_holds_what_was_measured_and_nothing_else(run_folder):
    card = model_card(run_folder, "me/hsvae-dbpedia")
    data = card.data.to_dict()
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "feature-extraction"
    assert data["datasets"] == ["fancyzhx/dbpedia_14"]
    assert data["license"] == "cc-by-sa-3.0"
    metrics = {metric.metric_name: metric.metric_value for metric in card.data.eval_results}
    assert metrics["active dimensions per sentence"] == 2.25
    assert metrics["accuracy of logistic regression on the code"] == 0.75
    assert not any("TF-IDF" in name for name in metrics)
    text = str(card)
    assert "| accuracy of logistic regression on TF-IDF, same rows | 0.8 |" in text
    assert "![Which dimensions" in text
    assert "gate_std" not in text
    assert "None" not in text
    for name in ("report.json", "gates.png", "train_settings.json"):
        (run_folder / name).unlink()
    bare = model_card(run_folder, "me/other")
    assert not {"datasets", "license", "model-index"} & set(bare.data.to_dict())
    for heading in ("## Training", "## Evaluation", "![Which"):
        assert heading not in str(bare)
    assert "| latent dimensions | 6 |" in str(bare)


def test_card_usage_runs(hub, run_folder):
    assert push(hub, "--model_name_or_path", run_folder, "--repo_id", "tester/hsvae").returncode == 0
    card = hub.files("tester/hsvae")["README.md"].decode()
    first, second = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[:2]
    checks = "\nassert code.shape == (1, 6)\n{}\nassert abs(codes.to_dense() - code).max() < 1e-6"
    done = hub.run("import sys; sys.modules['hsvae_hf'] = None\n" + first + checks.format(second))
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("hub", [False, True], ids=["lfs", "xet"], indirect=True)
def test_a_run_goes_to_the_hub_in_one_commit_and_back(hub, run_folder):
    before = snapshot(run_folder)
    done = push(hub, "--model_name_or_path", run_folder, "--repo_id", "tester/hsvae")
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(commits(hub)) == 1
    assert snapshot(run_folder) == before
    files = hub.files("tester/hsvae")
    code = {name for name in files if name.endswith(".py")}
    data = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    data |= {"modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "README.md"}
    data |= {"report.json", "all_results.json", "train_settings.json", "gates.png", ".gitattributes"}
    assert set(files) == code | data
    assert "modeling_hsvae.py" in code
    assert not code & {"modeling_vsc.py", "training.py"}
    for name in ("gates.png", "report.json", "tokenizer.json"):
        assert files[name] == (run_folder / name).read_bytes()
    assert files["modeling_hsvae.py"] == (ROOT / "hsvae_hf/modeling_hsvae.py").read_bytes()
    ModelCard(files["README.md"].decode())

    expected = torch.tensor(codes_of(run_folder))
    load = CODES.format(sentences=SENTENCES)
    sparse = f"""
from sentence_transformers import SparseEncoder
found = SparseEncoder(repo, **trust).encode({SENTENCES!r}).to_dense()
assert (found - codes).abs().max() < 1e-6
"""
    assert torch.equal(printed_codes(hub.run(ALONE + load + sparse)), expected)
    trusting = "import hsvae_hf\nfrom transformers import *\nrepo, trust = 'tester/hsvae', {}\n"
    assert torch.equal(printed_codes(hub.run(trusting + load, PYTHONPATH=str(ROOT))), expected)
    assert not hub.failures


def test_revisions_pin(hub, run_folder):
    arguments = ("--model_name_or_path", run_folder, "--repo_id", "tester/hsvae")
    assert push(hub, *arguments).returncode == 0
    expected = torch.tensor(codes_of(run_folder))
    done = hub.run("from huggingface_hub import create_tag; create_tag('tester/hsvae', tag='v1')")
    assert done.returncode == 0, done.stderr
    model = hsvae_hf.HSVAEForPreTraining.from_pretrained(run_folder)
    with torch.no_grad():
        model.model.latent_head.slab.weight.mul_(-1)
    model.save_pretrained(run_folder)
    assert push(hub, *arguments).returncode == 0
    pinned = ALONE.replace("trust_remote_code=True", "trust_remote_code=True, revision='v1'")
    assert torch.equal(printed_codes(hub.run(pinned + CODES.format(sentences=SENTENCES))), expected)
    latest = printed_codes(hub.run(ALONE + CODES.format(sentences=SENTENCES)))
    assert not torch.equal(latest, expected)


def test_trainer_and_model_push_themselves(hub, run_folder, tmp_path):
    code = f"""
import hsvae_hf, torch
from datasets import Dataset
from transformers import AutoModelForPreTraining, AutoTokenizer
from hsvae_hf.data import TextCollator, tokenize_dataset
from hsvae_hf.training import TextVAETrainer, TextVAETrainingArguments
folder = {str(run_folder)!r}
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForPreTraining.from_pretrained(folder)
rows = tokenize_dataset(Dataset.from_dict({{"text": {SENTENCES!r}}}), tokenizer)
arguments = TextVAETrainingArguments(output_dir={str(tmp_path / "out")!r}, max_steps=1, report_to="none",
    hub_model_id="tester/trained", save_strategy="no", eval_strategy="no", hub_token={hub.token!r})
trainer = TextVAETrainer(model, arguments, TextCollator(tokenizer), rows, processing_class=tokenizer)
trainer.train()
trainer.push_to_hub()
model.push_to_hub("tester/alone")
tokenizer.push_to_hub("tester/alone")
model.save_pretrained({str(tmp_path / "third")!r}, push_to_hub=True, repo_id="tester/third")
"""
    done = hub.run(code, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr[-3000:]
    needed = {"config.json", "model.safetensors", "modeling_hsvae.py", "modules.json", "README.md"}
    for name in ("trained", "alone", "third"):
        assert needed <= set(hub.files(f"tester/{name}")), name
    for name in ("trained", "alone"):
        found = printed_codes(hub.run(ALONE.replace("/hsvae", f"/{name}") + CODES.format(sentences=SENTENCES)))
        assert found.shape == (3, 6)
    assert "## Use" in hub.files("tester/trained")["README.md"].decode()


def test_a_commit_that_fails_leaves_all_as_it_was(hub, run_folder):
    before = snapshot(run_folder)
    hub.fail("POST", "/commit/", status=500, times=100)
    done = push(hub, "--model_name_or_path", run_folder, "--repo_id", "tester/hsvae")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: `repo_id` must be a repository that your token may")
    assert snapshot(run_folder) == before
    assert "config.json" not in hub.files("tester/hsvae")


@pytest.mark.parametrize(
    ("token", "repo_id"), [("wrong", "tester/hsvae"), ("reader", "tester/hsvae"), (None, "someone-else/hsvae")]
)
def test_no_permission_is_one_clear_line(hub, run_folder, token, repo_id):
    hub.add_token("reader", role="read")
    changes = {} if token is None else {"HF_TOKEN": token}
    done = push(hub, "--model_name_or_path", run_folder, "--repo_id", repo_id, **changes)
    assert done.returncode == 2
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: `repo_id` must be a repository that your token may write")
    assert not commits(hub)
    hub.failures.clear()


def test_a_model_of_another_type_is_not_replaced_unasked(hub, run_folder):
    hub.seed("tester/hsvae", {"config.json": json.dumps({"model_type": "bert"}), "model.safetensors": b"weights"})
    arguments = ("--model_name_or_path", run_folder, "--repo_id", "tester/hsvae")
    done = push(hub, *arguments)
    assert done.returncode == 2
    assert "`repo_id` must not hold a model of another type" in done.stderr
    assert hub.files("tester/hsvae")["model.safetensors"] == b"weights"
    done = push(hub, *arguments, "--overwrite", "true")
    assert done.returncode == 0, done.stderr[-2000:]
    assert hub.files("tester/hsvae")["model.safetensors"] == (run_folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("damage", ["weights", "tokenizer", "nothing"])
def test_half_a_run_is_not_pushed(hub, run_folder, damage):
    if damage == "weights":
        (run_folder / "model.safetensors").write_bytes(b"12345678")
    elif damage == "tokenizer":
        (run_folder / "tokenizer.json").unlink()
    else:
        shutil.rmtree(run_folder)
    done = push(hub, "--model_name_or_path", run_folder, "--repo_id", "tester/hsvae")
    assert done.returncode == 2, done.stderr
    assert "`model_name_or_path` must be the folder" in done.stderr.strip().splitlines()[-1]
    assert not hub.requests


def test_downloads_survive_a_cut_and_a_slow_line(hub, run_folder):
    assert push(hub, "--model_name_or_path", run_folder, "--repo_id", "tester/hsvae").returncode == 0
    hub.cut("model.safetensors|/storage", after_bytes=2_000, times=1)
    hub.slow("config.json", 0.5)
    found = printed_codes(hub.run(ALONE + CODES.format(sentences=SENTENCES)))
    assert torch.equal(found, torch.tensor(codes_of(run_folder)))


def test_offline_works_from_a_warm_cache_and_says_so_from_a_cold_one(hub, run_folder, tmp_path):
    assert push(hub, "--model_name_or_path", run_folder, "--repo_id", "tester/hsvae").returncode == 0
    home = str(tmp_path / "home")
    code = ALONE + CODES.format(sentences=SENTENCES)
    warm = printed_codes(hub.run(code, HF_HOME=home))
    asked = len(hub.requests)
    assert torch.equal(printed_codes(hub.run(code, HF_HOME=home, HF_HUB_OFFLINE="1")), warm)
    assert len(hub.requests) == asked
    load = "from hsvae_hf.encoding import load_for_inference\nfrom hsvae_hf.cli import run\n"
    load += "run(lambda: load_for_inference('tester/hsvae'))"
    cold = hub.run(load, HF_HUB_OFFLINE="1", PYTHONPATH=str(ROOT))
    assert cold.returncode == 2
    assert "`model_name_or_path` must be the folder or the Hub id" in cold.stderr.strip().splitlines()[-1]


def test_loading_without_trust_and_without_the_package_says_what_to_do(hub, run_folder):
    assert push(hub, "--model_name_or_path", run_folder, "--repo_id", "tester/hsvae").returncode == 0
    done = hub.run(ALONE + "AutoModel.from_pretrained(repo, trust_remote_code=False)")
    assert done.returncode != 0
    assert "trust_remote_code=True" in done.stderr


def test_a_metric_is_a_space_that_evaluate_loads(hub):
    code = "from hsvae_hf.hub import push_metric\nprint(push_metric('average_hoyer', 'tester/average_hoyer'))"
    done = hub.run(code, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr[-3000:]
    assert {"average_hoyer.py", "README.md"} <= set(hub.files("tester/average_hoyer", "space"))
    load = """
import sys
sys.modules["hsvae_hf"] = None
import evaluate
print("VALUE", evaluate.load("tester/average_hoyer").compute(predictions=[[1.0, 0, 0, 0], [1, 1, 1, 1]]))
"""
    done = hub.run(load)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "average_hoyer" in done.stdout


def test_tokenized_data_goes_to_the_hub_and_streams_back(hub, run_folder):
    code = f"""
from datasets import Dataset, load_dataset
from hsvae_hf.data import tokenize_dataset
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained({str(run_folder)!r})
rows = tokenize_dataset(Dataset.from_dict({{"text": {SENTENCES!r}, "label": [0, 1, 1]}}), tokenizer)
rows.push_to_hub("tester/tokens")
back = list(load_dataset("tester/tokens", split="train", streaming=True))
assert back == list(rows), (back, list(rows))
"""
    done = hub.run(code, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr[-3000:]
    assert any(name.endswith(".parquet") for name in hub.files("tester/tokens", "dataset"))


def test_the_environment_of_these_tests_is_not_the_real_hub():
    assert os.environ["HF_HUB_OFFLINE"] == "1"
