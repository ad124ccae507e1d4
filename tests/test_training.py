"""Training: logged terms, annealing, whole checkpoints, exact resume, what is refused and when."""

import importlib.util
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from families import FAMILIES, bert
from transformers import AutoModelForPreTraining, AutoTokenizer
from vector_models import script

import hsvae_hf
from hsvae_hf.batching import TextCollator
from hsvae_hf.callbacks import AnnealingCallback, CollapseMonitor
from hsvae_hf.checkpoints import check_resumable, data_fingerprint
from hsvae_hf.runs import check_output_dir, claimed_output_dir
from hsvae_hf.training_arguments import RunArguments, TextVAETrainingArguments

ROOT = Path(__file__).parent.parent
SMALL = ["--embedding_size", 8, "--hidden_size", 12, "--latent_size", 6, "--per_device_train_batch_size", 4]
SMALL += ["--report_to", "none", "--save_strategy", "steps", "--save_steps", 2]


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
    rows = trainer.eval_dataset
    tokens = sum(map(len, rows["input_ids"]))
    expected = np.exp(evaluations[-1]["eval_reconstruction_loss"] * 6 / tokens)
    assert evaluations[-1]["eval_perplexity"] == pytest.approx(expected, rel=1e-4)
    torch.manual_seed(1)
    alone = trainer.evaluate(rows.select(range(2)), metric_key_prefix="test")
    trainer.predict(rows)  # logs nothing, and leaves nothing behind
    torch.manual_seed(1)
    assert trainer.evaluate(rows.select(range(2)), metric_key_prefix="test")["test_z_kl"] == alone["test_z_kl"]


@pytest.mark.parametrize(
    "options",
    [
        {"logging_steps": 50},  # evaluation is the first to see it
        {"logging_steps": 50, "eval_strategy": "no", "save_strategy": "steps", "save_steps": 2},  # the checkpoint is
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
    assert not list(Path(trainer.args.output_dir).glob("checkpoint-*"))
    trainer = make_trainer(max_steps=2, save_strategy="no", eval_strategy="no")
    trainer.model.decoder.lm_head.bias.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(ValueError, match="`learning_rate` must be lower: grad_norm at step 1 is (inf|nan)"):
        trainer.train()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_model_trains_and_resumes_exactly(make_trainer, tokenizer, family):
    changes = {"vocab_size": len(tokenizer)} | (bert(len(tokenizer)) if not family.gru else {"word_dropout": 0.3})
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "save_total_limit": None}
    options |= {"kl_annealing": "linear", "kl_warmup_steps": 3}  # steps 3 and 4 are of two epochs
    options |= {"model": lambda: family.pretraining(family.config(**changes)), "eval_strategy": "no"}
    whole = make_trainer("whole", **options)
    whole.train()
    resumed = make_trainer("resumed", **options)
    resumed.train(resume_from_checkpoint=str(Path(whole.args.output_dir) / "checkpoint-2"))
    assert sorted(losses(whole)) == [1, 2, 3, 4]
    assert losses(resumed) == losses(whole)
    for one, other in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_checkpoints_are_kept_to_the_limit_and_the_best_is_the_one_of_less_perplexity(make_trainer):
    options = {"save_total_limit": 2, "metric_for_best_model": "perplexity", "load_best_model_at_end": True}
    trainer = make_trainer(num_train_epochs=4, **options)
    trainer.train()
    measured = [row["eval_perplexity"] for row in trainer.state.log_history if "eval_perplexity" in row]
    assert trainer.state.best_metric == min(measured)
    folder, best = Path(trainer.args.output_dir), Path(trainer.state.best_model_checkpoint)
    kept = list(folder.iterdir())
    assert len(kept) == 2
    assert best in kept
    assert json.loads((best / "trainer_state.json").read_text())["best_model_checkpoint"] == str(best)
    trainer = make_trainer(metric_for_best_model="squared_error")  # of vectors alone
    with pytest.raises(ValueError, match="`metric_for_best_model` must be measured in evaluation, got 'squared_error'"):
        trainer.train()


def test_a_killed_run_leaves_nothing_in_the_next_one(make_trainer):
    trainer = make_trainer(max_steps=3, save_strategy="steps", save_steps=3, eval_strategy="no")
    folder = Path(trainer.args.output_dir)
    for leftover in (folder / ".unfinished/checkpoint-3", folder / "checkpoint-3"):
        leftover.mkdir(parents=True)
        (leftover / "rng_state_1.pth").write_text("of a run with two processes")
    trainer.train()
    assert [path.name for path in folder.iterdir()] == ["checkpoint-3"]
    assert not (folder / "checkpoint-3/rng_state_1.pth").exists()


def test_annealing_follows_its_schedule_and_reaches_the_model(make_trainer):
    for kind, schedule in (
        ("linear", {0: 0, 25: 0.5, 90: 1}),
        ("cyclical", {0: 0, 5: 0.5, 15: 1, 20: 0}),
    ):
        callback = AnnealingCallback(kind, warmup_steps=50 if kind == "linear" else None, cycles=4)
        assert {step: callback.scale(step, 80) for step in schedule} == schedule
    with pytest.raises(ValueError, match="`kl_annealing` must be none, linear or cyclical, got 'liner'"):
        AnnealingCallback("liner")
    trainer = make_trainer(kl_annealing="linear", kl_warmup_steps=100, max_steps=5, save_strategy="no")
    trainer.train()
    assert trainer.model.kl_scale == 0.04


def test_no_run_is_overwritten_unasked_or_before_the_new_one_can_start(make_trainer, tmp_path):
    folder = tmp_path / "run"
    options = {"output_dir": str(folder), "report_to": "none"}
    (folder / "runs/today").mkdir(parents=True)  # the logs of one that ended before its first checkpoint
    assert check_output_dir(TextVAETrainingArguments(**options)) is None
    old = folder / "old"
    old.write_text("old run")
    with pytest.raises(ValueError, match="`output_dir` must be empty or new"):
        check_output_dir(TextVAETrainingArguments(**options))
    with pytest.raises(ValueError, match="`resume_from_checkpoint` must be a whole checkpoint"):
        check_output_dir(TextVAETrainingArguments(**options, resume_from_checkpoint="true"))
    overwriting = TextVAETrainingArguments(**options, overwrite_output_dir=True)
    assert check_output_dir(overwriting) is None
    with pytest.raises(ValueError, match="`output_dir` must not hold what the run reads"):
        check_output_dir(overwriting, (None, "hub/id", str(old)))
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "no"}
    with pytest.raises(ValueError, match="`train_dataset` must fill a batch"):
        make_trainer(
            per_device_train_batch_size=500, dataloader_drop_last=True, overwrite_output_dir=True, **options
        ).train()
    assert old.exists()
    make_trainer(overwrite_output_dir=True, **options).train()
    assert not old.exists()
    checkpoint = str(folder / "checkpoint-2")  # goes on in a new folder, and mixes into no other run
    options |= {"resume_from_checkpoint": checkpoint}
    new = make_trainer("new", **options).args
    Path(new.output_dir).rmdir()
    assert check_output_dir(new) == checkpoint
    (tmp_path / "other").mkdir()
    (tmp_path / "other/old").write_text("old run")
    with pytest.raises(ValueError, match="`output_dir` must be empty or new.*needs a folder of its own"):
        check_output_dir(make_trainer("other", overwrite_output_dir=True, **options).args)


@pytest.fixture
def stopped(make_trainer):
    """A function that makes a trainer like one which was stopped at step 2 of 4, and its checkpoint."""
    options = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "no", "max_steps": 4}
    first = make_trainer(**options)
    first.train()
    checkpoint = Path(first.args.output_dir) / "checkpoint-2"

    def again(**changes):
        return make_trainer(**(options | {"max_steps": 5, "resume_from_checkpoint": str(checkpoint)} | changes))

    return again, checkpoint


def test_a_run_goes_on_with_its_own_data_alone(stopped, caplog):
    again, checkpoint = stopped
    trainer = again(save_strategy="no")
    rows = trainer.train_dataset
    for other in (rows.select(range(11)), rows.select([*range(1, 12), 0]), rows.map(lambda row: {"input_ids": [3, 1]})):
        trainer.train_dataset = other
        with pytest.raises(ValueError, match="`resume_from_checkpoint` must be a run on the same data, got .* of"):
            trainer.train(resume_from_checkpoint=str(checkpoint))
    trainer.train_dataset = rows.flatten_indices()
    loggers = [logging.getLogger(name) for name in ("transformers", "hsvae_hf")]
    for logger in loggers:
        logger.addHandler(caplog.handler)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert trainer.state.global_step == 5
    assert "this run was started for 4 steps and now goes on to 5" in caplog.text
    assert "missing keys" not in caplog.text
    (checkpoint / "course.json").unlink()
    again().train(resume_from_checkpoint=str(checkpoint))
    for logger in loggers:
        logger.removeHandler(caplog.handler)
    assert "does not say on which data" in caplog.text


def test_the_fingerprint_of_data_is_of_its_words_labels_and_order():
    rows = [{"input_ids": [3, 4, 1], "label": 0}, {"input_ids": [5, 1], "label": 1}]
    one = data_fingerprint(Dataset.from_list(rows))
    assert one == data_fingerprint(Dataset.from_list([rows[0], rows[0], rows[1]]).select([0, 2]))
    assert one == data_fingerprint(Dataset.from_list(rows).to_iterable_dataset())
    moved = [{"input_ids": [3, 4], "label": 0}, {"input_ids": [1, 5, 1], "label": 1}]
    for other in (rows[::-1], moved, [rows[0], rows[1] | {"label": 0}], rows[:1]):
        assert one != data_fingerprint(Dataset.from_list(other))
    assert one == "8470f6979429bc33"  # on every machine


def test_a_run_goes_on_with_its_own_settings_alone(stopped):
    again, checkpoint = stopped
    assert check_output_dir(again().args) == str(checkpoint)
    changes = {"learning_rate": 1e-4, "per_device_train_batch_size": 2, "seed": 8, "gradient_accumulation_steps": 2}
    changes |= {"max_grad_norm": 1.0, "weight_decay": 0.1, "neftune_noise_alpha": 1.0, "bf16": True}
    changes |= {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": 2}, "optim": "adafactor"}
    changes |= {"optim_args": "rank=2", "kl_annealing": "linear", "ignore_data_skip": True}
    changes |= {"train_sampling_strategy": "random"}
    for name, value in changes.items():
        with pytest.raises(ValueError, match=f"`{name}` must stay .*, as in .*checkpoint-2', got"):
            check_output_dir(again(**{name: value}).args)


def test_a_checkpoint_that_is_finished_damaged_or_of_another_model_is_refused(stopped):
    again, checkpoint = stopped
    with pytest.raises(ValueError, match="got 2 of 2 steps done"):
        again(max_steps=2).train(resume_from_checkpoint=str(checkpoint))
    check_resumable(str(checkpoint), {"model_type": "hsvae", "latent_size": 6, "z_kl_weight": 0.01})
    with pytest.raises(ValueError, match=r"`latent_size` must stay 6, as in .*, got 7"):
        check_resumable(str(checkpoint), {"latent_size": 7})
    for name in ("optimizer.pt", "rng_state.pth"):
        whole = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(whole[:100])
        with pytest.raises(ValueError, match="`resume_from_checkpoint` must be a whole checkpoint"):
            again().train(resume_from_checkpoint=str(checkpoint))
        (checkpoint / name).write_bytes(whole)
    for name in ("model.safetensors", "config.json"):
        whole = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(whole[:100])
        with pytest.raises(ValueError, match="got .*damaged"):
            check_resumable(str(checkpoint), {})
        (checkpoint / name).write_bytes(whole)
    for name in ("scheduler.pt", "rng_state.pth", "optimizer.pt", "model.safetensors"):
        (checkpoint / name).rename(checkpoint / "elsewhere")
        with pytest.raises(ValueError, match=f"must be a whole checkpoint, got .* without {name}"):
            check_output_dir(again().args)
        (checkpoint / "elsewhere").rename(checkpoint / name)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        *[(name, 0, "") for name in ("learning_rate", "num_train_epochs", "max_steps", "gradient_accumulation_steps")],
        *[("weight_decay", value, "at least 0.*, got") for value in (-5, math.nan)],
        ("max_grad_norm", math.nan, "at least 0.*, got"),
        ("label_smoothing_factor", 5, "from 0 to 1.*, got"),
        ("save_steps", 0, "above 0.*, got"),
        ("eval_steps", -1, "above 0.*, got"),
    ],
)
def test_settings_out_of_range_are_named(tmp_path, name, value, rule):
    with pytest.raises(ValueError, match=f"`{name}` must be {rule}"):
        RunArguments(output_dir=str(tmp_path), report_to="none", **{name: value})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"report_to": "wandb"}, "`report_to` must be one of"),
        ({"optim": "adafactor_x"}, "got 'adafactor_x'; did you mean adafactor?"),
        ({"eval_strategy": "sometimes"}, "`eval_strategy` must be one of no, steps, epoch, got 'sometimes'"),
        ({"metric_for_best_model": "eval_los"}, "`metric_for_best_model` must be measured in evaluation"),
        ({"load_best_model_at_end": True, "eval_strategy": "steps"}, "load_best_model_at_end"),
        ({"warmup_steps": 9}, "`warmup_steps` must be left out with a constant"),
        ({"warmup_steps": 9, "max_steps": 9, "lr_scheduler_type": "linear"}, "`warmup_steps` must be below"),
        ({"kl_warmup_steps": 9}, "`kl_warmup_steps` must be left out unless `kl_annealing` is linear"),
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


def test_targets_of_the_collator_are_those_of_the_input(small_config, tokenizer, sentences):
    model = hsvae_hf.HSVAEForPreTraining(small_config).eval()
    batch = TextCollator(tokenizer)([{"input_ids": tokenizer(text)["input_ids"]} for text in sentences[:3]])
    for end in (small_config.eos_token_id, small_config.pad_token_id):  # some tokenizers pad with the end of sentence
        model.config.pad_token_id, losses = end, []
        for inputs in (batch, {name: value for name, value in batch.items() if name != "labels"}):
            torch.manual_seed(1)
            losses.append(model(**inputs).loss.item())
        assert losses[0] == losses[1]


def test_killed_while_saving_a_run_resumes_from_the_last_whole_checkpoint(corpus, refused, tmp_path):
    run = tmp_path / "run"
    command = ["--dataset", corpus, "--output_dir", run, *SMALL, "--max_steps", 6, "--eval_strategy", "no"]
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
    script("train", *command, "--resume_from_checkpoint", "true")
    assert (run / "checkpoint-6").is_dir()
    assert not (run / ".unfinished").exists()
    assert json.loads((run / "train_settings.json").read_text())["max_length"] == 60
    longer = [*command, "--num_train_epochs", 9, "--resume_from_checkpoint", "true", "--max_length", 5]
    assert "error: `max_length` must stay" in refused("train", *longer)
    model = AutoModelForPreTraining.from_pretrained(run)
    assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(run))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("train", "--z_kl_weight -1", "`z_kl_weight` must be at least 0"),
        ("train", "--max_length 0", "`max_length` must be at least 2"),
        ("train", "--dataset {tmp}/none.txt", "no such file or folder is here"),
        ("train", "--resume_from_checkpoint true", "`resume_from_checkpoint` must be a whole checkpoint"),
        ("train", "--pres released", "--pres"),
        ("train_classifier", "--model_name_or_path {tmp}/none", "`model_name_or_path` must be the folder"),
        ("train_classifier", "--model_name_or_path {model} --output_dir {model}", "must not hold what the run reads"),
        ("train_classifier", "--model_name_or_path {model} --dataset {single}", "`dataset` must have at least 2"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(corpus, saved_model, tmp_path, refused, name, arguments, message):
    single, folder = tmp_path / "single.jsonl", tmp_path / "x"
    single.write_text('{"text": "one sentence", "label": "a"}\n')
    filled = arguments.format(tmp=tmp_path, model=saved_model, single=single).split()
    words = ["--dataset", corpus, "--output_dir", folder, "--report_to", "none", *filled]
    assert message in refused(name, *words)
    assert not folder.exists()
    folder.mkdir()
    (folder / "old").write_text("of an earlier run")
    refused(name, *words, "--overwrite_output_dir")
    assert [path.name for path in folder.iterdir()] == ["old"]


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


ACCELERATE = ["accelerate.commands.launch", "--num_processes", 2, "--cpu"]  # without MPI this is one process
TORCHRUN = ["torch.distributed.run", "--nproc_per_node", 2]


@pytest.mark.slow
@pytest.mark.parametrize(("launch", "processes"), [(ACCELERATE, 1), (TORCHRUN, 2)], ids=["accelerate", "torchrun"])
def test_launchers_train_and_resume_with_equal_losses(corpus, tmp_path, launch, processes):
    whole, cut, classifier = tmp_path / "whole", tmp_path / "cut", tmp_path / "clf"
    command = ["--dataset", corpus, *SMALL, "--max_steps", 6, "--logging_steps", 1, "--word_dropout", 0.3]

    def launched(name, *arguments):
        call = [sys.executable, "-m", *launch, ROOT / f"scripts/{name}.py", *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run([*map(str, call)], capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]

    def logged(folder):
        state = json.loads((folder / "checkpoint-6/trainer_state.json").read_text())
        return [row for row in state["log_history"] if "loss" in row]

    launched("train", *command, "--output_dir", whole, "--save_total_limit", 3)
    assert len(list((whole / "checkpoint-2").glob("rng_state*.pth"))) == processes
    assert json.loads((whole / "all_results.json").read_text())["eval_loss"] > 0
    shutil.copytree(whole / "checkpoint-2", cut / "checkpoint-2")
    launched("train", *command, "--output_dir", cut, "--resume_from_checkpoint", "true")
    for expected, row in zip(logged(whole), logged(cut), strict=True):
        for name in ("loss", "reconstruction_loss", "z_kl", "gamma_kl", "perplexity"):
            assert row[name] == pytest.approx(expected[name], rel=1e-6), (row["step"], name)
    options = ["--model_name_or_path", whole, "--dataset", corpus, "--output_dir", classifier]
    launched("train_classifier", *options, "--num_train_epochs", 2, "--report_to", "none")
    assert "validation_accuracy" in json.loads((classifier / "all_results.json").read_text())


@pytest.mark.data
def test_real_text_trains_under_bf16(data_dir, tmp_path):
    script(
        *("train", "--dataset", data_dir / "yahoo", "--output_dir", tmp_path / "run", *SMALL[:6], "--max_steps", 30),
        *("--max_train_samples", 1000, "--max_samples", 100, "--per_device_train_batch_size", 32),
        *("--bf16", "--use_cpu", "--report_to", "none", "--learning_rate", 1e-2, "--save_strategy", "no"),
    )
    assert json.loads((tmp_path / "run/all_results.json").read_text())["eval_perplexity"] < 1500
