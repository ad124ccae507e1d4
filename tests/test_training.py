"""Training: logged terms, annealing, whole checkpoints, exact resume, the scripts as a user types them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForPreTraining, AutoTokenizer

import hsvae_hf
from hsvae_hf.data import TextCollator, tokenize_dataset
from hsvae_hf.training import (
    KLAnnealingCallback,
    TextVAETrainer,
    TextVAETrainingArguments,
    check_output_dir,
    clear_output_dir,
    save_run,
    staged_folder,
)

ROOT = Path(__file__).parent.parent
SMALL = ["--embedding_size", "8", "--hidden_size", "12", "--latent_size", "6", "--per_device_train_batch_size", "4"]


@pytest.fixture
def make_trainer(small_config, tokenizer, sentences, tmp_path):
    def make(folder="run", **options):
        torch.manual_seed(0)
        rows = tokenize_dataset(Dataset.from_dict({"text": sentences}), tokenizer)
        defaults = {"per_device_train_batch_size": 4, "logging_steps": 1, "report_to": "none", "seed": 7}
        arguments = TextVAETrainingArguments(output_dir=str(tmp_path / folder), **(defaults | options))
        return TextVAETrainer(
            model=hsvae_hf.HSVAEForPreTraining(small_config),
            args=arguments,
            train_dataset=rows,
            eval_dataset=rows.select(range(6)),
            data_collator=TextCollator(tokenizer),
            processing_class=tokenizer,
        )

    return make


def losses(trainer):
    return {row["step"]: row["loss"] for row in trainer.state.log_history if "loss" in row}


def test_every_term_is_logged_and_adds_up(make_trainer):
    trainer = make_trainer(num_train_epochs=2, save_strategy="no")
    trainer.train()
    rows = trainer.state.log_history
    train = [row for row in rows if "loss" in row]
    evaluations = [row for row in rows if "eval_loss" in row]
    assert (len(train), len(evaluations)) == (6, 2)
    for prefix, group in (("", train), ("eval_", evaluations)):
        for row in group:
            terms = {name: row[f"{prefix}{name}"] for name in ("reconstruction_loss", "z_kl", "gamma_kl", "perplexity")}
            total = terms["reconstruction_loss"] + 0.01 * (terms["z_kl"] + terms["gamma_kl"])
            assert row[f"{prefix}loss"] == pytest.approx(total, rel=1e-3)
    tokens = sum(map(len, trainer.eval_dataset["input_ids"]))
    expected = np.exp(evaluations[-1]["eval_reconstruction_loss"] * 6 / tokens)
    assert evaluations[-1]["eval_perplexity"] == pytest.approx(expected, rel=1e-4)


def test_resumed_run_gives_the_losses_of_an_uninterrupted_one(make_trainer):
    options = {"num_train_epochs": 4, "save_strategy": "steps", "save_steps": 5, "save_total_limit": None}
    options |= {"kl_annealing": "linear", "kl_warmup_steps": 6}
    whole = make_trainer("whole", **options)
    whole.model.config.word_dropout = 0.3
    whole.train()
    resumed = make_trainer("resumed", **options)
    resumed.model.config.word_dropout = 0.3
    resumed.train(resume_from_checkpoint=str(Path(whole.args.output_dir) / "checkpoint-5"))
    expected = {step: loss for step, loss in losses(whole).items() if step > 5}
    assert len(expected) == 7
    assert {step: loss for step, loss in losses(resumed).items() if step > 5} == expected


def test_checkpoints_are_kept_to_the_limit_and_the_best_is_found(make_trainer):
    trainer = make_trainer(num_train_epochs=5, save_total_limit=2, load_best_model_at_end=True)
    trainer.train()
    folder = Path(trainer.args.output_dir)
    kept = sorted(path.name for path in folder.iterdir())
    assert len(kept) == 2
    assert all(name.startswith("checkpoint-") for name in kept)
    best = Path(trainer.state.best_model_checkpoint)
    assert best.parent == folder
    assert json.loads((best / "trainer_state.json").read_text())["best_model_checkpoint"] == str(best)


@pytest.mark.parametrize(
    ("kind", "step", "scale"),
    [
        *[("linear", 0, 0), ("linear", 25, 0.5), ("linear", 90, 1)],
        *[("cyclical", 0, 0), ("cyclical", 5, 0.5), ("cyclical", 15, 1), ("cyclical", 20, 0)],
    ],
)
def test_annealing_schedules(kind, step, scale):
    assert KLAnnealingCallback(kind, warmup_steps=50, cycles=4).scale(step, 80) == scale


def test_annealing_reaches_the_model(make_trainer):
    trainer = make_trainer(kl_annealing="linear", kl_warmup_steps=100, max_steps=5, save_strategy="no")
    trainer.train()
    assert trainer.model.kl_scale == 0.04


def test_a_folder_is_written_whole_or_not_at_all(tmp_path, small_config, tokenizer):
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(RuntimeError), staged_folder(tmp_path) as temporary:
        (temporary / "keep.txt").write_text("half")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["keep.txt"]
    assert (tmp_path / "keep.txt").read_text() == "mine"
    save_run(tmp_path, hsvae_hf.HSVAEForPreTraining(small_config), tokenizer, {"loss": 1.0})
    assert {"config.json", "model.safetensors", "tokenizer.json", "all_results.json", "keep.txt"} <= {
        path.name for path in tmp_path.iterdir()
    }


def test_no_run_is_overwritten_unasked(tmp_path):
    (tmp_path / "old").write_text("old run")
    options = {"output_dir": str(tmp_path), "report_to": "none"}
    with pytest.raises(ValueError, match="`output_dir` must be empty or new"):
        check_output_dir(TextVAETrainingArguments(**options))
    with pytest.raises(ValueError, match="`resume_from_checkpoint` must be a whole checkpoint"):
        check_output_dir(TextVAETrainingArguments(**options, resume_from_checkpoint="true"))
    overwriting = TextVAETrainingArguments(**options, overwrite_output_dir=True)
    assert check_output_dir(overwriting) is None
    assert (tmp_path / "old").exists()
    clear_output_dir(overwriting, None)
    assert not (tmp_path / "old").exists()


def script(name, *arguments, prefix=(), **options):
    command = [*(prefix or [sys.executable]), str(ROOT / "scripts" / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **options)


@pytest.fixture
def corpus(tmp_path, sentences, labels):
    path = tmp_path / "corpus.jsonl"
    rows = [{"text": text, "label": label} for text, label in zip(sentences, labels, strict=True)] * 3
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_killed_while_saving_a_run_resumes_from_the_last_whole_checkpoint(corpus, tmp_path):
    run = tmp_path / "run"
    command = ["--dataset", corpus, "--output_dir", run, *SMALL, "--max_steps", 6, "--save_strategy", "steps"]
    command += ["--save_steps", 2, "--eval_strategy", "no", "--report_to", "none"]
    hang = (  # the second checkpoint never gets past its weights
        "import sys, time, runpy\nfrom transformers import Trainer\n"
        "def stop(self, folder):\n    if 'checkpoint-4' in folder: print('saving', flush=True); time.sleep(60)\n"
        "    return original(self, folder)\n"
        "original = Trainer._save_optimizer_and_scheduler\nTrainer._save_optimizer_and_scheduler = stop\n"
        "sys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    full = [sys.executable, "-c", hang, str(ROOT / "scripts/train.py"), *map(str, command)]
    process = subprocess.Popen(full, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert any("saving" in line for line in process.stdout)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-2"]
    result = script("train.py", *command, "--resume_from_checkpoint", "true")
    assert result.returncode == 0, result.stderr[-2000:]
    assert (run / "checkpoint-6").is_dir()
    assert not (run / ".unfinished").exists()
    model = AutoModelForPreTraining.from_pretrained(run)
    assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(run))


def test_the_scripts_work_as_typed(corpus, tmp_path):
    run, classifier, report = tmp_path / "run", tmp_path / "clf", tmp_path / "report.json"
    trained = script(
        "train.py", "--dataset", corpus, "--output_dir", run, *SMALL, "--num_train_epochs", 2, "--prior_alpha", 3,
        "--free_bits", 0.1,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr[-2000:]
    assert json.loads((run / "config.json").read_text())["prior_alpha"] == 3
    assert json.loads((run / "all_results.json").read_text())["eval_reconstruction_loss"] > 0
    assert list(run.glob("runs/*/events*"))
    again = script("train.py", "--dataset", corpus, "--output_dir", run)
    assert again.returncode == 2
    assert again.stderr.strip().splitlines()[-1].startswith("error: `output_dir` must be empty or new")

    options = ["--model_name_or_path", run, "--dataset", corpus]
    result = script(
        "train_classifier.py", *options, "--output_dir", classifier, "--num_train_epochs", 3, "--report_to", "none"
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "validation_accuracy" in json.loads((classifier / "all_results.json").read_text())
    assert json.loads((classifier / "config.json").read_text())["id2label"]["0"] == "animals"

    result = script(
        "evaluate.py", *options, "--output", report, "--split", "validation", "--heatmap", tmp_path / "g.png"
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert {"code", "gate", "samples", "tfidf", "majority"} <= set(json.loads(report.read_text())["accuracy"])
    assert (tmp_path / "g.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "{corpus}", "--latent_size", "0"], "`latent_size` must be at least 1"),
        (["--dataset", "{corpus}", "--z_kl_weight", "-1"], "`z_kl_weight` must be at least 0"),
        (["--dataset", "{corpus}", "--text_column", "body"], "`text_column` must be one of"),
        (["--dataset", "{tmp}/none.txt"], "`dataset` must be a file or folder that exists"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(corpus, tmp_path, arguments, message):
    filled = [argument.format(corpus=corpus, tmp=tmp_path) for argument in arguments]
    result = script("train.py", *filled, "--output_dir", tmp_path / "x")
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith("error: ")
    assert message in result.stderr.strip().splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "x").exists()


ACCELERATE = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu"]  # without MPI this is one process
TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]


@pytest.mark.slow
@pytest.mark.parametrize(("launch", "processes"), [(ACCELERATE, 1), (TORCHRUN, 2)], ids=["accelerate", "torchrun"])
def test_launchers_train_and_resume(corpus, tmp_path, launch, processes):
    command = ["--dataset", corpus, "--output_dir", tmp_path / "run", *SMALL, "--save_strategy", "steps"]
    command += ["--save_steps", 2, "--use_cpu", "--report_to", "none", "--max_steps"]
    options = {"prefix": [sys.executable, *launch], "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    first = script("train.py", *command, 4, **options)
    assert first.returncode == 0, first.stderr[-3000:]
    assert len(list((tmp_path / "run/checkpoint-4").glob("rng_state*.pth"))) == processes
    second = script("train.py", *command, 6, "--resume_from_checkpoint", "true", **options)
    assert second.returncode == 0, second.stderr[-3000:]
    assert (tmp_path / "run/checkpoint-6").exists()
    assert json.loads((tmp_path / "run/all_results.json").read_text())["eval_loss"] > 0


@pytest.mark.data
def test_real_text_trains_under_bf16(data_dir, tmp_path):
    start = time.time()
    result = script(
        "train.py", "--dataset", data_dir / "yahoo", "--output_dir", tmp_path / "run", *SMALL[:6], "--max_steps", 30,
        "--max_train_samples", 1000, "--max_samples", 100, "--per_device_train_batch_size", 32, "--logging_steps", 10,
        "--bf16", "--use_cpu", "--report_to", "none", "--learning_rate", 1e-2, "--save_strategy", "no",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    assert time.time() - start < 200
    results = json.loads((tmp_path / "run/all_results.json").read_text())
    assert results["eval_perplexity"] < 1500
