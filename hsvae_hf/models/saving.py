"""Files of a saved folder besides weights: which class is which, and how sentence-transformers reads the model."""

import json
from os import PathLike
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

DIMENSIONS_FILE = "dimensions.json"  # words for dimensions, where somebody named them
_PLACE = ("cache_dir", "force_download", "token", "revision", "local_files_only", "subfolder")  # options of loading

_FILES: dict[str, Any] = {  # sentence-transformers' SparseEncoder, made of its own Transformer module
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
    ],
    "sentence_bert_config.json": {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": {"method": "forward", "method_output_name": "sparse_embedding"}},
        "module_output_name": "sentence_embedding",
    },
    "config_sentence_transformers.json": {
        "model_type": "SparseEncoder",
        "prompts": {"query": "", "document": ""},
        "default_prompt_name": None,
    },
}


def auto_map(config: object, model_module: str) -> dict[str, str]:
    """The Auto classes of a model family, which are named alike: `HSVAEConfig`, `HSVAEModel`, `HSVAEForPreTraining`...

    Args:
        config: the family's configuration.
        model_module: module of the family's models.
    """
    name = type(config).__name__.removesuffix("Config")
    modules = [path.rpartition(".")[2] for path in (type(config).__module__, model_module)]
    heads = {
        f"AutoModel{head}": f"{modules[1]}.{name}{head}" for head in ("ForPreTraining", "ForSequenceClassification")
    }
    return {"AutoConfig": f"{modules[0]}.{name}Config", "AutoModel": f"{modules[1]}.{name}Model", **heads}


def write_sentence_transformers_files(folder: str | Path, config: Any) -> None:
    """Make `SparseEncoder(folder)` give the codes of `hsvae_hf.encode`; not for a model that takes vectors alone."""
    if not config.reads_text:
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    own = {"similarity_fn_name": config.similarity_fn_name}
    if config.prompts:
        own |= {"prompts": config.prompts, "default_prompt_name": config.default_prompt_name}
    for name, content in _FILES.items():
        if name == "config_sentence_transformers.json":
            content = content | own
        (Path(folder) / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def find_file(source: str | Path, name: str, **options: Any) -> str | None:
    """The path of a file of a saved model; None if there is none, or the Hub does not answer.

    Args:
        source: a folder or a Hub id.
        name: of the file.
        options: as of `from_pretrained`; of those, what says where the file is.
    """
    return cached_file(
        source,
        name,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **{key: value for key, value in options.items() if key in _PLACE and value is not None},
    )


def read_dimensions(source: str | Path, **options: Any) -> str | None:
    """The file that names dimensions, as it is, which travels with the model; None if there is none.

    Args:
        source: as of `find_file`.
        options: likewise.
    """
    path = find_file(source, DIMENSIONS_FILE, **options)
    return None if path is None else Path(path).read_text(encoding="utf-8", errors="replace")


def write_dimensions(folder: "str | PathLike[str]", body: Any) -> None:
    """Write what `read_dimensions` gave for a model without its heads, if anything."""
    if body.dimensions_json is not None:
        (Path(folder) / DIMENSIONS_FILE).write_text(body.dimensions_json, encoding="utf-8")
