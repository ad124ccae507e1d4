"""The command lines: what help shows, what wrong words are told, which settings the presets are."""

import runpy
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import pytest
from vector_models import script

import hsvae_hf
from hsvae_hf.command_line import MODEL_NAMES, ScriptParser, choose, config_arguments, nearest, parse
from hsvae_hf.presets import SMALL_MODEL, SMALL_TRAINING

SCRIPTS = Path(__file__).parent.parent / "scripts"


@dataclass
class Options:
    """Of a script."""

    model_name_or_path: str = field(metadata={"help": "The model."})
    latent_size: int = field(default=8, metadata={"help": "How wide."})
    per_device_train_batch_size: int = field(default=4, metadata={"help": "Rows."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Rate."})
    kind: Literal["none", "linear"] = field(default="none", metadata={"help": "Which."})
    number: Literal[0, 1, 2] = field(default=0, metadata={"help": "A choice of numbers."})
    eval_strategy: str = field(default="no", metadata={"help": "When."})
    overwrite: bool = field(default=False, metadata={"help": "Whether."})
    sentences: list[str] | None = field(default=None, metadata={"help": "Some."})


def test_a_command_line_is_read_as_written():
    words = ["--model_name_or_path", "m", "--latent-size=9", "--kind", "LINEAR", "--number", "2", "--overwrite"]
    options = parse(Options, words=[*words, "--eval_strategy", "steps", "--sentences", "one - two", "-5"])
    assert (options.model_name_or_path, options.latent_size, options.kind) == ("m", 9, "linear")
    assert (options.number, options.overwrite, options.eval_strategy) == (2, True, "steps")
    assert options.sentences == ["one - two", "-5"]
    assert parse(Options, words=["--model_name_or_path", "m", "--learning_rate", "-0.5"]).learning_rate == -0.5
    assert parse(Options, words=["--model_name_or_path", "m", "--overwrite", "no"]).overwrite is False


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--latent_dim 5", "`--latent_dim` is no option of x.py; did you mean `--latent_size`?"),
        ("-latent_size 5", "`-latent_size` is no option of x.py; did you mean `--latent_size`?"),
        ("--batch_size 5", "did you mean `--per_device_train_batch_size`?"),
        ("--model m", "did you mean `--model_name_or_path`?"),
        ("--qqqqq 5", "`--qqqqq` is no option of x.py; `--help-all` lists all."),
        ("--prior_alpha 5", "`--prior_alpha` is no option of x.py; it is an option of hsvae."),
        ("", "`model_name_or_path` must be given, got nothing"),
        ("--model_name_or_path", "`model_name_or_path` must be followed by a value, got none"),
        ("--model_name_or_path m --latent_size 5.5", "`latent_size` must be a whole number, got '5.5'"),
        ("--model_name_or_path m --learning_rate 1e", "`learning_rate` must be a number, got '1e'"),
        ("--model_name_or_path m --overwrite maybe", "`overwrite` must be true or false, got 'maybe'"),
        (
            "--model_name_or_path m --kind liner",
            "`kind` must be one of none, linear, got 'liner'; did you mean linear?",
        ),
        ("--model_name_or_path m --number 3", "`number` must be one of 0, 1, 2, got '3'; name one of them."),
        ("--model_name_or_path m --eval_strategy epochs", "got 'epochs'; did you mean epoch?"),
        ("--model_name_or_path m reviews.csv", "got 'reviews.csv' that belongs to none; put the option before it"),
    ],
)
def test_what_is_wrong_is_one_line_with_a_remedy(words, message):
    parser = ScriptParser({"all": Options}, None, {"prior_alpha": "hsvae"}.get, prog="x.py")
    with pytest.raises(ValueError) as caught:
        parser.parse(words.split())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_has_one_name_however_it_is_spelt():
    from systems import find_system

    for word, name in (("HSVAE", "hsvae"), ("Vae", "gaussian-vae"), ("mat-VAE", "mat-vae")):
        assert choose("model_type", word, hsvae_hf.MODELS, MODEL_NAMES) == name
        system = find_system(word)
        assert system.model_type == name
        assert find_system(f"{name} latent_size=4").name == f"{system.name} latent_size=4"
    with pytest.raises(ValueError, match="got 'hsvea'; did you mean HSVAE"):
        find_system("hsvea")
    assert nearest("word_dropuot", ["word_dropout", "latent_size"]) == "word_dropout"
    assert nearest("zzz", ["word_dropout", "latent_size"]) is None


@pytest.mark.parametrize("name", hsvae_hf.MODELS)
def test_every_field_of_a_configuration_is_explained_by_its_own_text(name):
    texts = {item.name: item.metadata["help"] for item in fields(config_arguments(hsvae_hf.MODELS[name][0]))}
    assert len(set(texts.values())) == len(texts)
    for flag, text in texts.items():
        assert text != flag
        assert "Configuration of" not in text
        assert "What models" not in text


def train_arguments(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, words)])
    return runpy.run_path(str(SCRIPTS / "train.py"))["parse_arguments"]()


def test_the_small_preset_sets_sizes_and_training_unless_said(monkeypatch):
    options = ("--dataset", "x.txt", "--output_dir", "x", "--report_to", "none", "--preset")
    data, flags, arguments = train_arguments(monkeypatch, *options, "small", "--latent_size", 32)
    assert {name: flags[name] for name in SMALL_MODEL} == SMALL_MODEL | {"latent_size": 32, "target_active_dims": None}
    assert data.max_length == 60
    for name, value in SMALL_TRAINING.items():
        assert getattr(arguments, name) == value
    _, flags, _ = train_arguments(monkeypatch, *options, "small", "--model_type", "VAE")
    assert flags["latent_size"] == SMALL_MODEL["latent_size"]
    assert "target_active_dims" not in flags
    _, _, arguments = train_arguments(monkeypatch, *options, "Small", "--num_train_epochs", 2)
    assert (arguments.max_steps, arguments.num_train_epochs) == (-1, 2)
    with pytest.raises(ValueError, match="`preset` must be one of small, paper, released, got 'tiny'"):
        train_arguments(monkeypatch, *options, "tiny")
    with pytest.raises(ValueError, match="`preset` must be left out with an encoder or vectors"):
        train_arguments(monkeypatch, *options, "small", "--encoder_name_or_path", "bert-base-uncased")
    with pytest.raises(ValueError, match="`--penalty_norm` is no option of train.py; it is an option of --model_type"):
        train_arguments(monkeypatch, *options, "small", "--penalty_norm", 1)


@pytest.mark.parametrize("name", ["train", "train_classifier"])
def test_help_is_short_grouped_and_that_of_the_model(monkeypatch, capsys, name):
    def explained(*words):
        with pytest.raises(SystemExit) as caught:
            script(name, *words)
        assert caught.value.code == 0
        return capsys.readouterr().out

    monkeypatch.setenv("COLUMNS", "100")
    for flag, fewest, most_options in (("--help", 15, 30), ("--help-all", 100, 300)):
        printed = explained(flag)
        shown = [line.split()[0] for line in printed.splitlines() if line.startswith("  --")]
        assert "Default: hsvae." in " ".join(printed.split()) or name != "train"
        assert fewest <= len(shown) <= most_options
        assert len(set(shown)) == len(shown)
        assert {"--dataset", "--output_dir", "--learning_rate"} <= set(shown)
        assert all(f"\n{title}:" in printed for title in ("data", "training", "output"))
    if name == "train":
        assert "--prior_alpha" in shown
        printed = explained("--model_type", "VSC", "--help-all")
        assert "--prior_activity" in printed
        assert "--prior_alpha" not in printed


@pytest.mark.parametrize("words", ["embed", "export_onnx", "search index", "search query", "search export"])
def test_help_has_examples_to_copy_and_a_heading_for_every_option(words, monkeypatch, capsys):
    name, *action = words.split()
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        script(name, *action, "--help")
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: {name}.py {' '.join([*action, '[options]'])}\n")
    examples = [line for line in printed.splitlines() if line.startswith("    python ")]
    assert examples and all(f"scripts/{name}.py {' '.join(action)}".strip() in line for line in examples)
    assert "\nneeded:\n" in printed
    short = {line.split()[0] for line in printed.splitlines() if line.startswith("  --")}
    with pytest.raises(SystemExit):
        script(name, *action, "--help-all")
    everything = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  --")}
    assert short == everything


@pytest.mark.parametrize("path", [path for path in sorted(SCRIPTS.rglob("*.py")) if "def main" in path.read_text()])
def test_every_script_explains_its_options(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(path))["main"]()
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("usage:")
