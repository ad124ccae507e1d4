"""Encode a file of sentences, or of vectors, to sparse codes with a saved model."""

import before_imports  # noqa: F401 - first: see there

import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

import torch
from scipy import sparse
from transformers import PreTrainedModel

from hsvae_hf.cli import run
from hsvae_hf.command_line import parse
from hsvae_hf.console import device_name, finish, model_facts, say, size_of
from hsvae_hf.encoding import encode_stream, encode_vectors
from hsvae_hf.files import CODE_FILES, check_output, claimed_file, load_vectors, save_codes
from hsvae_hf.loading import load_for_inference
from hsvae_hf.text_files import SUFFIXES, find_text_column, read_columns, read_sentences
from hsvae_hf.tokenization import warn_unknown

INPUT_FILES = (*SUFFIXES, ".npy")


@dataclass
class EmbedArguments:
    """What to encode, with which model, to where."""

    model_name_or_path: str = field(metadata={"help": "Folder of a saved model, or a Hub id."})
    input: Path = field(
        metadata={
            "help": ".txt (a sentence per line, blank lines count), .csv, .tsv, .jsonl, .json or .parquet; or .npy of "
            "vectors."
        }
    )
    output: Path = field(
        metadata={
            "help": ".npz (CSR matrix for scipy.sparse.load_npz), or .parquet or .jsonl with the columns `indices` and "
            "`values`. Row i is sentence i of the input."
        }
    )
    text_column: str | None = field(default=None, metadata={"help": "Column of the sentences, if not found by name."})
    batch_size: int | None = field(default=None, metadata={"help": "Sentences per forward pass; else by length."})
    active_dims: int | None = field(
        default=None, metadata={"help": "Give exactly this many dimensions per sentence, the strongest."}
    )
    max_active_dims: int | None = field(
        default=None, metadata={"help": "Keep at most this many dimensions per sentence, largest magnitudes first."}
    )
    prompt_name: str | None = field(
        default=None, metadata={"help": "Which of the model's prompts goes before a sentence, if it has any."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace the output file if it exists."})

    def __post_init__(self) -> None:
        if self.input.suffix.lower() not in INPUT_FILES or not self.input.is_file():
            names = ", ".join(INPUT_FILES)
            raise ValueError(f"`input` must be a {names} file, got {str(self.input)!r}; check the path.")
        check_output(self.output, self.overwrite, CODE_FILES, inputs=(self.input, self.model_name_or_path))


def encode_file(args: EmbedArguments) -> tuple[PreTrainedModel, Iterable[sparse.csr_matrix]]:
    """The model, and the codes of the input block by block."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.input.suffix == ".npy":
        if args.prompt_name is not None:
            raise ValueError("`prompt_name` must be left out with vectors: there is no text for it to go before.")
        vectors = load_vectors(args.input)
        model = load_for_inference(args.model_name_or_path)[0].to(device)
        options = (args.batch_size or 1024, args.max_active_dims, args.active_dims)
        return model, [encode_vectors(model, vectors, *options)]
    column = find_text_column(read_columns(args.input), args.text_column, str(args.input))
    say("text: its lines" if args.input.suffix.lower() == ".txt" else f"text: column `{column}`")
    sentences = read_sentences(args.input, column)
    first = list(islice(sentences, 1000))  # a file that cannot be read is reported before the model is loaded
    if not first:
        raise ValueError(f"`input` must hold at least one sentence, got the empty file {args.input}.")
    model, tokenizer = load_for_inference(args.model_name_or_path)
    if tokenizer is None:
        raise ValueError(f"`input` must be a .npy file of vectors for this model, got {args.input}; it reads no text.")
    warn_unknown(tokenizer, first)
    options = (args.batch_size, sys.stderr.isatty(), args.max_active_dims, None, args.prompt_name, args.active_dims)
    return model, encode_stream(model.to(device), tokenizer, chain(first, sentences), *options)


def counted(blocks: Iterable[sparse.csr_matrix], counts: Counter[str]) -> Iterator[sparse.csr_matrix]:
    """The blocks as they are; the sums over them go to `counts`."""
    for block in blocks:
        counts["non-zeros"] += block.nnz
        counts["empty"] += int((block.getnnz(axis=1) == 0).sum())
        yield block


def read_command(path: Path) -> str:
    """A command that reads the codes."""
    if path.suffix == ".jsonl":
        return shlex.join(["head", "-n", "2", str(path)])
    code = {
        ".npz": f"import scipy.sparse; print(repr(scipy.sparse.load_npz({str(path)!r})))",
        ".parquet": f"import pyarrow.parquet; print(pyarrow.parquet.read_table({str(path)!r}).slice(0, 2))",
    }
    return shlex.join(["python", "-c", code[path.suffix]])


def main() -> None:
    """Encode the input file. The output appears when it is complete."""
    args = parse(EmbedArguments, __doc__)
    say(f"embed.py: {args.input}, by {args.model_name_or_path}, to {args.output}")
    with claimed_file(args.output):
        model, blocks = encode_file(args)
        say(model_facts(model), f"device: {device_name(model.device)}")
        counts = Counter[str]()
        rows = save_codes(args.output, counted(blocks, counts))
    figures = {"codes": rows, "non-zeros per code": counts["non-zeros"] / rows, "empty codes": counts["empty"]}
    finish(f"{args.output}: {size_of(args.output)}", figures, read_command(args.output))


if __name__ == "__main__":
    run(main)
