r"""Vectors of a suite of tasks, and of text to train on, by any encoder: the `vectors_dir` of `compare_codes.py`.

For the table of a static encoder on four sets:

    python scripts/experiments/embed_suite.py --encoder wordllama --suite data/eval --output_dir vectors/wordllama \
        --training_text data/general --max_train_samples 20000
    python scripts/experiments/compare_codes.py --training_vectors vectors/wordllama/training.npy --suite data/eval \
        --vectors_dir vectors/wordllama --output_dir runs/wordllama --systems HSVAE baselines --active_dims 16 32 64

`--encoder minilm-static` and `--encoder universal` are the two others; `minilm` is what the first is made of. A folder
or Hub id of a model of sentence-transformers is an encoder too. Files that are there already are kept.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from static_encoders import ENCODERS, vectors_of

from hsvae_hf.cli import run
from hsvae_hf.command_line import parse
from hsvae_hf.data import load_text_dataset
from hsvae_hf.evaluation_tasks import Embed, find_tasks, load_tasks
from hsvae_hf.files import staged_file

SIZE = 8192  # sentences that are encoded between two lines of progress


@dataclass(kw_only=True)
class EmbedArguments:
    """What to encode, by what."""

    encoder: str = field(metadata={"help": f"{', '.join(ENCODERS)}, or a model of sentence-transformers."})
    output_dir: str = field(metadata={"help": "Folder of the vectors, TASK-PART.npy and training.npy."})
    suite: str | None = field(default=None, metadata={"help": "Folder of the tasks."})
    tasks: list[str] | None = field(default=None, metadata={"help": "Which; else all that are found."})
    training_text: str | None = field(default=None, metadata={"help": "Text to train on, a data set."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Rows of it, drawn at random."})


def counted(texts: list[str]) -> np.ndarray:
    """What stands for an encoder while tasks are read for their text: as many vectors as sentences."""
    return np.ones((len(texts), 1), dtype=np.float32)


def texts_of(suite: str, name: str) -> dict[str, list[str]]:
    """The sentences of a task by the name of their file, without `.npy`.

    Pairs have those of both splits, as one of them is trained on where the task is a home.
    """
    found: dict[str, list[str]] = {}
    for split in ("test", "validation"):
        try:
            (task,) = load_tasks(suite, counted, None, [name], split, None, None)
        except ValueError:
            if split == "test":
                raise
            continue  # a set without a validation split
        if task.kind == "similarity":
            found |= {f"{name}-{split}-{number}": task.texts[part] for number, part in enumerate(task.vectors, 1)}
        elif split == "test":
            found |= {f"{name}-{part}": task.texts[part] for part in task.vectors}
    return found


def save(path: Path, texts: list[str], embed: Embed) -> None:
    """Write the vectors of sentences, unless they are there."""
    if path.exists():
        return
    parts = []
    for start in range(0, len(texts), SIZE):
        parts.append(embed(texts[start : start + SIZE]))
        print(f"{path.name}: {min(start + SIZE, len(texts)):,} of {len(texts):,}", flush=True)
    with staged_file(path, "output_dir") as unfinished:
        np.save(unfinished, np.concatenate(parts))


def main() -> None:
    """Encode what is not there yet."""
    options = parse(EmbedArguments, __doc__.partition("\n")[0])
    if options.suite is None and options.training_text is None:
        raise ValueError("`suite` or `training_text` must be given, got neither; name what to encode.")
    folder, embed = Path(options.output_dir), vectors_of(options.encoder)
    if options.suite is not None:
        for name in options.tasks or find_tasks(options.suite):
            for part, texts in texts_of(options.suite, name).items():
                save(folder / f"{part}.npy", texts, embed)
    if options.training_text is not None:
        rows = load_text_dataset(options.training_text)["train"].shuffle(seed=0)
        texts = list(rows["text"][: options.max_train_samples])
        save(folder / "training.npy", texts, embed)


if __name__ == "__main__":
    run(main)
