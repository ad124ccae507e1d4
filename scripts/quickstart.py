"""The whole path in a few minutes on two cores: train a small HSVAE on docstrings, embed, look at the codes."""

import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":  # the imports take seconds: a signal ends them without a traceback
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))

import numpy as np
import torch
from transformers import set_seed

import hsvae_hf
from hsvae_hf.active_dims import hold_target
from hsvae_hf.arguments import parse
from hsvae_hf.batching import TextCollator, input_batches
from hsvae_hf.checkpoints import claimed_output_dir
from hsvae_hf.cli import run
from hsvae_hf.data import load_text_dataset, tokenize_dataset
from hsvae_hf.extras import require
from hsvae_hf.models.modeling_text_vae import tokenizer_fields
from hsvae_hf.plots import plot_gate_heatmap
from hsvae_hf.presets import SMALL_LENGTH, SMALL_MODEL, SMALL_TRAINING
from hsvae_hf.probes import representations
from hsvae_hf.report import evaluate_model, print_report
from hsvae_hf.reporting import command_line, data_facts, finish, model_facts, say
from hsvae_hf.statistics import class_gate_activity
from hsvae_hf.tokenization import train_tokenizer
from hsvae_hf.trainer import TextVAETrainer
from hsvae_hf.training import run_settings, save_run
from hsvae_hf.training_arguments import TextVAETrainingArguments


@dataclass
class QuickstartArguments:
    """Where to, and how long."""

    output_dir: str = field(default="runs/quickstart", metadata={"help": "Folder of the model and the picture."})
    max_steps: int = field(default=SMALL_TRAINING["max_steps"], metadata={"help": "Steps to train."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Sentences to train on; all by default."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Delete what is in output_dir."})


def show_neighbours(model: hsvae_hf.HSVAEModel, tokenizer: object, corpus: list[str], queries: list[str]) -> None:
    """Print the active dimensions of each query and its nearest sentences.

    Nearest by the sparse dot product of codes scaled to unit variance per dimension and unit length per sentence.
    """
    from sklearn.preprocessing import StandardScaler, normalize

    codes = hsvae_hf.encode(model, tokenizer, corpus + queries)
    scaled = normalize(StandardScaler(with_mean=False).fit_transform(codes))
    for row, query in enumerate(queries, start=len(corpus)):
        code = codes[row]
        strongest = np.argsort(-np.abs(code.data))[:8]
        shown = ", ".join(f"{code.indices[i]}: {code.data[i]:+.2f}" for i in strongest)
        say(f'\n"{query}"\n  {code.nnz} of {codes.shape[1]} dimensions active; strongest {{{shown}}}')
        similarity = (scaled[: len(corpus)] @ scaled[row].T).toarray().ravel()
        for index in np.argsort(-similarity)[:3]:
            say(f"  {similarity[index]:.2f}  {corpus[index]}")


def main() -> None:
    """Train in a folder that is this run's alone."""
    options = parse(QuickstartArguments, __doc__)
    require("accelerate", "evaluate", "matplotlib", "sklearn")
    settings = SMALL_TRAINING | {"eval_strategy": "no", "save_strategy": "no", "report_to": "none"}
    settings |= {"logging_steps": 200, "max_steps": options.max_steps, "output_dir": options.output_dir}
    arguments = TextVAETrainingArguments(**settings, overwrite_output_dir=options.overwrite_output_dir)
    with claimed_output_dir(arguments):
        train(options, arguments)


def train(options: QuickstartArguments, arguments: TextVAETrainingArguments) -> None:
    """Train, measure, show."""
    set_seed(42)
    say(f"quickstart.py: a small hsvae on the docstrings of the installed packages, to {options.output_dir}")
    dataset = load_text_dataset("docstrings", max_train_samples=options.max_train_samples)
    say(*data_facts(dataset))
    sizes = dict(SMALL_MODEL)
    words = sizes.pop("vocab_size")
    tokenizer = train_tokenizer(dataset["train"]["text"], vocab_size=words, max_length=SMALL_LENGTH)
    tokens = {name: tokenize_dataset(split, tokenizer) for name, split in dataset.items()}
    config = hsvae_hf.HSVAEConfig(vocab_size=len(tokenizer), **sizes, **tokenizer_fields(tokenizer))
    model = hsvae_hf.HSVAEForPreTraining(config)
    model.generation_config.max_length = tokenizer.model_max_length + 1  # the start token counts
    say(model_facts(model))
    trainer = TextVAETrainer(
        model=model,
        args=arguments,
        train_dataset=tokens["train"],
        data_collator=TextCollator(tokenizer),
        processing_class=tokenizer,
    )
    metrics = trainer.train().metrics
    held_out = input_batches(model, tokenizer, dataset["validation"], 256, "Calibrate")
    hold_target(model, (inputs for _, inputs in held_out))
    said = run_settings(arguments, dataset="docstrings", max_train_samples=options.max_train_samples)
    save_run(options.output_dir, model, tokenizer, metrics, said)

    model.eval()
    say("\nOn held-out sentences:")
    report = evaluate_model(model, tokenizer, dataset["train"], dataset["test"])
    print_report(report)
    classes = dataset["test"].features["label"].names
    test = input_batches(model, tokenizer, dataset["test"], 256, "Gates")
    gates = representations(model, test, num_samples=1)["gate"].toarray()
    picture = Path(options.output_dir) / "gates.png"
    activity = class_gate_activity(gates, np.array(dataset["test"]["label"]), len(classes))
    plot_gate_heatmap(activity, classes, picture, title="Which dimensions each package's sentences switch on")

    queries = [
        "Set the title of the figure.",
        "Compute the eigenvalues of a symmetric matrix.",
        "Open the file and return its contents as a string.",
    ]
    say("\nThree sentences, their active dimensions and nearest neighbours in the training corpus:")
    show_neighbours(model.model, tokenizer, list(dataset["train"]["text"]), queries)
    inputs = tokenizer(queries[:1], return_tensors="pt")
    with torch.inference_mode():
        words = model.generate(**inputs, num_beams=4)
    say(f'\nReconstruction of "{queries[0]}" (beam search):\n  {tokenizer.decode(words[0], skip_special_tokens=True)}')
    figures = {"perplexity per word": report["perplexity"], "non-zeros per code": report["active_dims"]}
    figures["accuracy of the package from the code"] = report["accuracy"]["code"]
    pair = ["Set the title of the figure.", "Set the color of the line."]
    explained = {"model_name_or_path": options.output_dir, "dataset": "docstrings", "sentences": pair}
    result = f"{options.output_dir}: the model, its tokenizer, and a picture of the gates, {picture.name}"
    finish(result, figures, command_line("explain.py", **explained))


if __name__ == "__main__":
    run(main)
