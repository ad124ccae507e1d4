r"""Search by sparse codes: index a file of sentences, ask the index, or export it for a search engine.

python scripts/search.py index --input reviews.csv --encoder sentence-transformers/all-MiniLM-L6-v2 \
        --codes model_cards/hsvae-minilm --index runs/reviews
python scripts/search.py query --index runs/reviews --query "friendly staff"
python scripts/search.py export --index runs/reviews --format opensearch --output reviews.ndjson
"""

import before_imports  # noqa: F401 - first: see there

import itertools
import json
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hsvae_hf.cli import run
from hsvae_hf.command_line import choose, parse
from hsvae_hf.console import command_line, duration, finish, say
from hsvae_hf.data import load_text_dataset
from hsvae_hf.index import Hit, Index
from hsvae_hf.index_encoders import load_index_encoder
from hsvae_hf.input_checks import check_positive
from hsvae_hf.stores import export
from hsvae_hf.text_files import SUFFIXES, find_text_column, read_columns, read_rows

SEGMENT_ROWS = 8192  # sentences that an interruption may cost
REASONS = 3  # dimensions that are shown with a hit


@dataclass(kw_only=True)
class IndexArguments:
    """What to index, by which encoder, to where."""

    input: str = field(
        metadata={"help": f"File of sentences ({', '.join(SUFFIXES)}), or name or Hub id of a data set."}
    )
    encoder: str = field(
        metadata={"help": "SparseEncoder or model of words, a folder or Hub id; with --codes any sentence encoder."}
    )
    codes: str | None = field(default=None, metadata={"help": "Model of codes for the vectors of this encoder."})
    index: str = field(metadata={"help": "New folder of the index."})
    text_column: str | None = field(default=None, metadata={"help": "Column of the sentences, if not found by name."})
    id_column: str | None = field(
        default=None, metadata={"help": "Column of ids of a file; rows have numbers without."}
    )
    split: str = field(default="train", metadata={"help": "Of a data set."})
    keep: str | None = field(
        default=None, metadata={"help": "vectors or codes: what a query may rerank hits by; neither by default."}
    )
    resume: bool = field(default=False, metadata={"help": "Go on with an interrupted run of the same command."})


@dataclass(kw_only=True)
class QueryArguments:
    """Which index, what to ask."""

    index: str = field(metadata={"help": "Folder of the index."})
    query: list[str] = field(default_factory=list, metadata={"help": "What to look for; several are asked in order."})
    interactive: bool = field(default=False, metadata={"help": "Ask line by line until an empty one."})
    k: int = field(default=5, metadata={"help": "Hits per query."})
    rerank: str | None = field(default=None, metadata={"help": "vectors or codes, whichever the index keeps."})
    candidates: int = field(default=200, metadata={"help": "Rows that reranking looks at."})
    mute: list[int] = field(default_factory=list, metadata={"help": "Dimensions to leave out of the query."})
    json: bool = field(default=False, metadata={"help": "Print a JSON object for each query."})


@dataclass(kw_only=True)
class ExportArguments:
    """Which index, for which store, to where."""

    index: str = field(metadata={"help": "Folder of the index."})
    format: str = field(metadata={"help": "Of the store; see help(hsvae_hf.export)."})
    output: str = field(metadata={"help": "File to write."})
    nonnegative: str | None = field(
        default=None, metadata={"help": "split, abs or none: what becomes of negative values; else as the store needs."}
    )
    max_active_dims: int | None = field(default=None, metadata={"help": "Keep this many non-zeros of a code."})
    quantize: str | None = field(default=None, metadata={"help": "int8 or uint8."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an existing output."})


def index_rows(words: list[str]) -> None:
    """Index all sentences; the folder is an index once they are in it."""
    options = parse(IndexArguments, __doc__, words)
    started = time.perf_counter()
    sentences, ids, count = read_input(options)
    first = list(itertools.islice(sentences, 1))
    if not first:
        raise ValueError(f"`input` must hold at least one sentence, got none in {options.input!r}.")
    say(f"search.py: {options.input}, by {options.encoder}, to {options.index}")
    encoder = load_index_encoder(options.encoder, options.codes)
    rows = tqdm(itertools.chain(first, sentences), total=count, unit=" rows", disable=not sys.stderr.isatty())
    sources = {"encoder": options.encoder, "codes": options.codes}
    index = Index.build(
        rows,
        options.index,
        ids=ids,
        resume=options.resume,
        segment_rows=SEGMENT_ROWS,
        encoder=encoder,
        keep=options.keep,
        metadata=sources,
    )
    figures = {"rows": len(index), "MB": index.nbytes / 1e6, "time": duration(time.perf_counter() - started)}
    finish(
        options.index,
        figures,
        command_line("search.py", index=options.index, query="...").replace(" --", " query --", 1),
    )


def read_input(options: IndexArguments) -> tuple[Iterator[str], Iterable[Any] | None, int | None]:
    """Sentences, ids and the number of rows, where it is known."""
    path = Path(options.input)
    if path.suffix.lower() not in SUFFIXES:
        splits = load_text_dataset(
            options.input, options.text_column, with_labels=False, needs_train=options.split == "train"
        )
        if options.split not in splits:
            raise ValueError(f"`split` must be one of {sorted(splits)}, got {options.split!r}; name one of them.")
        return iter(splits[options.split]["text"]), None, len(splits[options.split])
    if not path.is_file():
        raise ValueError(f"`input` must be a file or a data set, got {options.input!r}; check the path.")
    columns = read_columns(path)
    text = find_text_column(columns, options.text_column, str(path))
    if options.id_column is None:
        return (str(row[text]) for _, row in read_rows(path, [text])), None, None
    if options.id_column not in columns:
        raise ValueError(f"`id_column` must be one of {sorted(columns)}, got {options.id_column!r}; name one of them.")
    ids = (row[options.id_column] for _, row in read_rows(path, [options.id_column]))
    return (str(row[text]) for _, row in read_rows(path, [text])), ids, None


def ask(words: list[str]) -> None:
    """Print the hits of each query with their scores, texts and strongest reasons."""
    options = parse(QueryArguments, __doc__, words)
    check_positive(k=options.k, candidates=options.candidates)
    if not options.query and not options.interactive:
        raise ValueError('`query` must be given, got none; write --query "...", or --interactive.')
    index = load(options.index)
    for query in itertools.chain(options.query, typed() if options.interactive else ()):
        started = time.perf_counter()
        hits = index.search(
            [query],
            options.k,
            options.rerank,
            candidates=options.candidates,
            mute=options.mute,
        )[0]
        reasons = [reasons_of(index, query, hit) for hit in hits]
        if options.json:
            found = [asdict(hit) | {"reasons": why} for hit, why in zip(hits, reasons, strict=True)]
            print(json.dumps({"query": query, "hits": found}), flush=True)
            continue
        say(f"\n{query} ({1000 * (time.perf_counter() - started):.0f} ms)")
        say(*(shown(hit, why) for hit, why in zip(hits, reasons, strict=True)))
        if not hits:
            say("  nothing shares a dimension with it")


def load(folder: str) -> Index:
    """The index and the encoder that it was made with."""
    sources = Index.load(folder).settings.metadata
    if "encoder" not in sources:
        raise ValueError(f"`index` must be one of `search.py index`, got {folder!r}; open it with `hsvae_hf.Index`.")
    return Index.load(folder, load_index_encoder(sources["encoder"], sources.get("codes")))


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


def reasons_of(index: Index, query: str, hit: Hit) -> list[tuple[str, float]]:
    """The dimensions that add most to a score, by name where they have one, and what they add."""
    found = index.explain(query, hit)
    names = found.names or [str(dimension) for dimension, _ in found.contributions]
    return [(name, share) for name, (_, share) in zip(names, found.contributions, strict=True)][:REASONS]


def shown(hit: Hit, reasons: list[tuple[str, float]]) -> str:
    """A hit in two lines."""
    why = ", ".join(f"{name} ({share:+.2f})" for name, share in reasons)
    return f"  {hit.score:.3f}  {hit.id}  {(hit.text or '')[:200]}\n         by {why}"


def export_codes(words: list[str]) -> None:
    """Write the codes of an index in the form of a store."""
    options = parse(ExportArguments, __doc__, words)
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


def main() -> None:
    """The first word says what to do."""
    action = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if action in ("-h", "--help"):
        print(f"{__doc__}\n`search.py index --help`, `query --help` and `export --help` tell the options.")
        return
    ACTIONS[choose("action", action, list(ACTIONS), rule="of")](sys.argv[2:])


if __name__ == "__main__":
    run(main)
