r"""Encode sentences, or vectors, to sparse codes with a saved model: a file, or files of millions of rows.

    python scripts/embed.py --model_name_or_path runs/reviews --input reviews.csv --output codes.npz
    python scripts/embed.py --model_name_or_path runs/reviews --input data/*.parquet --output codes --num_processes 8
    python scripts/embed.py --model_name_or_path model_cards/hsvae-minilm \
        --encoder_name_or_path sentence-transformers/all-MiniLM-L6-v2 --input reviews.csv --output codes.npz

An output without a suffix is a folder of shards, which several processes write and --resume goes on with.
"""

import before_imports  # noqa: F401 - first: see there

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from scipy import sparse

from hsvae_hf.argument_names import known_as
from hsvae_hf.cli import run
from hsvae_hf.command_line import parse
from hsvae_hf.console import RowProgress, device_name, figure, finish, model_facts, say, size_of
from hsvae_hf.corpora import SHARD_ROWS, encode_corpus
from hsvae_hf.corpus_input import corpus_input
from hsvae_hf.files import CODE_FILES, check_output, claimed_file, save_codes
from hsvae_hf.shard_encoder import CorpusEncoder, Options
from hsvae_hf.shard_files import ShardFolder
from hsvae_hf.text_files import SUFFIXES, VECTOR_FILES

FILE_ROWS = 8192  # that are encoded together for a file
SECTIONS = {
    "needed": ("model_name_or_path", "input", "output"),
    "reading": ("encoder_name_or_path", "text_column", "prompt_name", "batch_size"),
    "codes": ("active_dims", "max_active_dims"),
    "one file as output": ("overwrite",),
    "a folder as output": ("num_processes", "shard_rows", "format", "resume", "vectors", "engine", "address"),
}


@dataclass
class EmbedArguments:
    """What to encode, with which model, to where."""

    model_name_or_path: str = field(metadata={"help": "Folder of a saved model, or a Hub id."})
    input: list[str] = field(
        metadata={
            "help": f"Files, or folders of them. Sentences: {', '.join(SUFFIXES)}; each line of a .txt file is one. "
            f"Vectors: {', '.join(VECTOR_FILES)}, and .parquet with a column `vectors`, or `embedding` and no text."
        }
    )
    output: str = field(
        metadata={
            "help": "A file: .npz, for scipy.sparse.load_npz; or .parquet or .jsonl, with the columns `indices` and "
            "`values`. Or a name without a suffix: a folder of shards, for hsvae_hf.load_codes. Row i is row i of the "
            "input."
        }
    )
    encoder_name_or_path: str | None = field(
        default=None, metadata={"help": "Text encoder to put before a model of its vectors, which then takes text."}
    )
    text_column: str | None = field(default=None, metadata={"help": "Column of the sentences, if not found by name."})
    batch_size: int | None = field(default=None, metadata={"help": "Sentences per forward pass; else by length."})
    active_dims: int | None = field(
        default=None, metadata={"help": "Non-zeros of every code: exactly so many, the strongest dimensions."}
    )
    max_active_dims: int | None = field(
        default=None, metadata={"help": "Non-zeros of a code at most: the largest are kept."}
    )
    prompt_name: str | None = field(
        default=None, metadata={"help": "Which of the model's prompts goes before a sentence, if it has any."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace the output file if it exists."})
    vectors: bool = field(
        default=False, metadata={"help": "Write the vectors of the model, any text encoder, in place of codes."}
    )
    num_processes: int = field(default=1, metadata={"help": "Processes, each with a model of its own."})
    shard_rows: int = field(default=SHARD_ROWS, metadata={"help": "Rows of a file of the folder."})
    format: Literal["arrow", "parquet"] | None = field(
        default=None, metadata={"help": "Of its files; with Ray parquet, else arrow."}
    )
    resume: bool = field(default=False, metadata={"help": "Go on with an interrupted run of the same command."})
    engine: Literal["local", "ray"] = field(
        default="local", metadata={"help": "ray for several machines; paths may be URIs then."}
    )
    address: str | None = field(
        default=None, metadata={"help": "Of a Ray cluster, auto for that of this machine; else one starts."}
    )

    @property
    def is_folder(self) -> bool:
        """Whether the output is a folder of shards."""
        return "://" in self.output or not Path(self.output).suffix

    @property
    def places(self) -> tuple[str, ...]:
        """What is read."""
        return (*self.input, self.model_name_or_path, *filter(None, [self.encoder_name_or_path]))

    def __post_init__(self) -> None:
        if self.is_folder:
            if self.overwrite:
                raise ValueError("`overwrite` must be left out for a folder; delete it, or go on with --resume.")
            return
        alone = {"vectors": self.vectors, "resume": self.resume, "format": self.format, "address": self.address}
        alone |= {"num_processes": self.num_processes > 1, "engine": self.engine != "local"}
        for name, given in alone.items():
            if given:
                raise ValueError(
                    f"`{name}` must be left out for a file, got the output {self.output!r}; name a folder, without a "
                    "suffix."
                )
        check_output(self.output, self.overwrite, CODE_FILES, inputs=self.places)


def counted(
    blocks: Iterable[sparse.csr_matrix], counts: Counter[str], progress: RowProgress
) -> Iterator[sparse.csr_matrix]:
    """The blocks as they are; the sums over them go to `counts`, their rows to `progress`."""
    for block in blocks:
        progress.update(block.shape[0])
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


def to_file(args: EmbedArguments) -> None:
    """Encode to one file. It appears when it is complete."""
    path, rows_together = Path(args.output), max(FILE_ROWS, args.batch_size or 1)
    names = ("batch_size", "max_active_dims", "active_dims", "prompt_name")
    with claimed_file(path):
        source = corpus_input(args.input, args.text_column)
        first = source.some(1000)  # a file that cannot be read is reported before the model is loaded
        if isinstance(first, list):
            lines = source.files[0].suffix.lower() == ".txt"
            say("text: its lines" if lines else f"text: column `{source.column}`")
        options = Options(**{name: getattr(args, name) for name in names})
        encoder = CorpusEncoder(args.model_name_or_path, options, args.encoder_name_or_path)
        encoder.check(first)
        say(model_facts(encoder.model), f"device: {device_name(encoder.model.device)}")
        counts = Counter[str]()
        with RowProgress("encode") as progress:
            rows = save_codes(path, counted(map(encoder.encode, source.blocks(rows_together)), counts, progress))
    figures = {"codes": rows, "non-zeros per code": counts["non-zeros"] / rows, "empty codes": counts["empty"]}
    finish(f"{path}: {size_of(path)}", figures, read_command(path))


def to_folder(args: EmbedArguments) -> None:
    """Encode to a folder of shards, each of which appears when it is complete."""
    before = ShardFolder(args.output, "output").read_manifest() if args.resume else None
    if before is not None:
        say(
            f"resuming: {len(before.shards)} shards, {sum(shard.rows for shard in before.shards):,} rows, were finished"
        )
    names = ("encoder_name_or_path", "text_column", "batch_size", "active_dims", "max_active_dims", "prompt_name")
    names += ("num_processes", "shard_rows", "format", "resume", "engine", "address")
    view = encode_corpus(
        args.model_name_or_path,
        args.input,
        args.output,
        content="vectors" if args.vectors else "codes",
        show_progress_bar=True,
        **{name: getattr(args, name) for name in names},
    )
    shards, rows = view.manifest.shards, view.shape[0]
    figures: dict[str, float | str | None] = {"rows": rows, "numbers per row": view.shape[1], "shards": len(shards)}
    if not args.vectors:
        figures["non-zeros per code"] = sum(shard.nonzeros for shard in shards) / rows
        figures["empty codes"] = sum(shard.empty for shard in shards)
    size = sum(shard.bytes for shard in shards) / 1e6
    code = f"import hsvae_hf; print(repr(hsvae_hf.load_codes({args.output!r})[:10]))"
    if args.vectors:
        code = f"from hsvae_hf.code_shards import load_shards; print(load_shards({args.output!r})[:10])"
    finish(f"{args.output}: {figure(size)} MB", figures, shlex.join(["python", "-c", code]))


def main() -> None:
    """Encode the input."""
    args = parse(EmbedArguments, __doc__, sections=SECTIONS)
    models = " behind ".join(filter(None, [args.model_name_or_path, args.encoder_name_or_path]))
    say(f"embed.py: {', '.join(args.input)}, by {models}, to {args.output}")
    names = {"vectors": "input", "sentences": "input", "model": "model_name_or_path", "tokenizer": "model_name_or_path"}
    with known_as(**names, folder="output", content="vectors"):
        (to_folder if args.is_folder else to_file)(args)


if __name__ == "__main__":
    run(main)
