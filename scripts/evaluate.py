"""One JSON report of a trained model on a data set."""

from dataclasses import dataclass, field

import numpy as np
import torch
import transformers
from datasets import Dataset
from transformers import AutoModelForPreTraining, HfArgumentParser

import hsvae_hf
from hsvae_hf.analysis import class_gate_activity, plot_gate_heatmap
from hsvae_hf.batches import input_batches
from hsvae_hf.cli import run
from hsvae_hf.data import load_text_dataset
from hsvae_hf.encoding import load_for_inference
from hsvae_hf.evaluation import check_output, evaluate_model, print_report, representations
from hsvae_hf.extras import require
from hsvae_hf.training import write_json
from hsvae_hf.vectors import load_vectors


@dataclass
class EvaluateArguments:
    """What to evaluate, on what."""

    model_name_or_path: str = field(metadata={"help": "Trained model: a folder or a Hub id."})
    output: str = field(metadata={"help": "JSON file of the report."})
    dataset: str | None = field(
        default=None, metadata={"help": "docstrings, yelp, dbpedia, yahoo, a Hub id, or a local folder or file."}
    )
    vectors: str | None = field(
        default=None, metadata={"help": "A .npy or .parquet file of sentence vectors, instead of a data set."}
    )
    split: str = field(
        default="test", metadata={"help": "Split to report on; validation for test where there is none."}
    )
    text_column: str | None = field(default=None, metadata={"help": "Column of the sentences, if not found by name."})
    label_column: str | None = field(default=None, metadata={"help": "Column of the classes, if not found by name."})
    max_train_samples: int | None = field(default=20_000, metadata={"help": "Rows that the probes learn from."})
    max_samples: int | None = field(default=None, metadata={"help": "Rows to report on."})
    num_samples: int = field(default=5, metadata={"help": "K, draws per sentence of the probe on samples."})
    batch_size: int = field(default=256, metadata={"help": "Sentences per forward pass."})
    heatmap: str | None = field(default=None, metadata={"help": "Also draw the class-by-dimension gates, to this PNG."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an existing report."})
    seed: int = field(default=42, metadata={"help": "Of samples and draws of rows."})


def load_splits(options: EvaluateArguments) -> tuple[str, Dataset | None, Dataset]:
    """Name of the split to report on, the rows that probes learn from, the rows to report on."""
    if (options.dataset is None) == (options.vectors is None):
        raise ValueError("Give exactly one of `dataset` and `vectors`, got both or neither.")
    if options.vectors is not None:
        for name in ("max_samples", "text_column", "label_column"):
            if getattr(options, name) is not None:
                raise ValueError(f"`{name}` must be left out with `vectors`: all rows are reported on, without text.")
        return "all", None, Dataset.from_dict({"vectors": load_vectors(options.vectors)})
    rows = options.max_samples if options.split == "train" else options.max_train_samples
    limits = {"max_train_samples": rows, "max_samples": options.max_samples}
    columns = {"text_column": options.text_column, "label_column": options.label_column}
    splits = load_text_dataset(str(options.dataset), seed=options.seed, needs_train=False, **limits, **columns)
    name = "validation" if options.split == "test" and "test" not in splits else options.split
    if name not in splits:
        raise ValueError(f"`split` must be one of {sorted(splits)}, got {options.split!r}; name one of them.")
    return name, splits.get("train") if name != "train" else None, splits[name]


def main() -> None:
    """Load, measure, write, print."""
    (options,) = HfArgumentParser(EvaluateArguments).parse_args_into_dataclasses()
    require("evaluate", "matplotlib", "sklearn")
    for option in ("num_samples", "batch_size"):
        if getattr(options, option) < 1:
            raise ValueError(
                f"`{option}` must be at least 1, got {getattr(options, option)}; choose a positive number."
            )
    output = check_output(options.output, options.overwrite, ".json")
    picture = None
    if options.heatmap is not None:
        picture = check_output(options.heatmap, options.overwrite, ".png", "heatmap")
    model, tokenizer = load_for_inference(options.model_name_or_path, AutoModelForPreTraining)
    name, train, test = load_splits(options)
    if options.dataset is not None and name != options.split:
        print(f"there is no split `{options.split}`: the report is on `{name}`, {len(test)} rows")
    if picture is not None and "label" not in test.column_names:
        raise ValueError("`heatmap` needs labels, got none in the data; leave it out.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device)
    if picture is not None:
        found = representations(model, input_batches(model, tokenizer, test, options.batch_size, "Heat map"), 1)
        if "gate" not in found:
            raise ValueError(f"`heatmap` needs a model with gates, got a {model.config.model_type}; leave it out.")
        classes = test.features["label"].names
        activity = class_gate_activity(found["gate"].toarray(), np.array(test["label"][:]), len(classes))
        plot_gate_heatmap(activity, classes, picture)
    report = evaluate_model(model, tokenizer, train, test, options.num_samples, options.batch_size, options.seed)
    report["settings"] = vars(options) | {
        "split": name,
        "model_type": model.config.model_type,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "hsvae_hf": hsvae_hf.__version__,
    }
    write_json(output, report)
    print_report({key: value for key, value in report.items() if key != "settings"})


if __name__ == "__main__":
    run(main)
