"""A mistyped path is refused at once, with the names that are near; the Hub is asked once, and briefly."""

import os
import subprocess
import sys

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError
from vector_models import script

import hsvae_hf
from hsvae_hf.embedding_cache import load_encoder_tokenizer
from hsvae_hf.loading import load_for_inference, load_tokenizer
from hsvae_hf.models import sources
from hsvae_hf.models.sources import check_source


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A working folder with `runs/hsvae-yahoo`, on line as far as anyone can tell."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/hsvae-yahoo").mkdir(parents=True)
    (tmp_path / "vectors.npy").write_bytes(b"")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    asked = []

    def ask(self, name, **options):
        asked.append((name, options))
        if name == "someone/model":
            return None
        raise sources.HTTP_ERROR("Name or service not known")

    monkeypatch.setattr(sources.HfApi, "repo_info", ask)
    sources._ask_hub.cache_clear()
    assert issubclass(HfHubHTTPError, sources.HTTP_ERROR)
    return asked


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("runs/hsvae-yaho", "'runs/hsvae-yaho': no such folder is here; did you mean 'runs/hsvae-yahoo'"),
        ("./run/hsvae-yahoo", "no such folder is here; did you mean 'runs'"),
        ("/no/such/folder", "no such folder is here; check the path"),
        ("~/runs/hsvae", "write the path without ~"),
        ("a/b/c", "no such folder is here"),
        ("model.safetensors", "no such folder is here"),
        ("", "must be the folder or the Hub id of a model, got ''"),
        (3, "must be the folder or the Hub id of a model, got 3"),
        ("vectors.npy", "must be a folder, got the file 'vectors.npy'"),
    ],
)
def test_what_can_only_be_a_path_is_refused_unasked(runs, name, message):
    with pytest.raises(ValueError, match=message) as caught:
        check_source(name, "model_name_or_path")
    assert str(caught.value).startswith("`model_name_or_path` must be ")
    assert "\n" not in str(caught.value)
    assert runs == []


def test_the_hub_is_asked_once_and_briefly(runs, monkeypatch):
    for _ in range(2):
        assert check_source("someone/model", "x") == "someone/model"
    assert runs == [("someone/model", {"repo_type": "model", "timeout": sources.ASK_SECONDS})]
    with pytest.raises(ValueError, match=r"the Hub does not answer \(Name or service not known\)"):
        check_source("someone/other", "x")
    with pytest.raises(ValueError, match="did you mean 'runs'"):
        check_source("rums", "x")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # what is cached is found by loading
    assert check_source("someone/other", "x") == "someone/other"


def test_what_is_there_or_cached_passes_unasked(runs, tmp_path, monkeypatch):
    assert check_source("runs/hsvae-yahoo", "x") == "runs/hsvae-yahoo"
    assert check_source(tmp_path / "runs", "x") == str(tmp_path / "runs")
    assert check_source("vectors.npy", "dataset", "dataset") == "vectors.npy"
    commit = tmp_path / "cache/models--someone--cached/snapshots/0123"
    commit.mkdir(parents=True)
    (commit / "config.json").write_text("{}")
    (commit.parent.parent / "refs").mkdir()
    (commit.parent.parent / "refs/main").write_text("0123")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert check_source("someone/cached", "x") == "someone/cached"
    assert runs == []


def load(name):
    return hsvae_hf.HSVAEForPreTraining.from_encoder_pretrained(name, decoder_type="vector")


@pytest.mark.parametrize("load", [load_for_inference, load_tokenizer, load_encoder_tokenizer, load])
def test_all_that_load_check_first(runs, load):
    for name in ("runs/hsvae-yaho", "someone/other"):
        with pytest.raises(ValueError, match="must be the folder or the Hub id of a model"):
            load(name)


def test_without_a_network_a_wrong_id_takes_no_minute(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_ENDPOINT")}
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}  # nobody answers there
    code = "from hsvae_hf.cli import run\nfrom hsvae_hf.loading import load_for_inference\n"
    code += "import time; start = time.time()\ntry: run(lambda: load_for_inference('someone/model'))\n"
    code += "finally: print(time.time() - start)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "the Hub does not answer" in done.stderr.splitlines()[-1]
    assert "Retrying" not in done.stderr
    assert float(done.stdout) < 15  # five retries take 23


def test_scripts_refuse_before_they_read_the_data(tmp_path):
    for name in ("--encoder_name_or_path", "--tokenizer_name_or_path"):
        with pytest.raises(ValueError, match=f"`{name[2:]}` must be the folder or the Hub id"):
            script("train", "--dataset", "no-such-data", name, "./nowhere", "--output_dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()
