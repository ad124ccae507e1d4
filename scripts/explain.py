"""What the dimensions of a trained model mean, from text: their words and sentences, and what the decoder says."""

import json
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # the imports take seconds: a signal ends them without a traceback
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))

from transformers import AutoModelForPreTraining

from hsvae_hf.arguments import parse
from hsvae_hf.cli import run
from hsvae_hf.data import load_text_dataset
from hsvae_hf.encoding import encode
from hsvae_hf.explanation import LEAST_SENTENCES, decode_switched, describe_dimensions, explain
from hsvae_hf.extras import require
from hsvae_hf.files import check_output, claimed_files, write_json
from hsvae_hf.hub import REPORT
from hsvae_hf.loading import load_for_inference
from hsvae_hf.reporting import command_line, data_facts, finish, model_facts, say


@dataclass
class ExplainArguments:
    """Which model, which text, which dimension or which two sentences."""

    model_name_or_path: str = field(metadata={"help": "Trained model with its decoder: a folder or a Hub id."})
    dataset: str | None = field(
        default=None, metadata={"help": "docstrings, yelp, dbpedia, yahoo, a Hub id, or a local folder or file."}
    )
    dimension: int | None = field(default=None, metadata={"help": "One dimension, in detail; all in brief without."})
    sentences: list[str] | None = field(
        default=None,
        metadata={
            "help": "Two sentences, to explain their similarity instead, in the words of the data set if there is one."
        },
    )
    split: str = field(default="train", metadata={"help": "Split to look at."})
    text_column: str | None = field(default=None, metadata={"help": "Column of the sentences, if not found by name."})
    dataset_config_name: str | None = field(
        default=None,
        metadata={"aliases": ["--dataset_config"], "help": "Configuration of a data set that has several."},
    )
    max_samples: int | None = field(default=5000, metadata={"help": "Rows to look at."})
    num_words: int = field(default=8, metadata={"help": "Words for each end of a dimension."})
    num_sentences: int = field(default=3, metadata={"help": "Sentences for each end of a dimension."})
    output: str | None = field(default=None, metadata={"help": "JSON file of everything that was found, if wished."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an existing output."})


def one_line(text: str, width: int = 96) -> str:
    """A sentence, shortened."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 3] + "..."


def show(found: list[dict[str, Any]]) -> None:
    """A line for each end of each dimension."""
    say("dimension and sign, share of the sentences that have it so, their words (- where none stands out)")
    for dimension in found:
        for end, sign in (("positive", "+"), ("negative", "-")):
            if end in dimension:
                one = dimension[end]
                say(f"{dimension['dimension']:>5}{sign} {one['share']:>6.1%}  {', '.join(one['words']) or '-'}")


def explain_pair(options: ExplainArguments, model: Any, tokenizer: Any) -> dict[str, Any]:
    """What two sentences share."""
    first, second = options.sentences or ()
    words, source = words_of_dimensions(options, model, tokenizer)
    pair = explain(model, tokenizer, first, second)
    say("dimension, what it adds to the dot product of the two codes" + (f", its words in {source}" if source else ""))
    codes = encode(model, tokenizer, [first, second]).toarray()
    for index, value in pair.contributions:  # of two ends, where the product is negative
        ends = dict.fromkeys("positive" if code > 0 else "negative" for code in codes[:, index])
        shown = " against ".join(words.get((index, one), "-") for one in ends) if source else ""
        say(f"{index:>5}  {value:+.4f}  {shown}".rstrip())
    say(f"  sum  {pair.similarity:+.4f}   cosine {pair.cosine:+.4f}")
    for sentence in (first, second):
        ids = {word: tokenizer(word, add_special_tokens=False)["input_ids"] for word in sentence.split()}
        unknown = [word for word, found in ids.items() if not found or tokenizer.unk_token_id in found]
        if unknown:
            say(f"words that the model does not know: {', '.join(unknown)}")
    if not source:
        say("for the words of these dimensions, add --dataset with text like what the model was trained on")
    return vars(pair)


def words_of_dimensions(
    options: ExplainArguments, model: Any, tokenizer: Any
) -> tuple[dict[tuple[int, str], str], str | None]:
    """Words by dimension and end, and what they are from: the data set, or the report in the model's folder."""
    report = Path(options.model_name_or_path) / REPORT
    if options.dataset is not None:
        found, source = described(options, model, tokenizer)[0], options.dataset
    elif report.is_file():
        found, source = json.loads(report.read_text()).get("dimensions", []), str(report)
    else:
        return {}, None
    ends = ("positive", "negative")
    words = {(one["dimension"], end): ", ".join(one[end]["words"]) for one in found for end in ends if end in one}
    return {key: text or "-" for key, text in words.items()}, source


def described(options: ExplainArguments, model: Any, tokenizer: Any) -> tuple[list[dict[str, Any]], int]:
    """The dimensions as the data set shows them, and the number of its rows."""
    limits = {"max_train_samples": options.max_samples, "max_samples": options.max_samples}
    settings: dict[str, Any] = {"text_column": options.text_column, "with_labels": False, "needs_train": False}
    config = options.dataset_config_name
    splits = load_text_dataset(str(options.dataset), dataset_config_name=config, **settings, **limits)
    if options.split not in splits:
        raise ValueError(f"`split` must be one of {sorted(splits)}, got {options.split!r}; name one of them.")
    texts = splits[options.split]["text"][:]
    say(*data_facts(splits, labels=False), f"looked at: {len(texts):,} rows of `{options.split}`")
    codes = encode(model, tokenizer, texts, show_progress_bar=sys.stderr.isatty())
    return describe_dimensions(codes, texts, options.num_words, options.num_sentences), len(texts)


def explain_dimensions(options: ExplainArguments, model: Any, tokenizer: Any) -> list[dict[str, Any]]:
    """All dimensions in brief, or one in detail."""
    found, rows = described(options, model, tokenizer)
    if options.dimension is not None:
        found = [one for one in found if one["dimension"] == options.dimension]
    show(found)
    if rows < 10 * LEAST_SENTENCES:
        say(f"words need {LEAST_SENTENCES} sentences that switch a dimension on, of {rows} in all: add text")
    if options.dimension is not None and not found:
        say(f"{options.dimension:>5}  off for all {rows} sentences")
    for one in found if options.dimension is not None else ():
        detail(one, model, tokenizer)
    return found


def check(options: ExplainArguments) -> None:
    """Refuse what does not go together, before anything is read."""
    if options.dataset is None and options.sentences is None:
        raise ValueError("Give `dataset`, `sentences`, or both, got neither.")
    if options.dataset is not None:
        require("sklearn")
    if options.sentences is not None and options.dimension is not None:
        raise ValueError("`dimension` must be left out with `sentences`: all that they share are shown.")
    if options.sentences is not None and len(options.sentences) != 2:
        raise ValueError(f"`sentences` must be two, got {len(options.sentences)}; put each into quotation marks.")
    for name in ("num_words", "num_sentences"):
        if getattr(options, name) < 1:
            raise ValueError(f"`{name}` must be at least 1, got {getattr(options, name)}; choose a positive number.")


def main() -> None:
    """Parse, check, look."""
    options = parse(ExplainArguments, __doc__)
    check(options)
    output = None
    if options.output is not None:
        output = check_output(options.output, options.overwrite, ".json", inputs=(options.dataset,))
    with claimed_files(output=output):
        look(options, output)


def look(options: ExplainArguments, output: Path | None) -> None:
    """Load, look, print, write."""
    say(f"explain.py: {options.model_name_or_path}" + (f" on {options.dataset}" if options.dataset else ""))
    model, tokenizer = load_for_inference(options.model_name_or_path, AutoModelForPreTraining)
    if tokenizer is None:
        raise ValueError(
            "`model_name_or_path` must have a text encoder, got one that takes vectors; explain the one that "
            "`without_encoder` made it of, or use `describe_dimensions` on codes and texts of your own."
        )
    size = model.config.latent_size
    if options.dimension is not None and not 0 <= options.dimension < size:
        raise ValueError(f"`dimension` must be from 0 to {size - 1}, got {options.dimension}; leave it out for all.")
    say(model_facts(model))
    found = (explain_dimensions if options.sentences is None else explain_pair)(options, model, tokenizer)
    if output is not None:
        write_json(output, found)
    if options.sentences is None and options.dimension is None and found:
        names = ("model_name_or_path", "dataset", "dataset_config_name", "text_column")
        shared = {name: getattr(options, name) for name in names}
        widest = max(found, key=lambda one: max(len(end["words"]) for end in one.values() if isinstance(end, dict)))
        result = f"{len(found)} of {size} dimensions are ever on" + ("" if output is None else f"; all in {output}")
        finish(result, {}, command_line("explain.py", **shared, dimension=widest["dimension"]))
    elif output is not None:
        finish(f"{output}: what was found", {})


def detail(one: dict[str, Any], model: Any, tokenizer: Any) -> None:
    """The sentences of both ends, and what the decoder says of them with the dimension off and on."""
    for end in ("positive", "negative"):
        if end not in one:
            continue
        value, sentences = one[end]["mean"], one[end]["sentences"]
        say(f"\n{end}, on average {value:+.2f}:")
        for sentence in sentences:
            say(f"    {one_line(sentence)}")
        if model.config.decodes_words:
            said = decode_switched(model, tokenizer, sentences, one["dimension"])
            one[end]["decoder"] = [{"off": off, "on": on} for off, on in said]
            say("  the decoder, with it off and on:")
            for off, on in said:
                say(f"    off  {one_line(off)}\n    on   {one_line(on)}")


if __name__ == "__main__":
    run(main)
