"""The whole path in a few minutes on two cores: train a small HSVAE on docstrings, embed, look at the codes."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import HfArgumentParser, set_seed
from transformers.utils import logging

import hsvae_hf
from hsvae_hf.analysis import class_gate_activity, plot_gate_heatmap
from hsvae_hf.batches import input_batches
from hsvae_hf.calibration import hold_target
from hsvae_hf.cli import run
from hsvae_hf.data import TextCollator, load_text_dataset, tokenize_dataset
from hsvae_hf.evaluation import evaluate_model, print_report, representations
from hsvae_hf.extras import require
from hsvae_hf.tokenization import train_tokenizer
from hsvae_hf.training import TextVAETrainer, TextVAETrainingArguments, check_output_dir, run_settings, save_run

ACTIVE_DIMS = 12  # of 64, for a sentence on average


@dataclass
class QuickstartArguments:
    """Where to, and how long."""

    output_dir: str = field(default="runs/quickstart", metadata={"help": "Folder of the model and the picture."})
    num_train_epochs: float = field(default=10.0, metadata={"help": "Passes over the corpus."})
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
        print(f'\n"{query}"\n  {code.nnz} of {codes.shape[1]} dimensions active; strongest {{{shown}}}')
        similarity = (scaled[: len(corpus)] @ scaled[row].T).toarray().ravel()
        for index in np.argsort(-similarity)[:3]:
            print(f"  {similarity[index]:.2f}  {corpus[index]}")


def main() -> None:
    """Train, measure, show."""
    (options,) = HfArgumentParser(QuickstartArguments).parse_args_into_dataclasses()
    require("accelerate", "evaluate", "matplotlib", "sklearn")
    logging.set_verbosity_error()
    set_seed(42)
    print("Reading the docstrings of the installed packages ...")
    dataset = load_text_dataset("docstrings", max_train_samples=options.max_train_samples)
    tokenizer = train_tokenizer(dataset["train"]["text"], vocab_size=6_000, max_length=32)
    tokens = {name: tokenize_dataset(split, tokenizer) for name, split in dataset.items()}
    config = hsvae_hf.HSVAEConfig(
        vocab_size=len(tokenizer),
        embedding_size=96,
        hidden_size=192,
        latent_size=64,
        target_active_dims=ACTIVE_DIMS,
    )
    arguments = TextVAETrainingArguments(
        output_dir=options.output_dir,
        num_train_epochs=options.num_train_epochs,
        per_device_train_batch_size=64,
        learning_rate=4e-3,
        logging_steps=200,
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        overwrite_output_dir=options.overwrite_output_dir,
    )
    check_output_dir(arguments)
    model = hsvae_hf.HSVAEForPreTraining(config)
    model.generation_config.max_length = tokenizer.model_max_length + 1  # the start token counts
    print(f"Training on {len(tokens['train'])} sentences, {model.num_parameters():,} parameters")
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
    settings = run_settings(arguments, dataset="docstrings", max_train_samples=options.max_train_samples)
    save_run(options.output_dir, model, tokenizer, metrics, settings)

    model.eval()
    print("\nOn held-out sentences:")
    print_report(evaluate_model(model, tokenizer, dataset["train"], dataset["test"]))
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
    print("\nThree sentences, their active dimensions and nearest neighbours in the training corpus:")
    show_neighbours(model.model, tokenizer, list(dataset["train"]["text"]), queries)
    inputs = tokenizer(queries[:1], return_tensors="pt")
    with torch.inference_mode():
        words = model.generate(**inputs, num_beams=4)
    print(
        f'\nReconstruction of "{queries[0]}" (beam search):\n  {tokenizer.decode(words[0], skip_special_tokens=True)}'
    )
    print(f"\nModel and tokenizer: {options.output_dir}\nGate heat map:       {picture}")


if __name__ == "__main__":
    run(main)
