"""How a script ends: one line for bad input, a full memory or disk, and for a signal, at any moment."""

import errno
import importlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import hsvae_hf
from hsvae_hf.cli import run
from hsvae_hf.files import uninterrupted
from hsvae_hf.models.sources import HTTP_ERROR

ROOT = Path(__file__).parent.parent
SMALL = ["--embedding_size", "8", "--hidden_size", "12", "--latent_size", "6", "--per_device_train_batch_size", "4"]
SMALL += ["--report_to", "none", "--max_steps", "4", "--save_strategy", "steps", "--save_steps", "2"]


def arguments(script, corpus, model, output):
    """The command line of each script, its results in the folder `output`."""
    text = corpus.with_suffix(".txt")
    text.write_text("one sentence\nanother one\n")
    model = ["--model_name_or_path", model]
    return {
        "train": ["--dataset", corpus, "--output_dir", output / "run", *SMALL],
        "train_classifier": [*model, "--dataset", corpus, "--output_dir", output / "run", *SMALL[6:]],
        "embed": [*model, "--input", text, "--output", output / "codes.npz"],
        "evaluate_model": [
            *(*model, "--dataset", corpus, "--split", "validation"),
            *("--output", output / "a.json", "--heatmap", output / "a.png"),
        ],
        "explain": [*model, "--dataset", corpus, "--output", output / "a.json"],
        "quickstart": ["--output_dir", output / "run", "--max_train_samples", 50, "--max_steps", 1],
    }[script]


@contextmanager
def handlers_kept():
    """A script that was stopped ignores further signals; a test that stops one does not."""
    handlers = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for kind, handler in handlers.items():
            signal.signal(kind, handler)


def around(monkeypatch, place, before=lambda: None, after=lambda: None):
    """Have something done around each call of the function at `module:name` or `module:Class.name`."""
    module, _, name = place.partition(":")
    owner = importlib.import_module(module)
    *classes, name = name.split(".")
    for found in classes:
        owner = getattr(owner, found)
    original = getattr(owner, name)

    def wrapped(*args, **kwargs):
        before()
        result = original(*args, **kwargs)
        after()
        return result

    monkeypatch.setattr(owner, name, wrapped)


@pytest.mark.parametrize(
    ("number", "script", "place"),
    [
        (signal.SIGINT, "train", "hsvae_hf.data:locate"),
        (signal.SIGTERM, "train", "torch.optim:AdamW.step"),
        (signal.SIGINT, "train", "transformers:Trainer._save_optimizer_and_scheduler"),
        (signal.SIGTERM, "train", "hsvae_hf.callbacks:corpus_statistics"),
        (signal.SIGINT, "train_classifier", "torch.optim:AdamW.step"),
        (signal.SIGINT, "embed", "hsvae_hf.encoding:_encode_batch"),
        (signal.SIGTERM, "embed", "numpy.lib.format:write_array"),
        (signal.SIGTERM, "evaluate_model", "hsvae_hf.report:probe_accuracy"),
        (signal.SIGTERM, "evaluate_model", "matplotlib.figure:Figure.savefig"),
        (signal.SIGINT, "explain", "hsvae_hf.encoding:_encode_batch"),
        (signal.SIGTERM, "quickstart", "hsvae_hf.training:set_seed"),
    ],
)
def test_a_signal_ends_a_script_in_one_line(number, script, place, corpus, saved_model, tmp_path, monkeypatch, ended):
    (tmp_path / "out").mkdir()
    around(monkeypatch, place, after=lambda: os.kill(os.getpid(), number))
    with handlers_kept():
        code, lines = ended(script, *arguments(script, corpus, saved_model, tmp_path / "out"))
    assert code == 128 + number
    assert lines[-1] == f"stopped by {number.name}; no file is half written"
    assert not any("Traceback" in line for line in lines)
    left = sorted(path.name for path in (tmp_path / "out").rglob("*"))
    assert not any(name.startswith(".") for name in left)
    if script != "train":
        assert left in ([], ["a.png"])  # the heat map is whole before the report is begun
    for checkpoint in (tmp_path / "out").glob("run/*"):
        assert checkpoint.name in ("checkpoint-2", "checkpoint-4")
        assert (checkpoint / "optimizer.pt").is_file()


def test_another_signal_does_not_disturb_the_cleaning(capsys):
    seen = []

    def main():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            with uninterrupted():
                os.kill(os.getpid(), signal.SIGTERM)
                seen.append("clean")

    with handlers_kept(), pytest.raises(SystemExit) as caught:
        run(main)
    assert (caught.value.code, seen) == (143, ["clean"])
    assert capsys.readouterr().err == "stopped by SIGTERM; no file is half written\n"


def raises(error, cause=None):
    def main():
        raise error from cause

    return main


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (raises(ValueError("`x` must be 1")), "`x` must be 1"),
        (raises(MemoryError()), "lower the batch size"),
        (raises(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")), "lower the batch size"),
        (raises(KeyError("x"), MemoryError()), "lower the batch size"),
        (raises(RuntimeError("DataLoader worker (pid 5) is killed by signal: Killed.")), "lower the batch size"),
        (lambda: torch.empty(2**60), "lower the batch size"),
        (raises(HTTP_ERROR("the Hub\ndoes not answer")), "the Hub does not answer"),
        (raises(OSError(errno.ENOSPC, "No space left on device")), "the disk is full"),
        (raises(RuntimeError("[gloo/pair.cc:5] Connection closed by peer [127.0.0.1]:5")), "another process of"),
    ],
)
def test_what_the_user_can_mend_is_one_line(main, words, capsys):
    with pytest.raises(SystemExit) as caught:
        run(main)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.strip().split("\n")
    assert line.startswith("error: ")
    assert words in line


def test_a_fault_of_the_program_keeps_its_traceback():
    for error in (KeyError("x"), RuntimeError("The size of tensor a must match"), TypeError("x")):
        with pytest.raises(type(error)):
            run(raises(error))


@pytest.mark.parametrize(
    ("script", "option", "path"),
    [
        ("train", "--output_dir", "file/run"),
        ("train", "--output_dir", "file"),
        ("train_classifier", "--output_dir", "/proc/run"),
        ("quickstart", "--output_dir", "file/run"),
        ("embed", "--output", "folder.npz"),
        ("evaluate_model", "--output", "/proc/a.json"),
        ("evaluate_model", "--heatmap", "/proc/a.png"),
    ],
)
def test_an_output_is_checked_before_the_work(script, option, path, corpus, saved_model, tmp_path, monkeypatch, ended):
    out = tmp_path / "out"
    (out / "folder.npz").mkdir(parents=True)
    (out / "file").touch()
    words = [*arguments(script, corpus, saved_model, out), option, out / path]
    words += ["--overwrite"] if script in ("embed", "evaluate_model") else []

    def work(*args, **kwargs):
        raise AssertionError("the work has begun")

    for place in ("hsvae_hf.data.locate", "hsvae_hf.loading.AutoConfig", "hsvae_hf.data_sources.docstring_corpus"):
        monkeypatch.setattr(place, work)
    code, lines = ended(script, *words)
    assert code == 2
    assert lines[-1].startswith(f"error: `{option[2:]}` must ")
    assert sorted(path.name for path in out.rglob("*")) == ["file", "folder.npz"]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the size of the process is not known")
@pytest.mark.parametrize(
    ("script", "what", "place"),
    [
        ("train", "disk", "transformers:Trainer._save_optimizer_and_scheduler"),
        ("embed", "disk", "torch:searchsorted"),
        ("train", "memory", "torch.nn:GRU.forward"),
        ("embed", "memory", "hsvae_hf.encoding:_encode_batch"),
    ],
)
def test_a_full_disk_or_memory_is_one_line(
    script, what, place, corpus, saved_model, small_config, tmp_path, monkeypatch, ended
):
    (tmp_path / "out").mkdir()
    words = arguments(script, corpus, saved_model, tmp_path / "out")
    limit = resource.RLIMIT_FSIZE if what == "disk" else resource.RLIMIT_AS
    if what == "memory" and script == "train":
        words += ["--hidden_size", 1500]
    elif what == "memory":
        small_config.hidden_size = 400
        hsvae_hf.HSVAEForPreTraining(small_config).save_pretrained(saved_model)
        corpus.with_suffix(".txt").write_text("one sentence\n" * 8_000)
        words += ["--batch_size", 8_000]
    limits = resource.getrlimit(limit)

    def lower():
        size = 200  # bytes: no file may be longer
        if what == "memory":
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + 2**23
        resource.setrlimit(limit, (size, limits[1]))

    around(monkeypatch, place, before=lower)
    try:
        code, lines = ended(script, *words)
    finally:
        resource.setrlimit(limit, limits)
    assert code == 2
    assert lines[-1].startswith(
        "error: the disk is full" if what == "disk" else "error: the memory ran out; lower the batch size"
    )
    assert not list((tmp_path / "out").iterdir())


def test_a_signal_ends_a_script_that_imports_without_a_word():
    begin = "import os, signal, sys; sys.path.insert(0, sys.argv[1]); import __main__; __main__.__file__ = sys.argv[2]"
    code = f"{begin}; import before_imports; os.kill(os.getpid(), signal.SIGTERM)"  # as the interpreter starts a script
    command = [sys.executable, "-c", code, str(ROOT / "scripts"), str(ROOT / "scripts/embed.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "")


@pytest.mark.slow
def test_signals_from_outside_end_a_run_and_its_workers(corpus, tmp_path):
    run_folder = tmp_path / "run"
    words = ["--dataset", corpus, "--output_dir", run_folder, *SMALL, "--max_steps", 10**6, "--save_total_limit", 1]
    command = list(map(str, [sys.executable, ROOT / "scripts/train.py", *words, "--dataloader_num_workers", 1]))

    def started(wanted):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
        begin = time.monotonic()
        while not list(run_folder.glob(wanted)) and process.poll() is None and time.monotonic() - begin < 120:
            time.sleep(0.05)
        return process

    for number, wanted in (
        (signal.SIGINT, "checkpoint-*"),
        (signal.SIGTERM, ".unfinished"),
    ):
        process = started(wanted)
        os.killpg(process.pid, number)  # as a terminal does
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        output = process.communicate(timeout=60)[0].decode().replace("\r", "\n")
        assert process.returncode == 128 + number, output[-2000:]
        assert "Traceback" not in output
        assert output.strip().split("\n")[-1] == f"stopped by {signal.Signals(number).name}; no file is half written"
        assert not list(tmp_path.rglob(".*"))
        shutil.rmtree(run_folder, ignore_errors=True)

    process = started("checkpoint-*")
    second = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert second.returncode == 2
    assert second.stderr.startswith("error: `output_dir` must be written by one process at a time")
    assert f"process {process.pid} is writing" in second.stderr
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
