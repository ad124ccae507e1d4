"""Training: logged terms, annealing, whole checkpoints, exact resume, the scripts as a user types them."""

import importlib.util
import json
import logging
import math
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from families import FAMILIES, bert
from transformers import AutoModelForPreTraining, AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments

import hsvae_hf
from hsvae_hf.batching import TextCollator, VectorDataset, collate_vectors
from hsvae_hf.callbacks import AnnealingCallback, CollapseMonitor
from hsvae_hf.checkpoints import check_resumable, data_fingerprint
from hsvae_hf.cli import run as run_script
from hsvae_hf.data import tokenize_dataset
from hsvae_hf.files import staged_folder
from hsvae_hf.runs import check_output_dir, claimed_output_dir, save_run
from hsvae_hf.training_arguments import RunArguments, TextVAETrainingArguments

ROOT = Path(__file__).parent.parent
SMALL = ["--embedding_size", "8", "--hidden_size", "12", "--latent_size", "6", "--per_device_train_batch_size", "4"]


def losses(trainer):
    return {row["step"]: row["loss"] for row in trainer.state.log_history if "loss" in row}


def test_every_term_is_logged_and_adds_up(make_trainer):
    trainer = make_trainer(num_train_epochs=2, save_strategy="no", per_device_train_batch_size=5, logging_steps=3)
    trainer.train()  # the batches of an epoch, and of one log, are 5, 5 and 2 sentences
    rows = trainer.state.log_history
    train = [row for row in rows if "loss" in row]
    evaluations = [row for row in rows if "eval_loss" in row]
    assert (len(train), len(evaluations)) == (2, 2)
    for prefix, group in (("", train), ("eval_", evaluations)):
        for row in group:
            terms = {name: row[f"{prefix}{name}"] for name in ("reconstruction_loss", "z_kl", "gamma_kl", "perplexity")}
            total = terms["reconstruction_loss"] + 0.01 * (terms["z_kl"] + terms["gamma_kl"])
            assert row[f"{prefix}loss"] == pytest.approx(total, rel=1e-3)
    tokens = sum(map(len, trainer.eval_dataset["input_ids"]))
    expected = np.exp(evaluations[-1]["eval_reconstruction_loss"] * 6 / tokens)
    assert evaluations[-1]["eval_perplexity"] == pytest.approx(expected, rel=1e-4)


def test_an_evaluation_logs_its_own_terms_under_its_own_prefix(make_trainer):
    trainer = make_trainer()
    rows = trainer.eval_dataset
    torch.manual_seed(1)
    expected = trainer.evaluate(rows.select(range(2)), metric_key_prefix="test")
    trainer.predict(rows)  # logs nothing, and leaves nothing behind
    torch.manual_seed(1)
    assert trainer.evaluate(rows.select(range(2)), metric_key_prefix="test")["test_z_kl"] == expected["test_z_kl"]
    tokens = sum(map(len, rows["input_ids"][:2]))
    assert expected["test_perplexity"] == pytest.approx(
        math.exp(expected["test_reconstruction_loss"] * 2 / tokens), rel=1e-4
    )


def test_a_loss_that_is_not_finite_is_seen(make_trainer):
    trainer = make_trainer(max_steps=1, save_strategy="no", eval_strategy="no")
    torch.nn.init.constant_(trainer.model.decoder.lm_head.bias, math.nan)
    with pytest.raises(ValueError, match="`learning_rate` must be lower: the loss at step 1 is nan"):
        trainer.train()
    trainer = make_trainer(max_steps=4, save_strategy="steps", save_steps=2, eval_strategy="no", logging_steps=50)
    torch.nn.init.constant_(trainer.model.decoder.lm_head.bias, math.nan)
    with pytest.raises(ValueError, match="`learning_rate` must be lower: a weight at step 2 is not finite"):
        trainer.train()
    assert not list(Path(trainer.args.output_dir).glob("checkpoint-*"))


@pytest.mark.parametrize(
    "options",
    [
        {"logging_steps": 50},  # evaluation is the first to see it
        {"logging_steps": 50, "eval_strategy": "no"},  # the checkpoint is
        {"logging_steps": 50, "eval_strategy": "no", "save_strategy": "no"},  # only the finished model is
        {"logging_steps": 1, "max_grad_norm": 0.0},
    ],
)
def test_a_rate_that_is_too_high_is_blamed_and_no_half_run_is_left(make_trainer, options):
    trainer = make_trainer(**({"max_steps": 4, "learning_rate": 1e30, "eval_strategy": "epoch"} | options))
    trainer.add_callback(CollapseMonitor(trainer))
    with pytest.raises(ValueError, match="`learning_rate` must be lower: .* is (nan|inf|not finite)"):
        trainer.train()
    assert not list(Path(trainer.args.output_dir).glob(".*"))


def test_a_gradient_that_is_not_finite_is_blamed_on_the_rate(make_trainer):
    trainer = make_trainer(max_steps=2, save_strategy="no", eval_strategy="no")
    bias = trainer.model.decoder.lm_head.bias
    bias.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(ValueError, match="`learning_rate` must be lower: grad_norm at step 1 is (inf|nan)"):
        trainer.train()


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


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_model_trains_and_resumes_exactly(make_trainer, tokenizer, family):
    changes = {"vocab_size": len(tokenizer)} | (bert(len(tokenizer)) if not family.gru else {})
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "save_total_limit": None}
    options |= {"model": lambda: family.pretraining(family.config(**changes)), "eval_strategy": "no"}
    whole = make_trainer("whole", **options)
    whole.train()
    resumed = make_trainer("resumed", **options)
    resumed.train(resume_from_checkpoint=str(Path(whole.args.output_dir) / "checkpoint-2"))
    expected = losses(whole)
    assert sorted(expected) == [1, 2, 3, 4]
    assert losses(resumed) == expected
    for one, other in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)


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


def test_a_killed_run_leaves_nothing_in_the_next_one(make_trainer):
    trainer = make_trainer(max_steps=3, save_strategy="steps", save_steps=3, eval_strategy="no")
    folder = Path(trainer.args.output_dir)
    for leftover in (folder / ".unfinished/checkpoint-3", folder / "checkpoint-3"):
        leftover.mkdir(parents=True)
        (leftover / "rng_state_1.pth").write_text("of a run with two processes")
    trainer.train()
    assert [path.name for path in folder.iterdir()] == ["checkpoint-3"]
    assert not (folder / "checkpoint-3/rng_state_1.pth").exists()
    (folder / ".unfinished/checkpoint-6").mkdir(parents=True)
    trainer.args.resume_from_checkpoint = "true"
    with claimed_output_dir(trainer.args) as checkpoint:
        assert checkpoint == str(folder / "checkpoint-3")
        assert not (folder / ".unfinished/checkpoint-6").exists()
    assert [path.name for path in folder.iterdir()] == ["checkpoint-3"]


def test_a_run_resumes_with_its_own_model_alone(saved_model):
    check_resumable(str(saved_model), {"model_type": "hsvae", "latent_size": 6, "z_kl_weight": 0.01})
    with pytest.raises(ValueError, match=r"`latent_size` must stay 6, as in .*, got 7"):
        check_resumable(str(saved_model), {"latent_size": 7})
    weights = saved_model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:300])
    with pytest.raises(ValueError, match="damaged weights"):
        check_resumable(str(saved_model), {})


@pytest.mark.parametrize(
    ("kind", "step", "scale"),
    [
        *[("linear", 0, 0), ("linear", 25, 0.5), ("linear", 90, 1)],
        *[("cyclical", 0, 0), ("cyclical", 5, 0.5), ("cyclical", 15, 1), ("cyclical", 20, 0)],
    ],
)
def test_annealing_schedules(kind, step, scale):
    assert AnnealingCallback(kind, warmup_steps=50 if kind == "linear" else None, cycles=4).scale(step, 80) == scale
    with pytest.raises(ValueError, match="`kl_annealing` must be none, linear or cyclical, got 'liner'"):
        AnnealingCallback("liner")
    with pytest.raises(ValueError, match="`kl_warmup_steps` must be left out unless `kl_annealing` is linear"):
        TextVAETrainingArguments(output_dir="x", kl_warmup_steps=5)


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
    options = {"output_dir": str(tmp_path), "report_to": "none"}
    (tmp_path / "runs/today").mkdir(parents=True)  # the logs of one that ended before its first checkpoint
    assert check_output_dir(TextVAETrainingArguments(**options)) is None
    (tmp_path / "old").write_text("old run")
    with pytest.raises(ValueError, match="`output_dir` must be empty or new"):
        check_output_dir(TextVAETrainingArguments(**options))
    with pytest.raises(ValueError, match="`resume_from_checkpoint` must be a whole checkpoint"):
        check_output_dir(TextVAETrainingArguments(**options, resume_from_checkpoint="true"))
    overwriting = TextVAETrainingArguments(**options, overwrite_output_dir=True)
    assert check_output_dir(overwriting) is None
    with pytest.raises(ValueError, match="`output_dir` must not hold what the run reads"):
        check_output_dir(overwriting, (None, "hub/id", str(tmp_path / "old")))
    assert (tmp_path / "old").exists()


def test_an_old_run_is_deleted_once_the_new_one_can_start(make_trainer, tmp_path):
    old = tmp_path / "run/old"
    old.parent.mkdir()
    old.write_text("old run")
    options = {"max_steps": 1, "overwrite_output_dir": True, "eval_strategy": "no"}
    with pytest.raises(ValueError, match="`train_dataset` must fill a batch"):
        make_trainer(per_device_train_batch_size=500, dataloader_drop_last=True, **options).train()
    assert old.exists()
    make_trainer(**options).train()
    assert not old.exists()


def test_a_checkpoint_of_another_run_does_not_mix_in(make_trainer, tmp_path):
    make_trainer("one", max_steps=2, save_strategy="steps", save_steps=2).train()
    (tmp_path / "two").mkdir()
    (tmp_path / "two/old").write_text("old run")
    options = {"resume_from_checkpoint": str(tmp_path / "one/checkpoint-2"), "report_to": "none", "seed": 7}
    options["per_device_train_batch_size"] = 4
    with pytest.raises(ValueError, match="`output_dir` must be empty or new"):
        check_output_dir(TextVAETrainingArguments(output_dir=str(tmp_path / "two"), **options))
    new = TextVAETrainingArguments(output_dir=str(tmp_path / "three"), **options)
    assert check_output_dir(new) == options["resume_from_checkpoint"]


@pytest.fixture
def stopped(make_trainer):
    """A function that makes a trainer like one which was stopped at step 2 of 4, and its checkpoint."""
    options = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "no", "max_steps": 4}
    first = make_trainer(**options)
    first.train()
    checkpoint = str(Path(first.args.output_dir) / "checkpoint-2")

    def again(**changes):
        return make_trainer(**(options | {"max_steps": 5, "resume_from_checkpoint": checkpoint} | changes)), checkpoint

    return again


def test_a_run_goes_on_with_its_own_data_alone(stopped):
    trainer, checkpoint = stopped()
    rows = trainer.train_dataset
    for other in (rows.select(range(11)), rows.select([*range(1, 12), 0]), rows.map(lambda row: {"input_ids": [3, 1]})):
        trainer.train_dataset = other
        with pytest.raises(ValueError, match="`resume_from_checkpoint` must be a run on the same data, got .* of"):
            trainer.train(resume_from_checkpoint=checkpoint)
    trainer.train_dataset = rows.flatten_indices()
    trainer.train(resume_from_checkpoint=checkpoint)
    assert trainer.state.global_step == 5


def test_the_fingerprint_of_data_is_of_its_words_labels_and_order(tokenizer):
    rows = [{"input_ids": [3, 4, 1], "label": 0}, {"input_ids": [5, 1], "label": 1}]
    one = data_fingerprint(Dataset.from_list(rows))
    assert one == data_fingerprint(Dataset.from_list([rows[0], rows[0], rows[1]]).select([0, 2]))
    assert one == data_fingerprint(Dataset.from_list(rows).to_iterable_dataset())
    moved = [{"input_ids": [3, 4], "label": 0}, {"input_ids": [1, 5, 1], "label": 1}]
    for other in (rows[::-1], moved, [rows[0], rows[1] | {"label": 0}], rows[:1]):
        assert one != data_fingerprint(Dataset.from_list(other))
    assert one == "8470f6979429bc33"  # on every machine


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 1e-4), ("per_device_train_batch_size", 2), ("seed", 8), ("gradient_accumulation_steps", 2),
        ("max_grad_norm", 1.0), ("weight_decay", 0.1), ("kl_annealing", "linear"), ("optim", "adafactor"),
        ("lr_scheduler_type", "cosine"), ("bf16", True), ("train_sampling_strategy", "random"),
        ("lr_scheduler_kwargs", {"num_cycles": 2}), ("optim_args", "rank=2"), ("neftune_noise_alpha", 1.0),
        ("ignore_data_skip", True),
    ],
)  # fmt: skip
def test_a_run_goes_on_with_its_own_settings_alone(stopped, name, value):
    trainer, _ = stopped(**{name: value})
    with pytest.raises(ValueError, match=f"`{name}` must stay .*, as in .*checkpoint-2', got"):
        check_output_dir(trainer.args)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors"])
def test_a_checkpoint_without_a_part_is_refused(stopped, name):
    trainer, checkpoint = stopped()
    assert check_output_dir(trainer.args) == checkpoint
    (Path(checkpoint) / name).unlink()
    with pytest.raises(ValueError, match=f"`resume_from_checkpoint` must be a whole checkpoint, got .* without {name}"):
        check_output_dir(trainer.args)


def test_what_is_true_is_said_at_a_resume_and_nothing_else(stopped, caplog):
    trainer, checkpoint = stopped(max_steps=6, save_strategy="no")
    loggers = [logging.getLogger(name) for name in ("transformers", "hsvae_hf")]
    for logger in loggers:
        logger.addHandler(caplog.handler)
    trainer.train(resume_from_checkpoint=checkpoint)
    assert "this run was started for 4 steps and now goes on to 6" in caplog.text
    assert "missing keys" not in caplog.text
    (Path(checkpoint) / "course.json").unlink()
    stopped(max_steps=6)[0].train(resume_from_checkpoint=checkpoint)
    for logger in loggers:
        logger.removeHandler(caplog.handler)
    assert "does not say on which data" in caplog.text


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth"])
def test_resuming_what_is_finished_or_damaged_is_refused(make_trainer, name):
    options = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "no"}
    trainer = make_trainer(max_steps=2, **options)
    trainer.train()
    checkpoint = Path(trainer.args.output_dir) / "checkpoint-2"
    with pytest.raises(ValueError, match="got 2 of 2 steps done"):
        make_trainer(max_steps=2, **options).train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / name).write_bytes((checkpoint / name).read_bytes()[:100])
    with pytest.raises(ValueError, match="`resume_from_checkpoint` must be a whole checkpoint"):
        make_trainer(max_steps=4, **options).train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"got a damaged .*config\.json"):
        check_resumable(str(checkpoint), {})


@pytest.mark.parametrize("name", ["learning_rate", "num_train_epochs", "max_steps", "gradient_accumulation_steps"])
def test_settings_that_train_nothing_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        TextVAETrainingArguments(output_dir=str(tmp_path), report_to="none", **{name: 0})


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("weight_decay", -5, "at least 0"), ("weight_decay", math.nan, "at least 0"), ("max_grad_norm", -1, "at least"),
        ("max_grad_norm", math.nan, "at least 0"), ("label_smoothing_factor", 5, "from 0 to 1"),
        ("label_smoothing_factor", math.nan, "from 0 to 1"), ("save_steps", 0, "above 0"), ("eval_steps", -1, "above"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_named(tmp_path, name, value, rule):
    with pytest.raises(ValueError, match=f"`{name}` must be {rule}.*, got {value}; "):
        RunArguments(output_dir=str(tmp_path), report_to="none", **{name: value})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"report_to": "wandb"}, "`report_to` must be one of"),
        ({"optim": "adafactor_x"}, "got 'adafactor_x'; did you mean adafactor?"),
        ({"lr_scheduler_type": "cosin"}, "got 'cosin'; did you mean cosine?"),
        ({"eval_strategy": "sometimes"}, "`eval_strategy` must be one of no, steps, epoch, got 'sometimes'"),
        ({"metric_for_best_model": "eval_los"}, "`metric_for_best_model` must be measured in evaluation"),
        ({"eval_strategy": "no", "load_best_model_at_end": True}, "load_best_model_at_end"),
        ({"load_best_model_at_end": True, "eval_strategy": "steps"}, "load_best_model_at_end"),
        ({"warmup_steps": 9}, "`warmup_steps` must be left out with a constant"),
        ({"warmup_steps": 9, "max_steps": 9, "lr_scheduler_type": "linear"}, "`warmup_steps` must be below"),
        ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor` must be 0"),
        ({"optim": "galore_adamw"}, "`optim` must work together and on this machine, got galore_adamw"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "`lr_scheduler_type` must work together"),
        ({"fsdp": "full_shard"}, "`training options` must work together"),
        ({"push_to_hub": True, "hub_token": "hf_none"}, "`push_to_hub` must be off unless the Hub answers"),
    ],
)
def test_options_that_cannot_work_are_refused_before_the_data_is_read(tmp_path, options, words):
    folder = tmp_path / "run"
    with (
        pytest.raises(ValueError, match=words),
        claimed_output_dir(TextVAETrainingArguments(**({"output_dir": str(folder), "report_to": "none"} | options))),
    ):
        pass
    assert not folder.exists()


def test_the_best_model_is_the_one_of_less_perplexity(make_trainer):
    trainer = make_trainer(num_train_epochs=3, metric_for_best_model="perplexity", load_best_model_at_end=True)
    trainer.train()
    found = [row["eval_perplexity"] for row in trainer.state.log_history if "eval_perplexity" in row]
    assert trainer.state.best_metric == min(found)
    trainer = make_trainer(metric_for_best_model="squared_error")  # of vectors alone
    with pytest.raises(ValueError, match="`metric_for_best_model` must be measured in evaluation, got 'squared_error'"):
        trainer.train()


def test_without_an_accelerator_processes_know_of_each_other():
    assert TextVAETrainingArguments(output_dir="x", report_to="none").use_cpu != torch.accelerator.is_available()


@pytest.mark.parametrize("decoder", ["gru", "vector", "no labels"])
def test_the_stock_trainer_trains_and_evaluates(small_config, tokenizer, sentences, tmp_path, decoder):
    model = hsvae_hf.HSVAEForPreTraining(small_config)
    rows, collator = tokenize_dataset(Dataset.from_dict({"text": sentences}), tokenizer), TextCollator(tokenizer)
    if decoder == "vector":
        kinds = {"decoder_type": "vector", "encoder_type": "vector", "vector_size": 5, "tie_word_embeddings": False}
        model = hsvae_hf.HSVAEForPreTraining(hsvae_hf.HSVAEConfig(latent_size=4, **kinds))
        rows, collator = VectorDataset(np.random.default_rng(0).normal(size=(12, 5)).astype("f")), collate_vectors
    options = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True, "report_to": "none"}
    if decoder == "no labels":
        collator, options["label_names"] = DataCollatorWithPadding(tokenizer), []
    arguments = TrainingArguments(str(tmp_path), num_train_epochs=2, use_cpu=True, **options)
    trainer = Trainer(model, arguments, collator, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    looks = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    assert len(looks) == 2
    assert trainer.state.best_metric == min(looks)


def test_targets_of_the_collator_are_those_of_the_input(small_config, tokenizer, sentences):
    model = hsvae_hf.HSVAEForPreTraining(small_config).eval()
    batch = TextCollator(tokenizer)([{"input_ids": tokenizer(text)["input_ids"]} for text in sentences[:3]])
    for end in (small_config.eos_token_id, small_config.pad_token_id):  # some tokenizers pad with the end of sentence
        model.config.pad_token_id, losses = end, []
        for inputs in (batch, {name: value for name, value in batch.items() if name != "labels"}):
            torch.manual_seed(1)
            losses.append(model(**inputs).loss.item())
        assert losses[0] == losses[1]


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
        "sys.argv = sys.argv[1:]\nsys.path.insert(0, sys.argv[0].rpartition('/')[0])\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    full = [sys.executable, "-c", hang, str(ROOT / "scripts/train.py"), *map(str, command)]
    process = subprocess.Popen(full, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert "saving\n" in process.stdout
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-2"]
    result = script("train.py", *command, "--resume_from_checkpoint", "true")
    assert result.returncode == 0, result.stderr[-2000:]
    assert (run / "checkpoint-6").is_dir()
    assert not (run / ".unfinished").exists()
    longer = [*command, "--num_train_epochs", 9, "--resume_from_checkpoint", "true"]
    assert json.loads((run / "train_settings.json").read_text())["max_length"] == 60
    result = script("train.py", *longer, "--max_length", 5)
    assert "error: `max_length` must stay" in result.stderr
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    elsewhere = ["--output_dir", tmp_path / "other", "--resume_from_checkpoint", run / "checkpoint-6"]
    result = script("train.py", *longer, *elsewhere, "--overwrite_output_dir")
    assert result.stderr.strip().endswith("a run that goes on elsewhere needs a folder of its own.")
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
        "evaluate_model.py", *options, "--output", report, "--split", "validation", "--heatmap", tmp_path / "g.png"
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert {"code", "gate", "samples", "tfidf", "majority"} <= set(json.loads(report.read_text())["accuracy"])
    assert (tmp_path / "g.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("train.py", "--latent_size 0", "`latent_size` must be at least 1"),
        ("train.py", "--z_kl_weight -1", "`z_kl_weight` must be at least 0"),
        ("train.py", "--max_length 0", "`max_length` must be at least 2"),
        ("train.py", "--text_column body", "`text_column` must be one of"),
        ("train.py", "--model_type bert", "`model_type` must be a text VAE"),
        ("train.py", "--model_type nonsense", "`model_type` must be a text VAE"),
        ("train.py", "--dataset {tmp}/none.txt", "no such file or folder is here"),
        ("train.py", "--resume_from_checkpoint true", "`resume_from_checkpoint` must be a whole checkpoint"),
        ("train.py", "--unknown_flag 1", "--unknown_flag"),
        ("train.py", "--pres released", "--pres"),
        ("train.py", "--kl_warmup_steps 9", "`kl_warmup_steps` must be left out unless"),
        ("train.py", "--kl_annealing linear --kl_warmup_steps 9 --max_steps 9", "`kl_warmup_steps` must be below"),
        ("train_classifier.py", "--model_name_or_path {tmp}/none", "`model_name_or_path` must be the folder"),
        ("train_classifier.py", "--model_name_or_path {model} --label_column topic", "`label_column` must be one of"),
        ("train_classifier.py", "--model_name_or_path {model} --dataset {plain}", "`label_column` must name a column"),
        ("train_classifier.py", "--model_name_or_path {model} --dataset {single}", "`dataset` must have at least 2"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    corpus, saved_model, tmp_path, monkeypatch, capsys, name, arguments, message
):
    plain, single, folder = tmp_path / "plain.txt", tmp_path / "single.jsonl", tmp_path / "x"
    plain.write_text("one sentence\nanother one\n")
    single.write_text('{"text": "one sentence", "label": "a"}\n')
    filled = arguments.format(tmp=tmp_path, model=saved_model, plain=plain, single=single).split()
    command = ["--dataset", str(corpus), "--output_dir", str(folder), "--report_to", "none", *filled]
    monkeypatch.setattr(sys, "argv", [name, *command])
    with pytest.raises(SystemExit) as exit_:
        run_script(runpy.run_path(str(ROOT / "scripts" / name))["main"])
    assert exit_.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line
    assert not folder.exists()


def test_a_classifier_goes_on_from_its_own_model_alone(corpus, saved_model, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("train_classifier", ROOT / "scripts/train_classifier.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "train_classifier", module)  # a checkpoint names the class of its arguments
    spec.loader.exec_module(module)

    def run(model, steps, *more):
        options = ["--dataset", corpus, "--output_dir", tmp_path / "clf", "--report_to", "none", "--max_steps", steps]
        options += ["--model_name_or_path", model, "--save_strategy", "steps", "--save_steps", 1, *more]
        options += ["--eval_strategy", "no", "--use_cpu", "true", "--freeze_encoder", "false"]
        monkeypatch.setattr(sys, "argv", ["train_classifier.py", *map(str, options)])
        module.main()

    run(saved_model, 1)
    other, resume = shutil.copytree(saved_model, tmp_path / "other"), ("--resume_from_checkpoint", "true")
    model = AutoModelForPreTraining.from_pretrained(other)
    with torch.no_grad():
        next(model.model.parameters()).add_(0.1)
    model.save_pretrained(other)
    with pytest.raises(ValueError, match="`model_name_or_path` must stay the model that the run was started from, got"):
        run(other, 2, *resume)
    with pytest.raises(ValueError, match=r"`label_smoothing_factor` must stay 0\.0"):
        run(saved_model, 2, *resume, "--label_smoothing_factor", 0.1)
    run(shutil.copytree(saved_model, tmp_path / "moved"), 2, *resume)
    assert (tmp_path / "clf/checkpoint-2").exists()


def test_wrong_input_costs_no_earlier_run(corpus, saved_model, tmp_path, monkeypatch, capsys):
    before = sorted(path.name for path in saved_model.iterdir())
    options = ["--output_dir", str(saved_model), "--overwrite_output_dir", "--report_to", "none"]
    for name, command, message in (
        ("train.py", ["--dataset", str(tmp_path / "none.txt")], "`dataset` must be"),
        (
            "train_classifier.py",
            ["--dataset", str(corpus), "--model_name_or_path", str(saved_model)],
            "`output_dir` must not hold what the run reads",
        ),
    ):
        monkeypatch.setattr(sys, "argv", [name, *command, *options])
        with pytest.raises(SystemExit):
            run_script(runpy.run_path(str(ROOT / "scripts" / name))["main"])
        assert message in capsys.readouterr().err
        assert sorted(path.name for path in saved_model.iterdir()) == before


def test_streamed_text_trains(corpus, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    command = ["--dataset", corpus, "--output_dir", folder, *SMALL, "--streaming", "--max_steps", 3]
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, command), "--report_to", "none"])
    runpy.run_path(str(ROOT / "scripts/train.py"))["main"]()
    assert json.loads((folder / "all_results.json").read_text())["train_loss"] > 0


ACCELERATE = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu"]  # without MPI this is one process
TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]


@pytest.mark.slow
@pytest.mark.parametrize(("launch", "processes"), [(ACCELERATE, 1), (TORCHRUN, 2)], ids=["accelerate", "torchrun"])
def test_launchers_train_and_resume(corpus, tmp_path, launch, processes):
    command = ["--dataset", corpus, "--output_dir", tmp_path / "run", *SMALL, "--save_strategy", "steps"]
    command += ["--save_steps", 2, "--report_to", "none", "--max_steps"]
    options = {"prefix": [sys.executable, *launch], "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    first = script("train.py", *command, 4, **options)
    assert first.returncode == 0, first.stderr[-3000:]
    assert len(list((tmp_path / "run/checkpoint-4").glob("rng_state*.pth"))) == processes
    second = script("train.py", *command, 6, "--resume_from_checkpoint", "true", **options)
    assert second.returncode == 0, second.stderr[-3000:]
    assert (tmp_path / "run/checkpoint-6").exists()
    assert json.loads((tmp_path / "run/all_results.json").read_text())["eval_loss"] > 0


@pytest.mark.slow
def test_two_processes_resume_with_equal_losses(corpus, tmp_path):
    launch = [sys.executable, *TORCHRUN]
    whole, cut, classifier = tmp_path / "whole", tmp_path / "cut", tmp_path / "clf"
    command = ["--dataset", corpus, *SMALL, "--max_steps", 6, "--save_strategy", "steps", "--save_steps", 2]
    command += ["--use_cpu", "--report_to", "none", "--logging_steps", 1, "--word_dropout", 0.3]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def launched(name, *arguments):
        result = script(name, *arguments, prefix=launch, env=environment)
        assert result.returncode == 0, result.stderr[-3000:]

    def logged(folder):
        state = json.loads((folder / "checkpoint-6/trainer_state.json").read_text())
        return [row for row in state["log_history"] if "loss" in row]

    launched("train.py", *command, "--output_dir", whole, "--save_total_limit", 3)
    assert (whole / "checkpoint-2/rng_state_1.pth").exists()
    shutil.copytree(whole / "checkpoint-2", cut / "checkpoint-2")
    launched("train.py", *command, "--output_dir", cut, "--resume_from_checkpoint", "true")
    for expected, row in zip(logged(whole), logged(cut), strict=True):
        for name in ("loss", "reconstruction_loss", "z_kl", "gamma_kl", "perplexity"):
            assert row[name] == pytest.approx(expected[name], rel=1e-6), (row["step"], name)

    options = ["--model_name_or_path", whole, "--dataset", corpus, "--output_dir", classifier, "--use_cpu"]
    launched("train_classifier.py", *options, "--num_train_epochs", 2, "--report_to", "none")
    assert "validation_accuracy" in json.loads((classifier / "all_results.json").read_text())


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
