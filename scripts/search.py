r"""Search by sparse codes: index a file of sentences, ask the index, or export it for a search engine.

    python scripts/search.py index --input reviews.csv --encoder sentence-transformers/all-MiniLM-L6-v2 \
        --codes model_cards/hsvae-minilm --index runs/reviews
    python scripts/search.py query --index runs/reviews --query "friendly staff"
    python scripts/search.py export --index runs/reviews --format opensearch --output reviews.ndjson

Each action has a --help of its own.
"""

import before_imports  # noqa: F401 - first: see there

import itertools
import json
import re
import shlex
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from scipy import sparse

from hsvae_hf.argument_names import known_as
from hsvae_hf.cli import run
from hsvae_hf.command_line import choose, parse
from hsvae_hf.console import RowProgress, duration, finish, say
from hsvae_hf.data import load_text_dataset
from hsvae_hf.dimension_names import name_dimensions
from hsvae_hf.explanation import Explanation
from hsvae_hf.files import check_output
from hsvae_hf.index import Hit, Index
from hsvae_hf.index_encoders import load_index_encoder
from hsvae_hf.index_files import INDEX
from hsvae_hf.input_checks import check_positive
from hsvae_hf.store_formats import STORES
from hsvae_hf.stores import export
from hsvae_hf.text_files import SUFFIXES, find_text_column, read_cells, read_columns, read_rows

_INDEX, _QUERY, _EXPORT = re.findall(r"python(?:\\\n|.)*", str(__doc__))  # an example of each action
ABOUT = {
    "index": f"Index the sentences of a file or a data set by their sparse codes.\n\n    {_INDEX}",
    "query": f"Find the rows of an index that are nearest to a query, and say why.\n\n    {_QUERY}",
    "export": f"Write the codes of an index as a search engine takes them.\n\n    {_EXPORT}",
}
SECTIONS = {
    "index": {
        "needed": ("input", "encoder", "index"),
        "reading": ("text_column", "id_column", "split"),
        "codes": ("codes", "keep"),
        "an interrupted run": ("resume",),
    },
    "query": {
        "needed": ("index", "query", "interactive"),
        "hits": ("k", "mute", "rerank", "candidates", "json"),
        "the encoder, where it is not where it was when the index was made": ("encoder", "codes"),
    },
    "export": {
        "needed": ("index", "format", "output"),
        "values": ("nonnegative", "max_active_dims", "quantize"),
        "output": ("overwrite",),
    },
}
SEGMENT_ROWS = 8192  # sentences that an interruption may cost
REASONS = 3  # dimensions that are shown with a hit
NAMED_ROWS, MOST_ROWS = 500, 100_000  # from how many rows on dimensions get names, and by how many


@dataclass(kw_only=True)
class IndexArguments:
    """What to index, by which encoder, to where."""

    input: str = field(
        metadata={"help": f"File of sentences ({', '.join(SUFFIXES)}), or name or Hub id of a data set."}
    )
    encoder: str = field(
        metadata={
            "help": "SparseEncoder, model of words or ONNX export, folder or Hub id; with --codes any sentence encoder."
        }
    )
    codes: str | None = field(default=None, metadata={"help": "Model of codes for the vectors of the encoder."})
    index: str = field(metadata={"help": "New folder of the index."})
    text_column: str | None = field(default=None, metadata={"help": "Column of the sentences, if not found by name."})
    id_column: str | None = field(
        default=None, metadata={"help": "Column of ids of a file; rows have numbers without."}
    )
    split: str | None = field(default=None, metadata={"help": "Split of a data set, if not train."})
    keep: Literal["vectors", "codes"] | None = field(
        default=None, metadata={"help": "What a query may rerank hits by."}
    )
    resume: bool = field(default=False, metadata={"help": "Go on with an interrupted run of the same command."})


@dataclass(kw_only=True)
class QueryArguments:
    """Which index, what to ask."""

    index: str = field(metadata={"help": "Folder of the index."})
    encoder: str | None = field(default=None, metadata={"help": "As of search.py index."})
    codes: str | None = field(default=None, metadata={"help": "As of search.py index."})
    query: list[str] = field(default_factory=list, metadata={"help": "What to look for; several are asked in order."})
    interactive: bool = field(
        default=False, metadata={"help": "Instead of --query: ask line by line, until an empty one."}
    )
    k: int = field(default=5, metadata={"help": "Hits per query."})
    rerank: Literal["vectors", "codes"] | None = field(
        default=None, metadata={"help": "Order the best rows anew by what the index keeps."}
    )
    candidates: int = field(default=200, metadata={"help": "Rows that --rerank looks at."})
    mute: list[int] = field(default_factory=list, metadata={"help": "Dimensions to leave out of the query."})
    json: bool = field(default=False, metadata={"help": "Print a JSON object for each query."})


@dataclass(kw_only=True)
class ExportArguments:
    """Which index, for which store, to where."""

    index: str = field(metadata={"help": "Folder of the index."})
    format: str = field(metadata={"help": f"{', '.join(STORES)}; a table of them is in help(hsvae_hf.export)."})
    output: str = field(metadata={"help": "File to write, with the suffix of the format."})
    nonnegative: str | None = field(
        default=None, metadata={"help": "What becomes of negative values: split, abs or none; else as the store needs."}
    )
    max_active_dims: int | None = field(default=None, metadata={"help": "Keep this many non-zeros of a code."})
    quantize: str | None = field(default=None, metadata={"help": "Write the values as int8 or uint8."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an existing output."})


def index_rows(words: list[str]) -> None:
    """Index all sentences; the folder is an index once they are in it."""
    options = parse(IndexArguments, ABOUT["index"], words, SECTIONS["index"], "index")
    started = time.perf_counter()
    check_new(options.index)
    sentences, ids, count = read_input(options)
    first = list(itertools.islice(sentences, 1))
    if not first:
        raise ValueError(f"`input` must hold at least one sentence, got none in {options.input!r}.")
    say(f"search.py: {options.input}, by {options.encoder}, to {options.index}")
    encoder = load_index_encoder(options.encoder, options.codes)
    with RowProgress("index", count) as progress:
        index = Index.build(
            counted(itertools.chain(first, sentences), progress),
            options.index,
            ids=ids,
            resume=options.resume,
            segment_rows=SEGMENT_ROWS,
            encoder=encoder,
            keep=options.keep,
            metadata={name: place_of(getattr(options, name)) for name in ("encoder", "codes")},
        )
    named = name_rows(index)
    nonzeros = sum(len(segment.rows) for segment in index.segments)
    figures: dict[str, Any] = {"rows": len(index), "dimensions": index.latent_size, "with names": named}
    figures |= {"non-zeros per row": nonzeros / len(index), "MB": index.nbytes / 1e6}
    figures |= {"time": duration(time.perf_counter() - started)}
    finish(options.index, figures, f"python {sys.argv[0]} query --index {shlex.quote(options.index)} --interactive")


def counted(sentences: Iterable[str], progress: RowProgress) -> Iterator[str]:
    """The sentences as they are; their number goes to `progress`."""
    for sentence in sentences:
        yield sentence
        progress.update(1)


def check_new(folder: str) -> None:
    """Refuse the folder of an index before the encoder is loaded."""
    if (Path(folder) / INDEX).exists():
        raise ValueError(f"`index` must be a new folder, got {folder!r} with an index; name another.")


def place_of(name: str | None) -> str | None:
    """The name of a model, as it is known from any folder."""
    return str(Path(name).resolve()) if name is not None and Path(name).exists() else name


def name_rows(index: Index) -> int | None:
    """Name the dimensions by the rows, where there are enough and the model has no names; how many have one."""
    if len(index) < NAMED_ROWS or find_spec("sklearn") is None or index.encoder.names is not None:
        return None
    parts, texts = [], []
    for codes, _, part in index.blocks():
        parts.append(codes)
        texts += part
        if len(texts) > MOST_ROWS:
            break
    names = name_dimensions(sparse.vstack(parts, format="csr"), texts)
    names.save(next(iter(index.folders)))
    return len({end[:-1] for end in names.ends})


def read_input(options: IndexArguments) -> tuple[Iterator[str], Iterable[Any] | None, int | None]:
    """Sentences, ids and the number of rows, where it is known."""
    path = Path(options.input)
    if path.suffix.lower() not in SUFFIXES:
        split = options.split or "train"
        splits = load_text_dataset(options.input, options.text_column, with_labels=False, needs_train=split == "train")
        if split not in splits:
            raise ValueError(f"`split` must be one of {sorted(splits)}, got {split!r}; name one of them.")
        if options.id_column is not None:
            raise ValueError("`id_column` must be left out with a data set, whose rows have numbers.")
        return iter(splits[split]["text"]), None, len(splits[split])
    if options.split is not None:
        raise ValueError(f"`split` must be left out with a file, got {options.split!r}; all its rows are indexed.")
    if not path.is_file():
        raise ValueError(f"`input` must be a file or a data set, got {options.input!r}; check the path.")
    columns = read_columns(path)
    text, name = find_text_column(columns, options.text_column, str(path)), options.id_column
    sentences = (str(row["text"]) for row in read_cells([str(path)], text))
    if name is None:
        return sentences, None, None
    if name not in columns:
        raise ValueError(f"`id_column` must be one of {sorted(columns)}, got {name!r}; name one of them.")
    return sentences, (row.get(name) for _, row in read_rows(path, [name])), None


def ask(words: list[str]) -> None:
    """Print the hits of each query with their scores, texts and strongest reasons."""
    options = parse(QueryArguments, ABOUT["query"], words, SECTIONS["query"], "query")
    check_positive(k=options.k, candidates=options.candidates)
    if not options.query and not options.interactive:
        raise ValueError('`query` must be given, got none; write --query "...", or --interactive.')
    index = load(options)
    for query in itertools.chain(options.query, typed() if options.interactive else ()):
        started = time.perf_counter()
        hits = index.search([query], options.k, options.rerank, options.candidates, mute=options.mute)[0]
        seconds = time.perf_counter() - started
        reasons = [reasons_of(index.explain(query, hit, mute=options.mute)) for hit in hits]
        if options.json:
            found = [asdict(hit) | {"reasons": why} for hit, why in zip(hits, reasons, strict=True)]
            print(json.dumps({"query": query, "hits": found}), flush=True)
            continue
        kind = f"cosine of {options.rerank}" if options.rerank else index.settings.similarity
        say(f"\n{query}\n  {kind}, {1000 * seconds:.0f} ms with the encoding of the query")
        say(*(shown(hit, why) for hit, why in zip(hits, reasons, strict=True)))
        if not hits:
            say("  nothing shares a dimension with it")


def load(options: QueryArguments) -> Index:
    """The index and its encoder, that of the command line or else the one that it was made with."""
    sources = Index.load(options.index).settings.metadata
    encoder, codes = options.encoder or sources.get("encoder"), options.codes or sources.get("codes")
    if encoder is None:
        raise ValueError(f"`encoder` must be given for {options.index!r}, which `search.py index` has not made.")
    return Index.load(options.index, load_index_encoder(encoder, codes))


def typed() -> Iterator[str]:
    """Lines of the terminal, to the first empty one."""
    while True:
        try:
            line = input("\nquery> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if not line:
            return
        yield line


def reasons_of(found: Explanation) -> list[dict[str, Any]]:
    """The dimensions that add most to the score of the codes, their names where they have one, and what they add."""
    names = found.names or [str(dimension) for dimension, _ in found.contributions]
    reasons = [
        {"dimension": dimension, "name": name, "share": share}
        for name, (dimension, share) in zip(names, found.contributions, strict=True)
    ]
    return reasons[:REASONS]


def shown(hit: Hit, reasons: list[dict[str, Any]]) -> str:
    """A hit in two lines."""
    why = "; ".join(f"{one['dimension']} {named(one)}{one['share']:+.2f}" for one in reasons)
    return f"  {hit.score:.3f}  {hit.id}  {(hit.text or '')[:200]}\n         shares {why}"


def named(reason: dict[str, Any]) -> str:
    """The words of a dimension, if it has any, for a line."""
    return "" if reason["name"].rstrip("+-") == str(reason["dimension"]) else f"({reason['name']}) "


def export_codes(words: list[str]) -> None:
    """Write the codes of an index in the form of a store."""
    options = parse(ExportArguments, ABOUT["export"], words, SECTIONS["export"], "export")
    check_output(options.output, options.overwrite, Path(options.output).suffix, inputs=[options.index])
    index = Index.load(options.index)
    names: list[int | str] = []
    texts: list[str | None] = []
    for _, ids, part in index.blocks():
        names += ids
        texts += part
    say(f"search.py: {options.index}, {len(names):,} rows, for {options.format}, to {options.output}")
    report = export(
        Codes(index),
        options.output,
        options.format,
        ids=names,
        texts=None if None in texts else texts,
        nonnegative=options.nonnegative,
        max_active_dims=options.max_active_dims,
        quantize=options.quantize,
        overwrite=options.overwrite,
    )
    finish(options.output, {name: value for name, value in asdict(report).items() if name not in ("format", "skipped")})


@dataclass
class Codes:
    """The codes of an index, which can be gone over several times."""

    index: Index

    def __iter__(self) -> Iterator[Any]:
        return (codes for codes, _, _ in self.index.blocks())


ACTIONS = {"index": index_rows, "query": ask, "export": export_codes}
NAMES = {  # of arguments of the package: which option of the action they are
    "index": {"rows": "input", "sentences": "input", "dataset": "input", "folder": "index", "ids": "id_column"},
    "query": {"queries": "query", "folder": "index"},
    "export": {"codes": "index", "folder": "index", "target": "output"},
}


def main() -> None:
    """The first word says what to do."""
    action = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if action in ("-h", "--help"):
        print(f"usage: search.py {'|'.join(ACTIONS)} [options]\n\n{__doc__}", end="")
        raise SystemExit(0)
    action = choose("action", action, list(ACTIONS), rule="of")
    with known_as(**NAMES[action]):
        ACTIONS[action](sys.argv[2:])


if __name__ == "__main__":
    run(main)
