"""Files of a saved folder besides weights: which class is which, and how sentence-transformers reads the model."""

import json
from pathlib import Path
from typing import Any

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
