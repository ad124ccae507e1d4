"""What a run says at its start, at every logging step, at its end."""

import json
import math
import shlex
import subprocess
import sys

import numpy as np
import pytest
from transformers import TrainerCallback
from vector_models import script

from hsvae_hf import callbacks, console
from hsvae_hf.callbacks import report_steps
from hsvae_hf.console import command_line, duration, figure, finish, size_of
from hsvae_hf.report import print_report

SIZES = ["--embedding_size", 8, "--hidden_size", 12, "--latent_size", 6, "--per_device_train_batch_size", 4]


def test_figures_times_and_sizes_have_the_digits_that_count(tmp_path):
    figures = {84.3218: "84.3", 0.94401: "0.944", 12345.678: "12,346", 7: "7", 9500: "9,500", 0.0: "0", 1e-5: "1e-05"}
    figures |= {-2.14159: "-2.14", math.nan: "nan", math.inf: "inf", np.float32(0.5): "0.500"}
    assert {value: figure(value) for value in figures} == figures
    times = {0.4: "1 second", 45: "45 seconds", 840: "14 minutes", 9000: "2.5 hours", 200_000: "2.3 days"}
    assert {seconds: duration(seconds) for seconds in times} == times
    for size, text in ((7, "7 bytes"), (1234, "1.23 kB"), (2_500_000, "2.50 MB")):
        (tmp_path / "file").write_bytes(b"x" * size)
        assert size_of(tmp_path / "file") == text


def test_commands_can_be_copied(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["some scripts/train.py"])
    command = command_line("embed.py", input="my file.txt", text_column=None, sentences=["it's", "two"])
    words = ["python", "some scripts/embed.py", "--input", "my file.txt", "--sentences", "it's", "two"]
    assert shlex.split(command) == words
    finish("out: all", {"perplexity": 123.456, "nothing": None, "text": "word"}, command)
    assert capsys.readouterr().out == f"\nout: all\n  perplexity 123, text word\nnext:\n  {command}\n"


def test_one_process_of_many_speaks(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    console.say("said twice")
    monkeypatch.setenv("RANK", "0")
    console.say("said", None, "once")
    assert capsys.readouterr().out == "said\nonce\n"


def test_training_says_a_line_a_log(make_trainer, capfd):
    trainer = make_trainer(num_train_epochs=2, save_strategy="no", logging_steps=3, disable_tqdm=False)
    capfd.readouterr()
    trainer.train()
    printed = capfd.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].startswith("training: 6 steps of 4 rows (2 epochs), on the CPU (")
    logged = [line for line in lines if line.startswith("step ")]
    assert len(logged) == len(lines) - 2  # nothing else, but how long it took
    assert lines[-1].startswith("trained for")
    assert [line.split("  ")[1].strip() for line in logged] == ["train", "held out"] * 2
    found = [row for row in trainer.state.log_history if "loss" in row]
    assert logged[2].startswith(f"step 6/6  train     loss {figure(found[-1]['loss'], 4)}, reconstruction ")
    assert "{" not in printed.out + printed.err
    assert "%|" not in printed.err  # nobody watches
    trainer.evaluate()
    assert capfd.readouterr().out == ""


def test_the_time_left_is_said_once_by_the_speed_of_this_process(make_trainer, capsys, monkeypatch):
    seconds = iter(float(10 * second) for second in range(100))
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: next(seconds))
    options = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "no"}
    trainer = make_trainer(max_steps=900, **options)
    report_steps(trainer, remedy="take less")
    trainer.add_callback(Stop())
    trainer.train()
    printed = capsys.readouterr().out
    assert printed.count("about 2.5 hours left; take less\n") == 1  # 897 steps of ten seconds, known after three
    assert ", about 2.5 hours left\n" in printed  # again in the logs that follow
    resumed = make_trainer(max_steps=12, **options)
    report_steps(resumed, remedy="take less")
    resumed.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-8")
    printed = capsys.readouterr().out
    assert "training: 12 steps of 4 rows (4 epochs, from step 8 on)" in printed
    assert "about 10 seconds left\n" in printed  # after steps 9, 10 and 11


class Stop(TrainerCallback):
    """Ends training after step 8."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= 8


def test_the_scripts_work_as_typed_and_each_names_the_next(tmp_path, sentences, capfd):
    folder, corpus, classifier = tmp_path / "a run", tmp_path / "my corpus.csv", tmp_path / "clf"
    corpus.write_text("id,review,stars\n" + "".join(f"{i},{text},{i % 2}\n" for i, text in enumerate(sentences * 4)))
    train = ["--dataset", corpus, "--output_dir", folder, *SIZES, "--max_steps", 3, "--save_strategy", "no"]
    script("train", *train, "--prior_alpha", 3, "--free_bits", 0.1)
    printed = capfd.readouterr()
    lines = printed.out.splitlines()
    assert lines[0] == f"{corpus}: hsvae, to {folder}"
    assert any("rows: train 46, validation 2" in line for line in lines[:4])
    model = next(line for line in lines if line.startswith("model: "))
    assert model.startswith("model: hsvae, 6 dimensions, 1.50 on per sentence wanted, GRU of 12, ")
    assert "parameters" in model
    assert any(line.startswith("training: 3 steps of 4 rows") for line in lines)
    assert lines[-4] == f"{folder}: the model, its tokenizer, and all figures in all_results.json"
    figures = [part.rpartition(" ")[2] for part in lines[-3].split(", ")]
    results = json.loads((folder / "all_results.json").read_text())
    assert figures[0] == figure(results["eval_perplexity"])
    assert len(figures) == 3
    assert results["eval_reconstruction_loss"] > 0
    assert not any(len(word.strip("0123456789.")) == 0 and len(word) > 6 for word in printed.out.split())
    assert json.loads((folder / "config.json").read_text())["prior_alpha"] == 3
    assert list(folder.glob("runs/*/events*"))
    evaluate = shlex.split(lines[-1])
    with pytest.raises(ValueError, match="`output_dir` must be empty or new"):
        script("train", *train)

    assert evaluate[1] == "evaluate_model.py"
    picture = tmp_path / "gates.png"
    script("evaluate_model", *evaluate[2:], "--label_column", "stars", "--heatmap", picture)  # what it says works
    printed = capfd.readouterr().out
    assert f"{folder / 'report.json'}: all figures" in printed
    assert "advice: None" not in printed
    assert "perplexity per word" in printed
    assert picture.stat().st_size > 1000
    explain = shlex.split(printed.splitlines()[-1])
    assert explain[1] == "explain.py"
    script("explain", *explain[2:])
    assert "dimensions are ever on" in capfd.readouterr().out

    text = tmp_path / "in.txt"
    text.write_text("the cat sees a dog\n\na bird\n")
    script("embed", "--model_name_or_path", folder, "--input", text, "--output", tmp_path / "my codes.npz")
    printed = capfd.readouterr().out
    assert printed.splitlines()[0] == f"embed.py: {text}, by {folder}, to {tmp_path / 'my codes.npz'}"
    assert "codes 3, non-zeros per code " in printed
    assert "empty codes" in printed
    read = shlex.split(printed.splitlines()[-1])
    result = subprocess.run([sys.executable, *read[1:]], capture_output=True, text=True, check=True)
    assert "shape (3, 6)" in result.stdout

    script(
        *("train_classifier", "--model_name_or_path", folder, "--dataset", corpus, "--label_column", "stars"),
        *("--output_dir", classifier, "--max_steps", 2, "--report_to", "none", "--save_strategy", "no"),
    )
    lines = capfd.readouterr().out.splitlines()
    assert lines[-4] == f"{classifier}: the classifier, its tokenizer, and all figures in all_results.json"
    assert lines[-3].startswith("  accuracy on validation ")
    words = shlex.split(lines[-1])
    assert words[:2] == ["python", "-c"]
    compile(words[2], "next", "exec")
    assert "validation_accuracy" in json.loads((classifier / "all_results.json").read_text())
    assert json.loads((classifier / "config.json").read_text())["id2label"] == {"0": "0", "1": "1"}


def test_a_report_has_names_three_digits_and_advice_where_there_is_some(capsys):
    report = {"rows": 2800, "perplexity": 123.456789, "active_dims": 15.8123, "advice": None, "total_flos": 1e20}
    report |= {"accuracy": {"code": 0.94444, "majority": 0.1}, "kl_per_dimension": [0.1] * 9}
    print_report(report)
    rows = [line.rsplit("  ", 1) for line in capsys.readouterr().out.splitlines()]
    assert {name.strip(): value for name, value in rows} == {
        "rows": "2,800",
        "perplexity per word": "123",
        "non-zeros per code": "15.8",
        "accuracy from the code": "0.944",
        "accuracy of the largest class": "0.100",
    }
    print_report(report | {"advice": "Train longer."})
    assert capsys.readouterr().out.endswith("advice: Train longer.\n")


def test_warnings_of_the_package_are_lines_of_their_own(capsys):
    logger = console.logging.getLogger("hsvae_hf")
    try:
        console.prepare_output()
        console.prepare_output()
        console.logging.getLogger("hsvae_hf.data").warning("%d rows are blank", 3)
        assert capsys.readouterr().err == "warning: 3 rows are blank\n"
    finally:
        logger.handlers.clear()
