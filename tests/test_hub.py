"""Cards, and the way to the Hub and back, with the real client against the loopback Hub of hub_server.py.

Every process that loads torch costs seconds. What is pushed once and what is read once are therefore fixtures of the
module, and several tests look at the results. A repository that a test only reads is seeded, not pushed.
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
from hub_server import Fault, Hub
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import hsvae_hf
from hsvae_hf.hub import model_card
from hsvae_hf.loading import load_for_inference
from hsvae_hf.runs import run_settings
from hsvae_hf.training_arguments import TextVAETrainingArguments

ROOT = Path(__file__).parent.parent
SENTENCES = ["the cat sees a dog", "one and two", "", "paris has a river and the road to rome is long and old too"]
BERT = {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"weights"}
BROKEN_CARD = "---\ntags: [sparse\n---\n# A card\n"
OWN_CARD = "---\nlicense: mit\n---\n# Written by hand\n"
PUSH = f"""
import contextlib, io, json, runpy, sys
from hsvae_hf.cli import run
sys.path.insert(0, {str(ROOT / "scripts")!r})  # as Python does for the script that it runs
main, results = runpy.run_path({str(ROOT / "scripts/push_to_hub.py")!r})["main"], []
for options in pushes:
    sys.argv = ["push_to_hub.py", *options]
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            run(main)
            results.append((0, ""))
        except SystemExit as stopped:
            results.append((stopped.code, errors.getvalue().strip().splitlines()[-1]))
print("PUSHED", json.dumps(results))
"""
CODES = f"""
import json
import hsvae_hf
from transformers import AutoModel, AutoTokenizer
model, tokenizer = (auto.from_pretrained("tester/hsvae") for auto in (AutoModel, AutoTokenizer))  # no trust is needed
print("CODES", json.dumps(hsvae_hf.encode(model, tokenizer, {SENTENCES}).toarray().tolist()))
"""
READER = """
import sys
sys.modules["hsvae_hf"] = None  # as if it were not installed
import circle, re, torch
from huggingface_hub import ModelCard
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer
trust, results = dict(trust_remote_code=True), {}
try:
    AutoModel.from_pretrained("tester/hsvae", trust_remote_code=False)
except ValueError as error:
    results["without trust"] = str(error)
results |= circle.embed("tester/hsvae", sentences, **trust) | circle.classify("tester/classifier", sentences, **trust)
for repo in ("tester/hsvae", "tester/classifier"):
    names = {}
    for block in re.findall(r"```python\\n(.*?)```", ModelCard.load(repo).text, re.DOTALL):
        exec(block, names)
    results[f"card of {repo}"] = names["code"].detach(), names["codes"].to_dense()
results["class"] = names["classify"](sentences[0])[0]["label"]
names = {}
exec(readme, names)
results["README"] = torch.tensor(names["code"]), names["codes"].to_dense()
torch.manual_seed(0)
model = AutoModelForSequenceClassification.from_pretrained("tester/hsvae", num_labels=3, **trust)
model.push_to_hub("tester/again")
AutoTokenizer.from_pretrained("tester/hsvae", **trust).push_to_hub("tester/again")
torch.save(results, path)
"""


@pytest.fixture
def hub(tmp_path):
    with Hub(tmp_path) as hub:
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
    with Hub(tmp_path_factory.mktemp("hub")) as hub:
        hub.faults.append(Fault("PUT", "/upload/", status=500))
        pushes = options(run_folder, "tester/hsvae", private=True), options(classifier_folder, "tester/classifier")
        assert push(hub, *pushes) == [(0, ""), (0, "")]
        yield hub


@pytest.fixture(scope="module")
def reader(published, run_folder, tmp_path_factory):
    """What a process without this package computes with both repositories, and with the README's code.

    The README's code is told to read revision v1 of tester/pinned, which is `run_folder`; main has other weights.
    """
    folder = tmp_path_factory.mktemp("reader")
    pinned = published.seed("tester/pinned", published.files("tester/hsvae"))
    pinned.commits["v1"] = pinned.commits["main"]
    other = hsvae_hf.HSVAEForPreTraining.from_pretrained(run_folder)
    with torch.no_grad():
        other.model.latent_head.slab.weight.mul_(-1)
    other.save_pretrained(folder / "other")
    published.seed("tester/pinned", {"model.safetensors": (folder / "other/model.safetensors").read_bytes()})
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Share")[2]
    readme = section.partition("```python\n")[2].partition("```")[0]
    readme = readme.replace("me/hsvae-docstrings", "tester/pinned").replace('"revision": "main"', '"revision": "v1"')
    path = folder / "results.pt"
    code = f"path, sentences, readme = {str(path)!r}, {SENTENCES!r}, {readme!r}\n{READER}"
    done = published.run(code, PYTHONPATH=str(ROOT / "tests"))
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(path)


def options(model_name_or_path, repo_id, **others):
    """The command line of a push."""
    named = {"model_name_or_path": model_name_or_path, "repo_id": repo_id, **others}
    return [word for name, value in named.items() if value is not None for word in (f"--{name}", str(value))]


def push(hub, *pushes, **environment):
    """Run the script once for each list of options, in one process; returns exit codes and last lines of stderr."""
    done = hub.run(f"pushes = {pushes}\n{PUSH}", PYTHONPATH=str(ROOT), **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return [tuple(result) for result in json.loads(done.stdout.rpartition("PUSHED ")[2])]


def commits(hub, repo_id=""):
    return [line for line in hub.requests if line.startswith("POST") and line.endswith(f"{repo_id}/commit/main 200")]


def contents(folder):
    return {str(path): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def codes_of(folder, sentences=SENTENCES):
    return torch.tensor(hsvae_hf.encode(*load_for_inference(folder), sentences).toarray())


def downloaded(hub, repo_id, folder):
    """A folder with the files of a repository."""
    folder.mkdir()
    for name, data in hub.files(repo_id).items():
        (folder / name).write_bytes(data)
    return folder


def test_card_holds_what_was_measured_and_nothing_else(run_folder, tmp_path):
    card = model_card(run_folder, "me/hsvae-dbpedia")
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "feature-extraction"
    assert card.data.datasets == ["fancyzhx/dbpedia_14"]
    assert card.data.license == "cc-by-sa-3.0"
    metrics = {metric.metric_name: metric.metric_value for metric in card.data.eval_results}
    assert metrics["active dimensions per sentence"] == 2.25
    assert metrics["accuracy of logistic regression on the code"] == 0.75
    assert not any("TF-IDF" in name for name in metrics)  # it is not the model's own, so the text alone has it
    text = str(card)
    assert "| accuracy of logistic regression on TF-IDF, same rows | 0.8 |" in text
    assert "![Which dimensions" in text
    assert "gate_std" not in text
    assert "None" not in text
    others = shutil.copytree(run_folder, tmp_path / "run")
    for encoder, base_model in (("somebody/encoder", "somebody/encoder"), (str(ROOT), None)):  # if it is on the Hub
        settings = run_settings(TextVAETrainingArguments(output_dir=str(others)), encoder_name_or_path=encoder)
        (others / "train_settings.json").write_text(json.dumps(settings))
        assert model_card(others, "me/model").data.base_model == base_model
    for name in ("report.json", "gates.png", "train_settings.json"):
        (others / name).unlink()
    bare = model_card(others, "me/other")
    assert not {"datasets", "license", "model-index"} & set(bare.data.to_dict())
    assert not any(heading in str(bare) for heading in ("## Training", "## Evaluation", "![Which"))
    assert "| latent dimensions | 6 |" in str(bare)


def test_card_of_a_classifier_says_so_and_names_no_path(classifier_folder, tmp_path):
    folder = shutil.copytree(classifier_folder, tmp_path / "classifier")
    settings = {"dataset": "docstrings", "model_name_or_path": "/home/somebody/runs/hsvae"}
    (folder / "train_settings.json").write_text(json.dumps(settings))
    (folder / "all_results.json").write_text(json.dumps({"test_accuracy": 0.5}))
    card = model_card(folder, "me/classifier")
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.eval_results[0].dataset_name == "docstrings"
    assert card.data.base_model is None
    text = str(card)
    assert "On top, a classifier trained with labels." in text
    assert "Classes: a, b, c." in text
    assert "Trained without labels" not in text
    assert "| model_name_or_path | hsvae |" in text
    assert "somebody" not in text


def test_the_committed_cards_are_what_their_files_give():
    folders = {path.parent for path in (ROOT / "model_cards").glob("*/config.json")}
    for folder in folders - {ROOT / "model_cards/hsvae-minilm"}:  # whose card is of another form
        written = (folder / "README.md").read_text(encoding="utf-8")
        assert written == str(model_card(folder, f"hsvae-hf/{folder.name}")), folder.name


def test_a_run_goes_to_the_hub_in_one_commit(published, run_folder):
    assert len(commits(published, "tester/hsvae")) == len(commits(published, "tester/classifier")) == 1
    answers = [line.rpartition(" ")[2] for line in published.requests if line.startswith("PUT")]
    assert answers.count("500") == 1  # which was sent again
    assert published.repos["tester/hsvae"].private
    files = published.files("tester/hsvae")
    code = {name for name in files if name.endswith(".py")}
    data = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    data |= {"modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "README.md"}
    data |= {"report.json", "all_results.json", "train_settings.json", "gates.png"}
    assert set(files) == code | data
    assert "modeling_hsvae.py" in code
    assert not code & {"modeling_vsc.py", "training.py"}
    for name in ("gates.png", "report.json", "tokenizer.json", "model.safetensors"):
        assert files[name] == (run_folder / name).read_bytes()
    assert files["modeling_hsvae.py"] == (ROOT / "hsvae_hf/models/modeling_hsvae.py").read_bytes()


def test_without_the_package_codes_and_loss_are_the_same_to_the_bit(reader, run_folder):
    assert "trust_remote_code=True" in reader["without trust"]
    for name, value in circle.embed(run_folder, SENTENCES).items():
        assert torch.equal(reader[name], value), name
    codes = codes_of(run_folder)
    assert torch.equal(reader["codes, SparseEncoder"], codes)  # both sort by length
    torch.testing.assert_close(reader["codes, pipeline"], codes, atol=1e-6, rtol=1e-5)
    unit = torch.nn.functional.normalize(codes, dim=-1)
    torch.testing.assert_close(reader["similarity, SparseEncoder"], unit @ unit.T, atol=1e-6, rtol=1e-5)
    assert reader["active dimensions"].item() == pytest.approx((codes != 0).sum().item() / len(SENTENCES))


def test_the_pipeline_gives_marginalised_probabilities(reader, classifier_folder):
    classifier = AutoModelForSequenceClassification.from_pretrained(classifier_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(classifier_folder)
    for samples in (circle.DRAWS, 0):
        expected = circle.marginal(classifier, tokenizer, SENTENCES, samples)
        torch.testing.assert_close(reader[f"probabilities, K = {samples}"], expected, atol=1e-6, rtol=1e-5)
    assert reader["class"] in "abc"  # by the card's own line


def test_what_the_cards_and_the_readme_say_runs(reader, run_folder):
    for source in ("card of tester/hsvae", "card of tester/classifier", "README"):
        code, codes = reader[source]
        torch.testing.assert_close(code.reshape(1, 6), codes[-1:], atol=1e-6, rtol=1e-5)
    expected = codes_of(run_folder, ["Set the title of the figure.", "Open the file."])  # of v1, so it is pinned
    torch.testing.assert_close(codes, expected, atol=1e-6, rtol=1e-5)


def test_a_model_loaded_without_the_package_is_pushed_whole(reader, published, run_folder, tmp_path):
    folder = downloaded(published, "tester/again", tmp_path / "again")
    code = {name for name in published.files("tester/hsvae") if name.endswith(".py")}
    assert code | {"modules.json", "README.md", "tokenizer.json"} <= set(published.files("tester/again"))
    for value in json.loads((folder / "config.json").read_text())["auto_map"].values():
        assert (folder / f"{value.partition('.')[0]}.py").is_file()
    assert torch.equal(codes_of(folder), codes_of(run_folder))
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    weights = loaded.classifier[0].weight  # not in tester/hsvae: LeCun's, of variance 1 / inputs
    assert weights.std().item() == pytest.approx(6**-0.5, rel=0.2)
    assert loaded.classifier[0].bias.abs().max() == 0


def test_a_trainer_pushes_its_model_whole(hub, run_folder, tmp_path):
    code = f"""
from transformers import AutoModelForPreTraining, AutoTokenizer
from hsvae_hf.trainer import TextVAETrainer
from hsvae_hf.training_arguments import TextVAETrainingArguments
tokenizer, model = (auto.from_pretrained({str(run_folder)!r}) for auto in (AutoTokenizer, AutoModelForPreTraining))
options = dict(hub_model_id="tester/trained", hub_token={hub.token!r}, report_to="none", eval_strategy="no")
arguments = TextVAETrainingArguments(output_dir={str(tmp_path / "out")!r}, **options)
TextVAETrainer(model, arguments, processing_class=tokenizer).push_to_hub()
"""
    done = hub.run(code, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr[-3000:]
    folder = downloaded(hub, "tester/trained", tmp_path / "downloaded")
    assert {"modeling_hsvae.py", "modules.json"} <= {path.name for path in folder.iterdir()}
    assert torch.equal(codes_of(folder), codes_of(run_folder))
    assert "## Use" in (folder / "README.md").read_text()


NOT_ALLOWED = "`repo_id` must be a repository that your token may write"
NO_ANSWER = "`repo_id` must be a repository that the Hub answers for"
OTHER_TYPE = "`repo_id` must not hold a model of another type"
BAD_CARD = "`card` must be a README.md that begins with metadata in YAML"
NO_RUN = "`model_name_or_path` must be the folder"
REFUSED = {  # what is wrong with a push, and how the one line of its error begins
    "no-token": NOT_ALLOWED,
    "read-token": NOT_ALLOWED,
    "commit-fails": NO_ANSWER,
    "type-not-told": NO_ANSWER,
    "another-type": OTHER_TYPE,
    "broken-card": BAD_CARD,
    "refused-card": BAD_CARD,
    "missing-card": BAD_CARD,
    "no-tokenizer": NO_RUN,
}


def test_a_push_that_cannot_be_done_is_one_clear_line_and_what_was_asked_for_is_replaced(hub, run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "no-tokenizer", ignore=shutil.ignore_patterns("tokenizer.json"))
    unreported = shutil.copytree(run_folder, tmp_path / "run", ignore=shutil.ignore_patterns("report.json"))
    (tmp_path / "broken.md").write_text(BROKEN_CARD)
    (tmp_path / "refused.md").write_text("---\npipeline_tag: [no, string]\n---\n")
    (tmp_path / "own.md").write_text(OWN_CARD)
    changes = {
        "no-token": {"token": None},
        "read-token": {"token": "reader"},
        "broken-card": {"card": tmp_path / "broken.md"},
        "refused-card": {"card": tmp_path / "refused.md"},
        "missing-card": {"card": tmp_path / "missing.md"},
        "no-tokenizer": {"model_name_or_path": tmp_path / "no-tokenizer"},
    }
    before = contents(run_folder)
    hub.tokens["reader"] = "read"
    hub.seed("tester/another-type", BERT)
    hub.seed("tester/type-not-told", BERT)
    hub.seed("tester/replaced", BERT | {"report.json": "{}", "kept.txt": "by its owner"})
    # The client asks again after a status of 500, with long pauses, but not after 501.
    hub.faults.append(Fault("POST", "commit-fails/commit/", status=501, times=100))
    hub.faults.append(Fault("HEAD", "type-not-told/resolve/main/config.json", status=501, times=100))
    standard = {"model_name_or_path": run_folder, "token": hub.token}
    pushes = [options(**standard | {"repo_id": f"tester/{case}"} | changes.get(case, {})) for case in REFUSED]
    replacing = options(unreported, "tester/replaced", overwrite=True, card=tmp_path / "own.md", token=hub.token)
    *results, replaced = push(hub, *pushes, replacing, HF_TOKEN=None)
    assert contents(run_folder) == before
    for case, (code, line) in zip(REFUSED, results, strict=True):
        assert code == 2, case
        assert line.startswith(f"error: {REFUSED[case]}")
        assert not commits(hub, case)
        if f"tester/{case}" in hub.repos:
            assert hub.files(f"tester/{case}") == (BERT if "type" in case else {})
        if REFUSED[case] == NO_RUN:
            assert not any(case in request for request in hub.requests)
    assert replaced == (0, "")
    files = hub.files("tester/replaced")
    assert files["model.safetensors"] == (run_folder / "model.safetensors").read_bytes()
    assert files["README.md"].decode() == OWN_CARD
    assert "report.json" not in files  # of the other model
    assert files["kept.txt"] == b"by its owner"


def test_a_push_that_is_killed_leaves_all_as_it_was(hub, run_folder, tmp_path):
    before = contents(run_folder)
    waiting = Fault("POST", "/commit/", delay=3600)
    hub.faults.append(waiting)
    process = subprocess.Popen(
        [sys.executable, ROOT / "scripts/push_to_hub.py", *options(run_folder, "tester/hsvae")],
        env=hub.environment(PYTHONPATH=str(ROOT), TMPDIR=str(tmp_path)),
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 200
    while waiting.times and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    assert process.wait() == -9, "the push ended before it was killed"
    assert waiting.times == 0
    assert not hub.files("tester/hsvae")
    assert contents(run_folder) == before
    assert push(hub, options(run_folder, "tester/hsvae")) == [(0, "")]
    assert torch.equal(codes_of(downloaded(hub, "tester/hsvae", tmp_path / "back")), codes_of(run_folder))


def test_a_bad_line_and_a_broken_card_do_no_harm_and_later_no_hub_is_needed(hub, published, run_folder, tmp_path):
    hub.seed("tester/hsvae", published.files("tester/hsvae") | {"README.md": BROKEN_CARD})
    hub.faults.append(Fault("GET", "/download/", cut=2_000))
    hub.faults.append(Fault("HEAD", "config.json", delay=0.5))
    environment = {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    for offline in ("0", "1"):
        before = len(hub.requests)
        done = hub.run(CODES, HF_HUB_OFFLINE=offline, **environment)
        assert done.returncode == 0, done.stderr[-3000:]
        assert torch.equal(torch.tensor(json.loads(done.stdout.rpartition("CODES ")[2])), codes_of(run_folder))
    assert len(hub.requests) == before
    with pytest.raises(ValueError, match="`model_name_or_path` must be the folder or the Hub id"):
        load_for_inference("tester/other")  # this process is offline, too


def test_a_hub_that_cannot_be_reached_is_one_clear_line(hub, run_folder, refused):
    ((code, line),) = push(hub, options(run_folder, "tester/hsvae"), HF_ENDPOINT="http://127.0.0.1:9")
    assert code == 2
    assert "HF_HUB_OFFLINE" not in line
    offline = refused("push_to_hub", *options(run_folder, "tester/hsvae"))  # as this process is
    assert "HF_HUB_OFFLINE" in offline
    for one in (line, offline):
        assert one.startswith(f"error: {NO_ANSWER}, got 'tester/hsvae': ")
    assert not hub.requests
