"""Names of dimensions: a few words for both ends of each, from text, kept beside the model as `dimensions.json`."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from math import isnan
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from scipy import sparse
from torch import nn

from hsvae_hf.files import write_json
from hsvae_hf.input_checks import as_codes, check_positive
from hsvae_hf.models.modeling_base import TextVAEPreTrainedModel
from hsvae_hf.models.saving import DIMENSIONS_FILE, find_file, read_dimensions
from hsvae_hf.models.sources import check_source

SIGNS = {"positive": "+", "negative": "-"}  # of the ends of a dimension: codes above 0 and below
REMEDY = "name the dimensions again, `hsvae_hf.name_dimensions(codes, texts).save(folder)`"


@dataclass(frozen=True)
class DimensionNames:
    """Words that tell what the ends of dimensions are on for.

    An end is written as the dimension and its sign: "17+" for codes above 0, "17-" for codes below.

    Args:
        latent_size: number of dimensions of the codes.
        sentences: number of those that the words are from.
        ends: of each end that some word stands out for, `share` of the sentences that are on it, in (0, 1], and
            `words`, the most telling first.

    Raises:
        ValueError: if an end is none of these dimensions.

    Example:
        >>> names = DimensionNames(20, 900, {"17+": {"share": 0.03, "words": ["password", "reset"]}})
        >>> names.of(17, 0.8), names.of(17, -0.2)
        ('password, reset', '17-')
        >>> names.labels["17+"]
        'password, reset'
    """

    latent_size: int
    sentences: int
    ends: Mapping[str, Mapping[str, Any]]

    def __post_init__(self) -> None:
        check_positive(latent_size=self.latent_size, sentences=self.sentences)
        known = set(_all_ends(self.latent_size))
        for end, found in self.ends.items():
            if end not in known:
                last = self.latent_size - 1
                raise ValueError(f"`ends` must be '0+', '0-' and so on to '{last}-', got {end!r}; {REMEDY}.")
            share, words = (found.get(name) for name in ("share", "words"))
            strings = isinstance(words, list) and all(isinstance(word, str) for word in words)
            if not strings or not isinstance(share, float | int) or not 0 < share <= 1:
                raise ValueError(
                    f"`ends` must have a `share` in (0, 1] and a list of `words` each, got {found!r} for {end!r}; "
                    f"{REMEDY}."
                )

    def of(self, dimension: int, value: float) -> str:
        """The words of the end that a value of a code is on, such as "password, reset"; the end where it has none.

        Args:
            dimension: from 0 to `latent_size` - 1.
            value: of the code in this dimension, not 0. Its sign decides.

        Raises:
            ValueError: if there is no such dimension, or the value is on no end.
        """
        number, given = cast(Any, dimension), cast(Any, value)
        whole = isinstance(number, Integral) and not isinstance(number, bool)
        if not whole or not 0 <= dimension < self.latent_size:
            raise ValueError(
                f"`dimension` must be from 0 to {self.latent_size - 1}, got {dimension!r}; choose one of them."
            )
        if not isinstance(given, Real) or value == 0 or isnan(value):
            raise ValueError(f"`value` must be above 0 or below, got {value!r}; a dimension at 0 is off.")
        end = _end(int(dimension), float(value))
        return ", ".join(self.ends.get(end, {}).get("words", ())) or end

    @cached_property
    def labels(self) -> dict[str, str]:
        """A name for each end of each dimension, no two alike, for exports: `labels["17+"]` is "password, reset".

        Where several ends have the same words, the end stands behind them: "password, reset (17+)".
        """
        plain = {end: ", ".join(self.ends.get(end, {}).get("words", ())) for end in _all_ends(self.latent_size)}
        taken = Counter(words or end for end, words in plain.items())
        labels = {
            end: f"{words} ({end})" if words and (taken[words] > 1 or words in plain) else words or end
            for end, words in plain.items()
        }
        twice = Counter(labels.values())  # words that look like the name of another end
        return {end: label if twice[label] == 1 else end for end, label in labels.items()}

    def __repr__(self) -> str:
        return (
            f"DimensionNames({self.latent_size} dimensions, words for {len(self.ends)} ends, of {self.sentences} texts)"
        )

    def save(self, folder: "str | PathLike[str]") -> None:
        """Write `dimensions.json`, whole or not at all, into the folder of the model.

        In the folder of a `SparseEncoder`, it goes to that of its `SparseCodes`. A model that is loaded already does
        not notice; see `attach`.

        Args:
            folder: created if it is not there.

        Raises:
            ValueError: if the folder holds a model with another number of dimensions, or cannot be written.
        """
        home = Path(folder) / (_subfolder(str(folder)) if Path(folder).is_dir() else "")
        config = home / "config.json"
        size = json.loads(config.read_text(encoding="utf-8")).get("latent_size") if config.is_file() else None
        if size not in (None, self.latent_size):
            raise ValueError(
                f"`folder` must be of the model that is named, with {self.latent_size} dimensions, got {str(folder)!r} "
                f"with {size}; choose another folder."
            )
        write_json(home / DIMENSIONS_FILE, asdict(self), "folder")

    @classmethod
    def load(cls, folder_or_hub_id: "str | PathLike[str]") -> Self:
        """Read the names that lie beside a model, or in a `SparseEncoder` beside its `SparseCodes`.

        Args:
            folder_or_hub_id: of the model.

        Raises:
            ValueError: if there is no such place, it has no names, or their file is damaged.
        """
        source = check_source(folder_or_hub_id, "folder_or_hub_id")
        text = read_dimensions(source) or read_dimensions(source, subfolder=_subfolder(source))
        if text is None:
            raise ValueError(f"`folder_or_hub_id` must hold {DIMENSIONS_FILE}, got {source!r} without it; {REMEDY}.")
        return cls._parsed(text, "folder_or_hub_id", repr(source))

    def attach(self, model: nn.Module) -> None:
        """Give the names to a model in memory, which then saves them with itself.

        Args:
            model: of this package, or a `SparseEncoder` of one.

        Raises:
            ValueError: if it is none, or has another number of dimensions.
        """
        named = _model_of(model, "model")
        if named.config.latent_size != self.latent_size:
            raise ValueError(
                f"`model` must have the {self.latent_size} dimensions that are named, got one with "
                f"{named.config.latent_size}; name those of its own codes."
            )
        cast(Any, named.base_model).dimensions_json = json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def _parsed(cls, text: str, argument: str, place: str) -> Self:
        try:
            content = json.loads(text)
            return cls(content["latent_size"], content["sentences"], dict(content["ends"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise ValueError(
                f"`{argument}` must have an intact {DIMENSIONS_FILE}, got that of {place} ({type(error).__name__}: "
                f"{reason}); {REMEDY}."
            ) from error


def name_dimensions(
    codes: "sparse.csr_matrix | np.ndarray | torch.Tensor", texts: Sequence[str], num_words: int = 3
) -> DimensionNames:
    """Name dimensions by the words of the sentences that switch them on, as `describe_dimensions` finds them.

    Words come by their log odds in the sentences of an end against all others. They say what is frequent where a
    dimension is on, which is no definition. Names hold for the model that the codes are of: one that is trained on
    loses them.

    Args:
        codes: of `texts`, `(sentences, latent_size)`, of scipy, numpy or torch; of tens of thousands of sentences where
            words are to be telling.
        texts: raw sentences, like those that are to be encoded.
        num_words: at most so many for each end.

    Raises:
        ImportError: without scikit-learn, of the extra `train`.
        ValueError: if there are not as many codes as texts, or they are no codes or no texts.

    Example:
        >>> codes = sparse.csr_matrix([[1.0, 0.0]] * 6 + [[0.0, -1.0]] * 6)
        >>> names = name_dimensions(codes, ["reset my password"] * 6 + ["a jazz guitarist"] * 6)
        >>> names.of(0, 1.0), names.of(1, -1.0), names.of(1, 1.0)
        ('my, password, reset', 'guitarist, jazz', '1+')
        >>> names.save("runs/reviews")  # doctest: +SKIP
    """
    from hsvae_hf.explanation import describe_dimensions  # which names what it explains

    check_positive(num_words=num_words)
    described = describe_dimensions(as_codes(codes), texts, num_words, num_sentences=0)
    ends = {
        f"{one['dimension']}{sign}": {"share": float(f"{one[end]['share']:.4g}"), "words": one[end]["words"]}
        for one in described
        for end, sign in SIGNS.items()
        if end in one and one[end]["words"]
    }
    return DimensionNames(int(codes.shape[1]), int(codes.shape[0]), ends)


def names_of_model(model: nn.Module) -> DimensionNames | None:
    """The names that a model was saved with, or given by `DimensionNames.attach`; None if it has none.

    Args:
        model: of this package, or a `SparseEncoder` of one.

    Raises:
        ValueError: if it is neither, or its names are damaged or of another number of dimensions.
    """
    named = _model_of(model, "model")
    text, size = cast(Any, named.base_model).dimensions_json, named.config.latent_size
    if text is None:
        return None
    names = DimensionNames._parsed(text, "model", repr(named.name_or_path or type(named).__name__))
    if names.latent_size != size:
        raise ValueError(
            f"`model` must have names of its {size} dimensions, got those of {names.latent_size}; {REMEDY}."
        )
    return names


def decode(
    encoder_or_names: "nn.Module | DimensionNames", codes: Any, top_k: int | None = None
) -> list[tuple[str, float]] | list[list[tuple[str, float]]]:
    """Name the dimensions of codes, in the form of `SparseEncoder.decode`: what a code is about, and how much.

    Names are `DimensionNames.labels`, so no two dimensions of a row have the same; an end that no word stands out for
    is called "17+" or "17-". Unlike the library, which puts values below 0 last, the strongest come first by magnitude.

    Args:
        encoder_or_names: a model of this package, a `SparseEncoder` of one, or names. Without names, all dimensions are
            called by number.
        codes: `(rows, latent_size)`, of scipy, numpy or torch, or a single one, `(latent_size,)`.
        top_k: at most so many per row (>= 1); None for all that are not 0.

    Returns:
        `(name, weight)` of the dimensions of each row, strongest first; for a single code, of that one.

    Raises:
        ValueError: if there is nothing to name by, its names are damaged, or the codes are of another width.

    Example:
        >>> names = DimensionNames(3, 900, {"2-": {"share": 0.03, "words": ["password", "reset"]}})
        >>> decode(names, [[0.25, 0.0, -0.5]])
        [[('password, reset', -0.5), ('0+', 0.25)]]
    """
    check_positive(top_k=top_k)
    if isinstance(encoder_or_names, DimensionNames):
        names = encoder_or_names
    else:
        model = _model_of(encoder_or_names, "encoder_or_names")
        names = names_of_model(model) or DimensionNames(model.config.latent_size, 1, {})
    codes = np.asarray(codes) if isinstance(codes, list | tuple) else codes
    single = len(getattr(codes, "shape", ())) == 1
    if single:
        codes = codes.unsqueeze(0) if isinstance(codes, torch.Tensor) else codes.reshape(1, -1)
    rows = as_codes(codes, names.latent_size)
    named = [_named(rows[[row]], names, top_k) for row in range(rows.shape[0])]
    return named[0] if single else named


def _named(code: sparse.csr_matrix, names: DimensionNames, top_k: int | None) -> list[tuple[str, float]]:
    strongest = np.argsort(-np.abs(code.data), kind="stable")
    pairs = ((int(code.indices[place]), float(code.data[place])) for place in strongest if code.data[place] != 0)
    return [(names.labels[_end(dimension, value)], value) for dimension, value in pairs][:top_k]


def _end(dimension: int, value: float) -> str:
    return f"{dimension}{'+' if value > 0 else '-'}"


def _all_ends(latent_size: int) -> Iterator[str]:
    return (f"{dimension}{sign}" for dimension in range(latent_size) for sign in SIGNS.values())


def _model_of(module: object, argument: str) -> TextVAEPreTrainedModel:
    modules = module.modules() if isinstance(module, nn.Module) else ()
    found = next((part for part in modules if isinstance(part, TextVAEPreTrainedModel)), None)
    if found is None:
        raise ValueError(
            f"`{argument}` must be a loaded model of this package, or a SparseEncoder of one, got a "
            f"{type(module).__name__}; load it, or its names with `DimensionNames.load(folder)`."
        )
    return found


def _subfolder(source: str) -> str:
    """Where in the folder or repository of a `SparseEncoder` its `SparseCodes` lies; the whole of another one."""
    path = find_file(source, "modules.json")
    try:
        modules = [] if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
        return next((cast(str, one["path"]) for one in modules if one["type"].endswith("SparseCodes")), "")
    except (ValueError, KeyError, TypeError, AttributeError):  # no file of sentence-transformers
        return ""
