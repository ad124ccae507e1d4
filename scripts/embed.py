"""Encode a file of sentences to sparse vectors with a saved model, block by block; vectors at once."""

import csv
import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # the imports take seconds: a signal ends them without a traceback
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import HfArgumentParser, PreTrainedModel

from hsvae_hf.cli import run
from hsvae_hf.encoding import CODE_FILES, encode_stream, encode_vectors, load_for_inference, save_codes
from hsvae_hf.files import claimed_file
from hsvae_hf.vectors import load_vectors

INPUT_FILES = (".txt", ".jsonl", ".csv", ".parquet", ".npy")


@dataclass
class EmbedArguments:
    """What to encode, with which model, to where."""

    model_name_or_path: str = field(metadata={"help": "Folder of a saved model, or a Hub id."})
    input: Path = field(
        metadata={
            "help": ".txt (a sentence per line, blank lines count), .jsonl, .csv or .parquet; or .npy of vectors."
        }
    )
    output: Path = field(
        metadata={
            "help": ".npz (CSR matrix for scipy.sparse.load_npz), or .parquet or .jsonl with the columns `indices` and "
            "`values`. Row i is sentence i of the input."
        }
    )
    text_column: str = field(default="text", metadata={"help": "Column of the sentences; not used for .txt."})
    batch_size: int = field(default=256, metadata={"help": "Sentences per forward pass."})
    max_active_dims: int | None = field(
        default=None, metadata={"help": "Keep at most this many dimensions per sentence, largest magnitudes first."}
    )
    prompt_name: str | None = field(
        default=None, metadata={"help": "Which of the model's prompts goes before a sentence, if it has any."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace the output file if it exists."})

    def __post_init__(self) -> None:
        for name, path, suffixes in (("input", self.input, INPUT_FILES), ("output", self.output, CODE_FILES)):
            if path.suffix not in suffixes:
                raise ValueError(f"`{name}` must end in one of {', '.join(suffixes)}, got {str(path)!r}; rename it.")
        if not self.input.is_file():
            raise ValueError(f"`input` must be a file, got {str(self.input)!r}; check the path.")
        if not self.output.parent.is_dir():
            raise ValueError(f"`output` must lie in an existing folder, got {str(self.output)!r}; create the folder.")
        if self.output.exists() and (not self.overwrite or self.output.samefile(self.input)):
            remedy = "choose another name" + ("" if self.overwrite else " or pass --overwrite")
            raise ValueError(f"`output` must not exist, got {str(self.output)!r}; {remedy}.")


def read_lines(path: Path) -> Iterator[str]:
    """Lines of a file, with their ends."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"`input` must be UTF-8, got byte 0x{line[error.start]:02x} in {path}, line {number}, byte offset "
                    f"{offset + error.start}; convert the file, for example with iconv -f latin1 -t utf-8."
                ) from None
            offset += len(line)


def read_csv(path: Path, column: str) -> Iterator[dict[str, Any]]:
    """Rows of a .csv file with a header; in a file of one column, a blank line is an empty sentence."""
    csv.field_size_limit(2**31 - 1)  # the default refuses texts above 128 KiB
    rows = csv.reader(read_lines(path), strict=True)
    header = next(rows, [])
    for cells in rows:
        if cells or len(header) == 1:
            yield dict(zip_longest(header, cells or [""], fillvalue=None))


def read_jsonl(path: Path, column: str) -> Iterator[dict[str, Any]]:
    """Objects of a .jsonl file."""
    for number, line in enumerate(read_lines(path), 1):
        record = json.loads(line)
        if not isinstance(record, dict):
            raise ValueError(f"`input` must hold a JSON object per line, got {line[:50]!r} in {path}, line {number}.")
        yield record


def read_parquet(path: Path, column: str) -> Iterator[dict[str, Any]]:
    """Rows of a .parquet file, of the one column where it exists."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1024, columns=[column]):
            yield from batch.to_pylist() if column in batch.schema.names else [dict.fromkeys(file.schema_arrow.names)]


def read_sentences(path: Path, column: str) -> Iterator[str]:
    """Sentences of a file, in order.

    Raises:
        ValueError: if there is no such column, or the file is damaged or not UTF-8.
    """
    if path.suffix == ".txt":
        yield from (line.rstrip("\r\n") for line in read_lines(path))
        return
    row = 0
    try:
        reader = {".csv": read_csv, ".jsonl": read_jsonl, ".parquet": read_parquet}[path.suffix]
        for row, record in enumerate(reader(path, column), 1):
            if column not in record:
                raise ValueError(
                    f"`text_column` must be a column of {path}, got {column!r}; row {row} has {', '.join(record)}."
                )
            yield record[column]
    except (csv.Error, json.JSONDecodeError, UnicodeDecodeError, pa.ArrowException, OSError) as error:
        raise ValueError(
            f"`input` must be an intact {path.suffix} file, got {path}, damaged after row {row} ({error}); repair it."
        ) from error


def encode_file(args: EmbedArguments) -> tuple[PreTrainedModel, Iterator[Any]]:
    """The model and the codes of the input, block by block."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.input.suffix == ".npy":
        if args.prompt_name is not None:
            raise ValueError("`prompt_name` must be left out with vectors: there is no text for it to go before.")
        vectors = load_vectors(args.input)
        model = load_for_inference(args.model_name_or_path)[0].to(device)
        return model, iter([encode_vectors(model, vectors, args.batch_size, args.max_active_dims)])
    sentences = read_sentences(args.input, args.text_column)
    first = list(islice(sentences, 1))  # a file that cannot be read is reported before the model is loaded
    if not first:
        raise ValueError(f"`input` must hold at least one sentence, got the empty file {args.input}.")
    model, tokenizer = load_for_inference(args.model_name_or_path)
    if tokenizer is None:
        raise ValueError(f"`input` must be a .npy file of vectors for this model, got {args.input}; it reads no text.")
    options = (args.batch_size, True, args.max_active_dims, None, args.prompt_name)
    return model, encode_stream(model.to(device), tokenizer, chain(first, sentences), *options)


def main() -> None:
    """Encode the input file; the output appears when it is complete."""
    (args,) = HfArgumentParser(EmbedArguments, description=__doc__).parse_args_into_dataclasses()
    with claimed_file(args.output):
        model, blocks = encode_file(args)
        count = save_codes(args.output, blocks)
    print(f"{count} codes of {model.config.latent_size} dimensions in {args.output}")


if __name__ == "__main__":
    run(main)
