"""The whole path in a few minutes on two cores: train a small HSVAE on docstrings, embed, look at the codes."""

import before_imports  # noqa: F401 - first: see there

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

import hsvae_hf
from hsvae_hf.cli import run
from hsvae_hf.command_line import parse
from hsvae_hf.console import command_line, finish, say
from hsvae_hf.data import load_text_dataset
from hsvae_hf.extras import require
from hsvae_hf.presets import SMALL_TRAINING
from hsvae_hf.report import draw_gates, evaluate_model, print_report
from hsvae_hf.runs import Run
from hsvae_hf.training import train

QUERIES = [
    "Set the title of the figure.",
    "Compute the eigenvalues of a symmetric matrix.",
    "Open the file and return its contents as a string.",
]


@dataclass
class QuickstartArguments:
    """Where to, and how long."""

    output_dir: str = field(default="runs/quickstart", metadata={"help": "Folder of the model and the picture."})
    max_steps: int = field(default=SMALL_TRAINING["max_steps"], metadata={"help": "Steps to train."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Sentences to train on; all by default."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Delete what is in output_dir."})


def show_neighbours(result: Run, corpus: list[str]) -> None:
    """Print the active dimensions of each query and its nearest sentences.

    Nearest by the sparse dot product of codes scaled to unit variance per dimension and unit length per sentence.
    """
    from sklearn.preprocessing import StandardScaler, normalize

    say("\nThree sentences, their active dimensions and nearest neighbours in the training corpus:")
    codes = hsvae_hf.encode(result.model, result.tokenizer, corpus + QUERIES)
    scaled = normalize(StandardScaler(with_mean=False).fit_transform(codes))
    for row, query in enumerate(QUERIES, start=len(corpus)):
        code = codes[row]
        strongest = np.argsort(-np.abs(code.data))[:8]
        shown = ", ".join(f"{code.indices[i]}: {code.data[i]:+.2f}" for i in strongest)
        say(f'\n"{query}"\n  {code.nnz} of {codes.shape[1]} dimensions active; strongest {{{shown}}}')
        similarity = (scaled[: len(corpus)] @ scaled[row].T).toarray().ravel()
        for index in np.argsort(-similarity)[:3]:
            say(f"  {similarity[index]:.2f}  {corpus[index]}")


def show_reconstruction(result: Run) -> None:
    """Print what the decoder makes of the code of the first query."""
    inputs = result.tokenizer(QUERIES[:1], return_tensors="pt")
    with torch.inference_mode():
        words = result.model.generate(**inputs, num_beams=4)
    text = result.tokenizer.decode(words[0], skip_special_tokens=True)
    say(f'\nReconstruction of "{QUERIES[0]}" (beam search):\n  {text}')


def main() -> None:
    """Train, measure, show."""
    options = parse(QuickstartArguments, __doc__)
    require("matplotlib", "sklearn")
    result = train(
        "docstrings",
        **vars(options),
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        logging_steps=200,
    )
    dataset = load_text_dataset("docstrings", max_train_samples=options.max_train_samples)
    say("\nOn held-out sentences:")
    report = evaluate_model(result.model, result.tokenizer, dataset["train"], dataset["test"])
    print_report(report)
    picture = Path(options.output_dir) / "gates.png"
    title = "Which dimensions each package's sentences switch on"
    draw_gates(result.model, result.tokenizer, dataset["test"], picture, title=title)
    show_neighbours(result, list(dataset["train"]["text"]))
    show_reconstruction(result)
    figures = {"perplexity per word": report["perplexity"], "non-zeros per code": report["active_dims"]}
    figures["accuracy of the package from the code"] = report["accuracy"]["code"]
    pair = ["Set the title of the figure.", "Set the color of the line."]
    explained = {"model_name_or_path": options.output_dir, "dataset": "docstrings", "sentences": pair}
    text = f"{options.output_dir}: the model, its tokenizer, and a picture of the gates, {picture.name}"
    finish(text, figures, command_line("explain.py", **explained))


if __name__ == "__main__":
    run(main)
