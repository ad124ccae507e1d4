"""What the dimensions of a trained model mean, from text: their words and sentences, and what the decoder says."""

from dataclasses import dataclass, field
from typing import Any

from transformers import AutoModelForPreTraining, HfArgumentParser

from hsvae_hf.cli import run
from hsvae_hf.data import load_text_dataset
from hsvae_hf.encoding import encode, load_for_inference
from hsvae_hf.evaluation import check_output
from hsvae_hf.explanation import LEAST_SENTENCES, decode_switched, describe_dimensions, explain
from hsvae_hf.extras import require
from hsvae_hf.training import write_json


@dataclass
class ExplainArguments:
    """Which model, which text, which dimension or which two sentences."""

    model_name_or_path: str = field(metadata={"help": "Trained model with its decoder: a folder or a Hub id."})
    dataset: str | None = field(
        default=None, metadata={"help": "docstrings, yelp, dbpedia, yahoo, a Hub id, or a local folder or file."}
    )
    dimension: int | None = field(default=None, metadata={"help": "One dimension, in detail; all in brief without."})
    sentences: list[str] | None = field(
        default=None, metadata={"help": "Two sentences, to explain their similarity instead."}
    )
    split: str = field(default="train", metadata={"help": "Split to look at."})
    text_column: str | None = field(default=None, metadata={"help": "Column of the sentences, if not found by name."})
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
    print("dimension and sign, share of the sentences that have it so, their words (- if too few sentences)")
    for dimension in found:
        for end, sign in (("positive", "+"), ("negative", "-")):
            if end in dimension:
                one = dimension[end]
                print(f"{dimension['dimension']:>5}{sign} {one['share']:>6.1%}  {', '.join(one['words']) or '-'}")


def explain_pair(options: ExplainArguments, model: Any, tokenizer: Any) -> dict[str, Any]:
    """What two sentences share."""
    pair = explain(model, tokenizer, *(options.sentences or ()))
    for index, value in pair.contributions:
        print(f"{index:>5}  {value:+.4f}")
    print(f"  sum  {pair.similarity:+.4f}   cosine {pair.cosine:+.4f}")
    for sentence in options.sentences or ():
        ids = {word: tokenizer(word, add_special_tokens=False)["input_ids"] for word in sentence.split()}
        unknown = [word for word, found in ids.items() if not found or tokenizer.unk_token_id in found]
        if unknown:
            print(f"words that the model does not know: {', '.join(unknown)}")
    return vars(pair)


def explain_dimensions(options: ExplainArguments, model: Any, tokenizer: Any) -> list[dict[str, Any]]:
    """All dimensions in brief, or one in detail."""
    limits = {"max_train_samples": options.max_samples, "max_samples": options.max_samples}
    settings: dict[str, Any] = {"text_column": options.text_column, "with_labels": False, "needs_train": False}
    splits = load_text_dataset(str(options.dataset), **settings, **limits)
    if options.split not in splits:
        raise ValueError(f"`split` must be one of {sorted(splits)}, got {options.split!r}; name one of them.")
    texts = splits[options.split]["text"][:]
    codes = encode(model, tokenizer, texts, show_progress_bar=True)
    found = describe_dimensions(codes, texts, options.num_words, options.num_sentences)
    if options.dimension is not None:
        found = [one for one in found if one["dimension"] == options.dimension]
    show(found)
    if len(texts) < 10 * LEAST_SENTENCES:
        print(f"words need {LEAST_SENTENCES} sentences that switch a dimension on, of {len(texts)} in all: add text")
    if options.dimension is not None and not found:
        print(f"{options.dimension:>5}  off for all {len(texts)} sentences")
    for one in found if options.dimension is not None else ():
        detail(one, model, tokenizer)
    return found


def main() -> None:
    """Load, look, print."""
    (options,) = HfArgumentParser(ExplainArguments, description=__doc__).parse_args_into_dataclasses()
    if (options.dataset is None) == (options.sentences is None):
        raise ValueError("Give exactly one of `dataset` and `sentences`, got both or neither.")
    if options.dataset is not None:
        require("sklearn")
    if options.sentences is not None and options.dimension is not None:
        raise ValueError("`dimension` must be left out with `sentences`: all that they share are shown.")
    if options.sentences is not None and len(options.sentences) != 2:
        raise ValueError(f"`sentences` must be two, got {len(options.sentences)}; put each into quotation marks.")
    for name in ("num_words", "num_sentences"):
        if getattr(options, name) < 1:
            raise ValueError(f"`{name}` must be at least 1, got {getattr(options, name)}; choose a positive number.")
    output = None if options.output is None else check_output(options.output, options.overwrite, ".json")
    model, tokenizer = load_for_inference(options.model_name_or_path, AutoModelForPreTraining)
    if tokenizer is None:
        raise ValueError(
            "`model_name_or_path` must have a text encoder, got one that takes vectors; explain the one that "
            "`without_encoder` made it of, or use `describe_dimensions` on codes and texts of your own."
        )
    size = model.config.latent_size
    if options.dimension is not None and not 0 <= options.dimension < size:
        raise ValueError(f"`dimension` must be from 0 to {size - 1}, got {options.dimension}; leave it out for all.")
    found = (explain_dimensions if options.sentences is None else explain_pair)(options, model, tokenizer)
    if output is not None:
        write_json(output, found)


def detail(one: dict[str, Any], model: Any, tokenizer: Any) -> None:
    """The sentences of both ends, and what the decoder says of them with the dimension off and on."""
    for end in ("positive", "negative"):
        if end not in one:
            continue
        value, sentences = one[end]["mean"], one[end]["sentences"]
        print(f"\n{end}, on average {value:+.2f}:")
        for sentence in sentences:
            print(f"    {one_line(sentence)}")
        if model.config.decoder_type == "gru":
            said = decode_switched(model, tokenizer, sentences, one["dimension"])
            one[end]["decoder"] = [{"off": off, "on": on} for off, on in said]
            print("  the decoder, with it off and on:")
            for off, on in said:
                print(f"    off  {one_line(off)}\n    on   {one_line(on)}")


if __name__ == "__main__":
    run(main)
