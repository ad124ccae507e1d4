"""Cards, and the way to the Hub and back, with the real client against the loopback Hub of hub_server.py.

Every process that loads torch costs seconds. What is pushed once and what is read once are therefore fixtures of the
module, and the tests look at what came of them; repositories that a test only reads are seeded, not pushed.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import circle
import pytest
import torch
from hub_server import Hub
from huggingface_hub import ModelCard
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import hsvae_hf
from hsvae_hf.hub import model_card
from hsvae_hf.runs import run_settings
from hsvae_hf.training_arguments import TextVAETrainingArguments

ROOT = Path(__file__).parent.parent
SENTENCES = ["the cat sees a dog", "one and two", "", "paris has a river and the road to rome is long and old too"]
BROKEN_CARD = "---\ntags: [sparse\nlicense: apache-2.0\n---\n# A card\n"
OWN_CARD = "---\nlicense: mit\n---\n# Written by hand\n"
PUSH = """
import contextlib, io, json, runpy, sys
from hsvae_hf.cli import run
main, results = runpy.run_path({script!r})["main"], []
for options in {pushes!r}:
    sys.argv = ["push_to_hub.py", *options]
    with contextlib.redirect_stderr(io.StringIO()) as shown:
        try:
            run(main)
            results.append((0, ""))
        except SystemExit as stopped:
            results.append((stopped.code, shown.getvalue().strip().splitlines()[-1]))
print("PUSHED", json.dumps(results))
"""
ALONE = """
import sys
sys.modules["hsvae_hf"] = None  # as if it were not installed
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer
trust = dict(trust_remote_code=True)
"""
CODES = f"""
import json, torch
def codes(repo, **options):
    tokenizer = AutoTokenizer.from_pretrained(repo, **options)
    inputs = tokenizer({SENTENCES!r}, padding=True, truncation=True, return_tensors="pt")
    return AutoModel.from_pretrained(repo, **options).eval()(**inputs).sparse_embedding.tolist()
def show(*found):
    print("FOUND", json.dumps(found))
"""
READER = """
import circle, re
from huggingface_hub import ModelCard
found = {"with trust": False}
try:
    AutoModel.from_pretrained("tester/hsvae", trust_remote_code=False)
except ValueError as error:
    found["without trust"] = str(error)
found |= circle.embed("tester/hsvae", sentences, **trust) | circle.classify("tester/classifier", sentences, **trust)
for repo in ("tester/hsvae", "tester/classifier"):
    card, names = ModelCard.load(repo), {}
    for block in re.findall(r"```python\\n(.*?)```", card.text, re.DOTALL):
        exec(block, names)
        if "inputs" in names and "found" not in names:
            names["found"] = names["code"]
    assert (names["codes"].to_dense() - names["found"]).abs().max() < 1e-6
    found[f"card of {repo}"] = names["found"].detach()
    found["classes"] = names["classify"](sentences[0])[0]["label"] if "classify" in names else None
names = {}
exec(readme, names)
found["README"] = [torch.tensor(names["code"]), names["codes"].to_dense()]
torch.manual_seed(0)
model = AutoModelForSequenceClassification.from_pretrained("tester/hsvae", num_labels=3, **trust)
model.push_to_hub("tester/again")
AutoTokenizer.from_pretrained("tester/hsvae", **trust).push_to_hub("tester/again")
torch.save(found, path)
"""


@pytest.fixture(params=[False], ids=["lfs"])
def hub(request, tmp_path):
    with Hub(tmp_path, xet=request.param) as hub:
        yield hub


@pytest.fixture(scope="module")
def run_folder(tokenizer, tmp_path_factory):
    """A run: a model, its tokenizer, and what the scripts write beside them."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    torch.manual_seed(0)
    config = hsvae_hf.HSVAEConfig(vocab_size=len(tokenizer), embedding_size=8, hidden_size=12, latent_size=6)
    hsvae_hf.HSVAEForPreTraining(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    report = {"rows": 12, "reconstruction_loss": 9.5, "active_dims": 2.25, "accuracy": {"code": 0.75, "tfidf": 0.8}}
    report["settings"] = {"split": "test", "hsvae_hf": "0.1.0"}
    (folder / "report.json").write_text(json.dumps(report))
    (folder / "all_results.json").write_text(json.dumps({"train_loss": 10.0}))
    (folder / "train_settings.json").write_text(json.dumps({"dataset": "dbpedia", "learning_rate": 8e-4}))
    shutil.copyfile(ROOT / "model_cards/quickstart/gates.png", folder / "gates.png")
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1/optimizer.pt").write_bytes(b"not to be pushed")
    (folder / "notes.txt").write_text("not to be pushed")
    return folder


@pytest.fixture(scope="module")
def classifier_folder(run_folder, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "classifier"
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(run_folder, id2label={0: "a", 1: "b", 2: "c"})
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def published(run_folder, classifier_folder, tmp_path_factory):
    """A hub with tester/hsvae and tester/classifier, pushed while the server fails for a moment."""
    before = snapshot(run_folder)
    with Hub(tmp_path_factory.mktemp("hub")) as hub:
        hub.fail("PUT", "/upload/", status=500, times=1)
        pushes = [options(run_folder, "tester/hsvae"), options(classifier_folder, "tester/classifier")]
        assert push(hub, *pushes) == [(0, ""), (0, "")]
        assert snapshot(run_folder) == before
        yield hub


@pytest.fixture(scope="module")
def reader(published, tmp_path_factory):
    """What a process without this package computes with both repositories."""
    path = tmp_path_factory.mktemp("reader") / "found.pt"
    repository = published.repos["model", "tester/hsvae"]
    repository.tags["v1"] = repository.branches["main"]
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Share")[2]
    readme = section.partition("```python\n")[2].partition("```")[0].replace("me/hsvae-docstrings", "tester/hsvae")
    code = f"{ALONE}\npath, sentences, readme = {str(path)!r}, {SENTENCES!r}, {readme!r}\n{READER}"
    done = published.run(code, PYTHONPATH=str(ROOT / "tests"))
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(path)


def options(folder, repo_id, **others):
    named = {"model_name_or_path": folder, "repo_id": repo_id, **others}
    return [word for name, value in named.items() for word in (f"--{name}", str(value))]


def push_code(*pushes):
    return PUSH.format(script=str(ROOT / "scripts/push_to_hub.py"), pushes=pushes)


def push(hub, *pushes, **environment):
    """Run the script once for each list of options, in one process; returns exit codes and last lines of stderr."""
    done = hub.run(push_code(*pushes), PYTHONPATH=str(ROOT), **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return [tuple(result) for result in json.loads(done.stdout.rpartition("PUSHED ")[2])]


def shown(done):
    """What a process handed to `show`, as tensors."""
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.tensor(value) for value in json.loads(done.stdout.rpartition("FOUND ")[2])]


def commits(hub, repo_id=""):
    found = [request for request in hub.requests if f"{repo_id}/commit/" in request.path]
    return [request for request in found if request.method == "POST" and request.status == 200]


def snapshot(folder):
    return {str(path): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def codes_of(folder):
    """What `CODES` computes elsewhere: the same rows in one batch, so the same bits."""
    model, tokenizer = hsvae_hf.loading.load_for_inference(folder)
    inputs = tokenizer(SENTENCES, padding=True, truncation=True, return_tensors="pt")
    return model.base_model(**inputs).sparse_embedding.detach()


def written(folder, files):
    """A folder with the files of a repository."""
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def test_card_holds_what_was_measured_and_nothing_else(run_folder, tmp_path):
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
    bare_folder = shutil.copytree(run_folder, tmp_path / "bare")
    for name in ("report.json", "gates.png", "train_settings.json"):
        (bare_folder / name).unlink()
    bare = model_card(bare_folder, "me/other")
    assert not {"datasets", "license", "model-index"} & set(bare.data.to_dict())
    for heading in ("## Training", "## Evaluation", "![Which"):
        assert heading not in str(bare)
    assert "| latent dimensions | 6 |" in str(bare)


def test_card_of_a_classifier_says_so_and_names_no_path(classifier_folder, tmp_path):
    folder = shutil.copytree(classifier_folder, tmp_path / "classifier")
    settings = {"dataset": "docstrings", "model_name_or_path": "/home/somebody/runs/hsvae"}
    (folder / "train_settings.json").write_text(json.dumps(settings))
    (folder / "all_results.json").write_text(json.dumps({"test_accuracy": 0.5}))
    card = model_card(folder, "me/classifier")
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.eval_results[0].dataset_name == "docstrings"
    text = str(card)
    assert "On top, a classifier trained with labels." in text
    assert "Classes: a, b, c." in text
    assert "Trained without labels" not in text
    assert "| model_name_or_path | hsvae |" in text
    assert card.data.base_model is None
    arguments = TextVAETrainingArguments(output_dir=str(folder))
    assert "base_model" not in run_settings(arguments, encoder_name_or_path=str(folder))
    settings = run_settings(arguments, encoder_name_or_path="somebody/encoder")
    (folder / "train_settings.json").write_text(json.dumps(settings))
    assert model_card(folder, "me/classifier").data.base_model == "somebody/encoder"
    assert "somebody" not in text


CARDS = sorted(path.parent for path in (ROOT / "model_cards").glob("*/config.json"))


@pytest.mark.parametrize("folder", CARDS, ids=lambda folder: folder.name)
def test_the_committed_cards_are_what_their_files_give(folder):
    assert (folder / "README.md").read_text(encoding="utf-8") == str(model_card(folder, f"hsvae-hf/{folder.name}"))


def test_a_run_goes_to_the_hub_in_one_commit_for_each_model(published, run_folder):
    assert len(commits(published)) == 2
    assert next(request.status for request in published.requests if request.method == "PUT") == 500
    files = published.files("tester/hsvae")
    code = {name for name in files if name.endswith(".py")}
    data = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    data |= {"modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "README.md"}
    data |= {"report.json", "all_results.json", "train_settings.json", "gates.png", ".gitattributes"}
    assert set(files) == code | data
    assert "modeling_hsvae.py" in code
    assert not code & {"modeling_vsc.py", "training.py"}
    for name in ("gates.png", "report.json", "tokenizer.json", "model.safetensors"):
        assert files[name] == (run_folder / name).read_bytes()
    assert files["modeling_hsvae.py"] == (ROOT / "hsvae_hf/modeling_hsvae.py").read_bytes()
    ModelCard(files["README.md"].decode())
    assert not published.failures


def test_without_the_package_codes_and_loss_are_the_same_to_the_bit(reader, run_folder):
    here = circle.embed(run_folder, SENTENCES)
    for name, value in here.items():
        assert torch.equal(reader[name], value), name
    model, tokenizer = hsvae_hf.loading.load_for_inference(run_folder)
    codes = torch.tensor(hsvae_hf.encode(model, tokenizer, SENTENCES).toarray())
    assert torch.equal(reader["codes, SparseEncoder"], codes)  # both sort by length
    torch.testing.assert_close(reader["codes, pipeline"], codes, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(reader["similarity, SparseEncoder"], codes @ codes.T, atol=1e-6, rtol=1e-5)
    assert reader["active dimensions"].item() == pytest.approx((codes != 0).sum().item() / len(SENTENCES))


def test_the_pipeline_gives_marginalised_probabilities(reader, classifier_folder):
    classifier = AutoModelForSequenceClassification.from_pretrained(classifier_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(classifier_folder)
    for samples in (circle.DRAWS, 0):
        expected = circle.marginal(classifier, tokenizer, SENTENCES, samples)
        torch.testing.assert_close(reader[f"probabilities, K = {samples}"], expected, atol=1e-6, rtol=1e-5)


def test_what_the_cards_and_the_readme_say_runs(reader):
    code, codes = reader["README"]
    assert code.shape == (6,)
    torch.testing.assert_close(code, codes[1], atol=1e-6, rtol=1e-5)
    assert reader["card of tester/hsvae"].shape == (1, 6)
    torch.testing.assert_close(
        reader["card of tester/hsvae"], reader["card of tester/classifier"], atol=1e-6, rtol=1e-5
    )
    assert reader["classes"] in "abc"


def test_without_trust_and_without_the_package_the_error_says_what_to_do(reader):
    assert "trust_remote_code=True" in reader["without trust"]


def test_a_model_loaded_without_the_package_is_pushed_whole(reader, published, run_folder, tmp_path):
    files = published.files("tester/again")
    code = {name for name in published.files("tester/hsvae") if name.endswith(".py")}
    assert code | {"modules.json", "README.md", "tokenizer.json"} <= set(files)
    for value in json.loads(files["config.json"])["auto_map"].values():
        assert f"{value.partition('.')[0]}.py" in files
    folder = written(tmp_path / "again", files)
    assert torch.equal(codes_of(folder), codes_of(run_folder))
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    weights = loaded.classifier[0].weight  # not in tester/hsvae: LeCun's, of variance 1 / inputs
    assert weights.std().item() == pytest.approx(6**-0.5, rel=0.2)
    assert loaded.classifier[0].bias.abs().max() == 0


@pytest.mark.parametrize("hub", [True], ids=["xet"], indirect=True)
def test_xet_and_private_repositories_work_too(hub, run_folder):
    assert push(hub, options(run_folder, "tester/hsvae", private=True)) == [(0, "")]
    assert hub.repos["model", "tester/hsvae"].private
    (found,) = shown(hub.run(f"{ALONE}{CODES}show(codes('tester/hsvae', **trust))"))
    assert torch.equal(found, codes_of(run_folder))
    assert not hub.failures


def test_revisions_pin(hub, published, run_folder, tmp_path):
    files = published.files("tester/hsvae")
    first = hub.seed("tester/hsvae", files)
    first.tags["v1"] = first.branches["main"]
    model = hsvae_hf.HSVAEForPreTraining.from_pretrained(run_folder)
    with torch.no_grad():
        model.model.latent_head.slab.weight.mul_(-1)
    model.save_pretrained(tmp_path / "new")
    hub.seed("tester/hsvae", {"model.safetensors": (tmp_path / "new/model.safetensors").read_bytes()})
    both = "show(codes('tester/hsvae', revision='v1', **trust), codes('tester/hsvae', **trust))"
    pinned, latest = shown(hub.run(ALONE + CODES + both))
    assert torch.equal(pinned, codes_of(run_folder))
    assert not torch.equal(latest, pinned)


def test_trainer_and_model_push_themselves(hub, run_folder, tmp_path):
    code = f"""
import hsvae_hf, torch
from datasets import Dataset
from transformers import AutoModelForPreTraining, AutoTokenizer
from hsvae_hf.batching import TextCollator
from hsvae_hf.data import tokenize_dataset
from hsvae_hf.trainer import TextVAETrainer
from hsvae_hf.training_arguments import TextVAETrainingArguments
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
model.save_pretrained({str(tmp_path / "asked")!r}, push_to_hub=True, repo_id="tester/asked", create_pr=True)
model.save_pretrained({str(tmp_path / "local")!r})
tokenizer.save_pretrained({str(tmp_path / "local")!r})
"""
    done = hub.run(code, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr[-3000:]
    needed = {"config.json", "model.safetensors", "modeling_hsvae.py", "modules.json", "README.md"}
    for name in ("trained", "alone", "third"):
        assert needed <= set(hub.files(f"tester/{name}")), name
    assert "config.json" not in hub.files("tester/asked")
    assert needed <= set(hub.files("tester/asked", revision="refs/pr/1"))
    found = shown(hub.run(ALONE + CODES + "show(*(codes(f'tester/{name}', **trust) for name in ('trained', 'alone')))"))
    for codes in found:
        assert torch.equal(codes, codes_of(tmp_path / "local"))
    assert "## Use" in hub.files("tester/trained")["README.md"].decode()


REFUSED = {  # what is wrong: options of the push, and what the one line of the error says
    "no token": ({}, "`repo_id` must be a repository that your token may write"),
    "wrong token": ({"token": "wrong"}, "`repo_id` must be a repository that your token may write"),
    "read token": ({"token": "reader"}, "`repo_id` must be a repository that your token may write"),
    "namespace": ({"repo_id": "someone-else/hsvae"}, "`repo_id` must be a repository that your token may write"),
    "commit fails": ({}, "`repo_id` must be a repository that the Hub answers for"),
    "another type": ({}, "`repo_id` must not hold a model of another type"),
    "type not told": ({}, "`repo_id` must be a repository that the Hub answers for"),
    "broken card": ({"card": "broken.md"}, "`card` must be a README.md that begins with metadata in YAML"),
    "card refused": ({"card": "refused.md"}, "`card` must be a README.md that begins with metadata in YAML"),
    "no card": ({"card": "missing.md"}, "`card` must be a README.md that begins with metadata in YAML"),
    "no weights": ({"model_name_or_path": "no weights"}, "`model_name_or_path` must be the folder"),
    "no tokenizer": ({"model_name_or_path": "no tokenizer"}, "`model_name_or_path` must be the folder"),
    "no folder": ({"model_name_or_path": "no folder"}, "`model_name_or_path` must be the folder"),
}
BERT = {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"weights"}


@pytest.fixture(scope="module")
def refusals(run_folder, tmp_path_factory):
    """A hub, and by case what the push printed and its repository, after a push of each case of `REFUSED`."""
    folder = tmp_path_factory.mktemp("refused")
    for name in ("no weights", "no tokenizer"):
        shutil.copytree(run_folder, folder / name)
    (folder / "no weights/model.safetensors").write_bytes(b"12345678")
    (folder / "no tokenizer/tokenizer.json").unlink()
    (folder / "broken.md").write_text(BROKEN_CARD)
    (folder / "refused.md").write_text("---\npipeline_tag: [no, string]\n---\n")
    before, pushes, repositories = snapshot(run_folder), [], []
    with Hub(tmp_path_factory.mktemp("hub")) as hub:
        hub.add_token("reader", role="read")
        for number, (case, (changes, _)) in enumerate(REFUSED.items()):
            paths = {name: folder / value for name, value in changes.items() if name not in ("token", "repo_id")}
            named = {"repo_id": f"tester/model-{number}", "model_name_or_path": run_folder} | changes | paths
            named |= {} if case == "no token" else {"token": changes.get("token", hub.token)}
            repositories.append(named["repo_id"])
            pushes.append(options(named.pop("model_name_or_path"), named.pop("repo_id"), **named))
            if case in ("another type", "type not told"):
                hub.seed(repositories[-1], BERT)
            if case == "commit fails":
                hub.fail("POST", f"{repositories[-1]}/commit/", status=500, times=100)
            if case == "type not told":
                hub.fail("HEAD", f"{repositories[-1]}/resolve/main/config.json", status=500, times=100)
        results = push(hub, *pushes, HF_TOKEN=None)
        assert snapshot(run_folder) == before
        yield hub, dict(zip(REFUSED, zip(results, repositories, strict=True), strict=True))


@pytest.mark.parametrize("case", REFUSED)
def test_a_push_that_cannot_be_done_is_one_clear_line_and_changes_nothing(refusals, case):
    hub, found = refusals
    (code, line), repo_id = found[case]
    assert code == 2
    assert line.startswith(f"error: {REFUSED[case][1]}")
    assert not commits(hub, repo_id)
    if case in ("another type", "type not told"):
        assert {name: hub.files(repo_id)[name] for name in BERT} == BERT
    elif ("model", repo_id) in hub.repos:
        assert set(hub.files(repo_id)) == {".gitattributes"}
    if case.startswith("no ") and case not in ("no token", "no card"):
        assert not any(repo_id in request.path for request in hub.requests)


def test_what_was_asked_for_is_replaced(hub, run_folder, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    (folder / "report.json").unlink()
    (tmp_path / "own.md").write_text(OWN_CARD)
    hub.seed("tester/hsvae", BERT | {"report.json": "{}", "kept.txt": "by its owner"})
    assert push(hub, options(folder, "tester/hsvae", overwrite=True, card=tmp_path / "own.md")) == [(0, "")]
    files = hub.files("tester/hsvae")
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert files["README.md"].decode() == OWN_CARD
    assert "report.json" not in files  # of the other model
    assert files["kept.txt"] == b"by its owner"


def test_a_push_that_is_killed_leaves_all_as_it_was(hub, run_folder, tmp_path):
    before = snapshot(run_folder)
    for moment in ("/upload/", "/commit/"):
        waiting = hub.slow(moment, seconds=3600, times=1)
        process = subprocess.Popen(
            [sys.executable, "-c", push_code(options(run_folder, "tester/hsvae"))],
            env=hub.environment(PYTHONPATH=str(ROOT), TMPDIR=str(tmp_path)),
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 200
        while waiting.times and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
        assert process.wait() == -9, "the push ended before it was killed"
        assert waiting.times == 0
        assert set(hub.files("tester/hsvae")) == {".gitattributes"}
        assert snapshot(run_folder) == before
    assert push(hub, options(run_folder, "tester/hsvae")) == [(0, "")]
    assert torch.equal(codes_of(written(tmp_path / "back", hub.files("tester/hsvae"))), codes_of(run_folder))


LOAD = """
from hsvae_hf.cli import run
from hsvae_hf.loading import load_for_inference
try:
    run(lambda: load_for_inference({repo!r}))
except SystemExit:
    pass
"""


def test_with_the_package_bad_lines_broken_cards_and_offline_machines_do_no_harm(hub, published, run_folder, tmp_path):
    hub.seed("tester/hsvae", published.files("tester/hsvae") | {"README.md": BROKEN_CARD})
    hub.cut("model.safetensors|/storage", after_bytes=2_000, times=1)
    hub.slow("config.json", 0.5)
    home, code = str(tmp_path / "home"), "import hsvae_hf\nfrom transformers import AutoModel, AutoTokenizer\n" + CODES
    environment = {"HF_HOME": home, "PYTHONPATH": str(ROOT)}
    (found,) = shown(hub.run(code + "show(codes('tester/hsvae'))", **environment))  # no trust is needed
    assert torch.equal(found, codes_of(run_folder))

    asked = len(hub.requests)
    code = LOAD.format(repo="tester/other") + push_code(options(run_folder, "tester/new")) + code
    done = hub.run(code + "show(codes('tester/hsvae'))", HF_HUB_OFFLINE="1", **environment)
    assert torch.equal(shown(done)[0], found)
    assert "error: `model_name_or_path` must be the folder or the Hub id" in done.stderr
    ((_, line),) = json.loads(done.stdout.partition("PUSHED ")[2].splitlines()[0])
    assert line.startswith("error: `repo_id` must be a repository that the Hub answers for, got 'tester/new': ")
    assert "HF_HUB_OFFLINE" in line
    assert len(hub.requests) == asked


def test_a_hub_that_cannot_be_reached_is_one_clear_line(hub, run_folder):
    code = LOAD.format(repo="tester/hsvae") + push_code(options(run_folder, "tester/hsvae"))
    done = hub.run(code, PYTHONPATH=str(ROOT), HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "error: `model_name_or_path` must be the folder or the Hub id" in done.stderr.strip().splitlines()[-1]
    ((status, line),) = json.loads(done.stdout.rpartition("PUSHED ")[2])
    assert status == 2
    assert line.startswith("error: `repo_id` must be a repository that the Hub answers for, got 'tester/hsvae': ")
    assert not hub.requests


def test_metrics_are_spaces_that_evaluate_loads(hub):
    names = ("average_hoyer", "active_dims")
    code = f"from hsvae_hf.hub import push_metric\nfor name in {names}: push_metric(name, 'tester/' + name)"
    done = hub.run(code, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr[-3000:]
    for name in names:
        assert {f"{name}.py", "README.md"} <= set(hub.files(f"tester/{name}", "space"))
    load = f"""
import sys
sys.modules["hsvae_hf"] = None
import evaluate, json
codes = [[1.0, 0, 0, 0], [1, 1, 1, 1]]
print("FOUND", json.dumps([evaluate.load("tester/" + name).compute(predictions=codes) for name in {names}]))
"""
    done = hub.run(load)
    assert done.returncode == 0, done.stderr[-3000:]
    hoyer, active = json.loads(done.stdout.rpartition("FOUND ")[2])
    assert hoyer == evaluate_here("average_hoyer")
    assert active == evaluate_here("active_dims")
    assert active["active_dims"] == 2.5


def evaluate_here(name):
    import evaluate

    from hsvae_hf.metrics import metric_path

    return evaluate.load(metric_path(name)).compute(predictions=[[1.0, 0, 0, 0], [1, 1, 1, 1]])


def test_tokenized_data_goes_to_the_hub_and_streams_back(hub, run_folder):
    code = f"""
from datasets import Dataset, load_dataset
from hsvae_hf.data import tokenize_dataset
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained({str(run_folder)!r})
rows = tokenize_dataset(Dataset.from_dict({{"text": {SENTENCES!r}, "label": [0, 1, 1, 0]}}), tokenizer)
rows.push_to_hub("tester/tokens")
back = list(load_dataset("tester/tokens", split="train", streaming=True))
assert back == list(rows), (back, list(rows))
"""
    done = hub.run(code, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr[-3000:]
    assert any(name.endswith(".parquet") for name in hub.files("tester/tokens", "dataset"))
