"""Model cards from the files of a run, and the push of a run to the Hub: one commit, or nothing."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import yaml
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import get_session, hf_raise_for_status
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
)

from hsvae_hf.data_sources import HUB_IDS
from hsvae_hf.dimension_names import DimensionNames
from hsvae_hf.explanation import ENDS
from hsvae_hf.loading import load_for_inference
from hsvae_hf.models.configuration_text_vae import TextVAEConfig
from hsvae_hf.models.saving import DIMENSIONS_FILE
from hsvae_hf.models.sources import HTTP_ERROR

TEMPLATE = Path(__file__).parent / "model_card_template.md"
REPORT, RESULTS, SETTINGS, HEATMAP = "report.json", "all_results.json", "train_settings.json", "gates.png"
RUN_FILES = (REPORT, RESULTS, SETTINGS, HEATMAP)
LICENSES = {"fancyzhx/dbpedia_14": "cc-by-sa-3.0", "Yelp/yelp_review_full": "other"}  # of the training text
TAGS = ["sparse", "sparse-encoder", "sentence-transformers", "sentence-embeddings", "vae"]
MEASURED = {  # keys of the report and of the results of training: names in the card
    "reconstruction_loss": "reconstruction, nats per sentence",
    "z_kl": "KL of z, nats per sentence, unweighted",
    "gamma_kl": "KL of the gate, nats per sentence, unweighted",
    "perplexity": "perplexity per token",
    "squared_error_code": "squared error of a standardised dimension, from the code",
    "neighbours_kept": "share of the ten nearest of 1,000 rows by vector that codes find again",
    "average_hoyer_samples": "Average Hoyer of samples",
    "average_hoyer_posterior_means": "Average Hoyer of posterior means",
    "average_hoyer_slab_means": "Average Hoyer of slab means",
    "active_dims": "active dimensions per sentence",
    "gate_std": "standard deviation of a gate over sentences",
    "switching_fraction": "share of dimensions that switch",
    "active_units": "active units",
    "dead_dims": "dimensions that no sentence uses",
    "always_on_dims": "dimensions that more than 99% of the sentences use",
    "mutual_information": "mutual information of sentence and code, nats, of at most 6.2",
    "test_accuracy": "accuracy of the classifier, test",
    "validation_accuracy": "accuracy of the classifier, validation",
}
PROBES = {  # keys of the report's accuracies: names in the card
    "code": "accuracy of logistic regression on the code",
    "gate": "accuracy of logistic regression on the binarised gate alone",
    "samples": "accuracy of logistic regression on draws",
}
BASELINES = {  # likewise; no results of this model
    "dense": "accuracy of logistic regression on the vectors themselves, same rows",
    "tfidf": "accuracy of logistic regression on TF-IDF, same rows",
}
SHOWN_DIMENSIONS = 16  # ends of dimensions, in the card
COMPARED = {"cosine": "cosine", "dot": "dot product"}
SHARED_FIELDS = {"z_kl_weight", "gamma_kl_weight", "penalty_weight", "word_dropout", "free_bits"}
VECTOR_FIELDS = {
    "similarity_weight",
    "similarity_temperature",
    "code_ridge",
    "code_budgets",
    "code_reconstruction_weight",
    "revival_weight",
}


def model_card(folder: str | Path, repo_id: str, dataset_id: str | None = None) -> ModelCard:
    """The card of a trained model, from the files in its folder; what was not measured is left out.

    Args:
        folder: of a run: `config.json`, and where they exist `all_results.json`, `train_settings.json`, `report.json`
            (of `scripts/evaluate_model.py --output`), `gates.png` (of its `--heatmap`) and `dimensions.json` (of
            `hsvae_hf.name_dimensions`).
        repo_id: where the model goes, for the usage block.
        dataset_id: the training data on the Hub, where the settings do not tell.

    Raises:
        ValueError: if one of these files is damaged.
    """
    folder = Path(folder)
    config = AutoConfig.from_pretrained(folder)
    report, results, settings = (_read(folder / name) for name in (REPORT, RESULTS, SETTINGS))
    names = DimensionNames.load(folder) if (folder / DIMENSIONS_FILE).is_file() else None
    data_name = settings.get("dataset") or ""
    dataset = dataset_id or HUB_IDS.get(data_name)
    is_classifier = "ForSequenceClassification" in (config.architectures or [""])[0]
    task = "text-classification" if is_classifier else "feature-extraction"
    title = repo_id.rpartition("/")[2]
    accuracies = report.get("accuracy", {})
    measured = _named(MEASURED, report | results)
    own_results = measured | _named(PROBES, accuracies)
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag=task,
        tags=[*TAGS, config.model_type],
        datasets=[dataset] if dataset else None,
        base_model=settings.get("base_model"),
        license=LICENSES.get(str(dataset)),
        model_name=title if measured or accuracies else None,
        eval_results=_eval_results(own_results, task, dataset or Path(data_name).name or "unknown") or None,
    )
    return ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        title=title,
        repo_id=repo_id,
        config=config,
        classes=[config.id2label[index] for index in sorted(config.id2label)] if is_classifier else [],
        model_rows=_model_rows(config),
        data_name=data_name,
        data_is_known=bool(settings or dataset),
        settings={name: _without_folder(value) for name, value in settings.items()},
        results={
            name: f"{value:.4g}" if isinstance(value, float) else value
            for name, value in (own_results | _named(BASELINES, accuracies)).items()
        },
        rows=report.get("rows"),
        evaluation=report.get("settings", {}),
        trained=bool(results),
        advice=report.get("advice"),
        dimensions=_telling_dimensions(report.get("dimensions", [])) if names is None else _frequent_names(names),
        named_by=names and names.sentences,
        has_gates="active_threshold" in config.to_dict(),
        heatmap=(folder / HEATMAP).is_file(),
    )


def _read(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one if there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"`folder` must hold intact files, got {str(path)!r} ({error}); write it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"`folder` must hold intact files, got {str(path)!r} without an object; write it again.")
    return content


def _named(names: dict[str, str], values: dict[str, Any]) -> dict[str, Any]:
    """The values that have a name in the card, by that name."""
    return {name: values[key] for key, name in names.items() if key in values}


def _eval_results(results: dict[str, Any], task: str, dataset: str) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=task,
            dataset_type=dataset,
            dataset_name=dataset,
            metric_type="accuracy" if "accuracy" in name else name.lower().replace(" ", "_").replace(",", ""),
            metric_name=name,
            metric_value=round(float(value), 4),
        )
        for name, value in results.items()
    ]


def _telling_dimensions(dimensions: list[dict[str, Any]]) -> list[tuple[int, str, float, str]]:
    """Dimension, sign of the end, share of the sentences and words, of the ends that tell most.

    Those are on for less than 40% of the sentences and have at least five words to name; the most frequent are kept.
    """
    rows = []
    for dimension in dimensions:
        for end, sign in zip(ENDS, "+-", strict=True):
            share, words = (dimension[end]["share"], dimension[end]["words"]) if end in dimension else (0.0, [])
            if share < 0.4 and len(words) >= 5:
                rows.append((dimension["dimension"], sign, share, ", ".join(words)))
    return _most_frequent(rows)


def _frequent_names(names: DimensionNames) -> list[tuple[int, str, float, str]]:
    """The same of names, which have fewer words."""
    ends = ((int(end[:-1]), end[-1], found["share"], ", ".join(found["words"])) for end, found in names.ends.items())
    return _most_frequent([row for row in ends if row[2] < 0.4 and row[3]])


def _most_frequent(rows: list[tuple[int, str, float, str]]) -> list[tuple[int, str, float, str]]:
    return sorted(sorted(rows, key=lambda row: -row[2])[:SHOWN_DIMENSIONS])


def _model_rows(config: TextVAEConfig) -> list[tuple[str, Any]]:
    """What the card's table of the model shows, by name."""
    if not config.reads_text:
        encoder = f"none; vectors of {config.vector_size} numbers"
    elif config.encoder_config is None:
        encoder = f"GRU, {config.hidden_size}"
    else:
        encoder = cast(PreTrainedConfig, config.encoder_config).model_type
    rows: list[tuple[str, Any]] = [("type", config.model_type), ("encoder", encoder)]
    rows.append(("latent dimensions", config.latent_size))
    if config.decodes_words:
        rows.append(("vocabulary", config.vocab_size))
    else:
        rows.append(("reconstructs", "the encoder's vector"))
        rows.append(("codes are compared by", COMPARED[config.similarity_fn_name]))
    own_fields = {item.name for item in fields(config)} - {item.name for item in fields(TextVAEConfig)}
    shared_fields = SHARED_FIELDS | ({"feature_std"} if config.decodes_words else VECTOR_FIELDS)
    values = [(name, getattr(config, name)) for name in sorted(own_fields | shared_fields)]
    return rows + [(name, value) for name, value in values if value is not None]


def _without_folder(value: object) -> Any:
    """A setting as the card shows it: of a path on the machine that trained, the name alone."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    private: bool | None = None,
    token: str | None = None,
    dataset_id: str | None = None,
    overwrite: bool = False,
    card: str | Path | None = None,
) -> str:
    """Push a trained model: weights, configuration, code, tokenizer, card and report, in one commit.

    Everything is prepared and checked in a temporary folder first. A push that fails changes neither the run nor the
    repository. The report, the picture and the names of dimensions of an earlier push are deleted where this run
    has none.

    Args:
        folder: of the run.
        repo_id: `user/name`.
        private: of a new repository; None takes the account's default.
        token: a write token; None takes the one that is logged in.
        dataset_id: as in `model_card`.
        overwrite: whether a repository with a model of another type may be replaced.
        card: a README.md of your own instead of `model_card`.

    Returns:
        The URL of the commit.

    Raises:
        ValueError: if the folder holds no whole model, the card is not valid, the repository holds another type of
            model, or the Hub refuses or cannot be reached.
    """
    folder, api = Path(folder), HfApi(token=token)
    model, tokenizer = load_for_inference(folder, _auto_class(folder))
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary)
        model.save_pretrained(staged)
        if tokenizer is not None:
            tokenizer.save_pretrained(staged)
        for name in RUN_FILES:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, staged / name)
        generated = model_card(staged, repo_id, dataset_id)
        with _one_line_errors(repo_id):
            _checked_card(card or generated, api.endpoint).save(staged / "README.md")
            _check_repository(api, repo_id, model.config.model_type, overwrite)
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=staged,
                commit_message=f"Push {folder.resolve().name}",
                delete_patterns=[*RUN_FILES, DIMENSIONS_FILE],
            )
        return str(commit)


def _auto_class(folder: Path) -> type[Any]:
    """The Auto class whose model has all the weights of a folder."""
    config = AutoConfig.from_pretrained(folder) if (folder / "config.json").is_file() else None
    architecture = (getattr(config, "architectures", None) or [""])[0]
    classes: dict[str, type[Any]] = {
        "ForPreTraining": AutoModelForPreTraining,
        "ForSequenceClassification": AutoModelForSequenceClassification,
    }
    return next((classes[ending] for ending in classes if architecture.endswith(ending)), AutoModel)


@contextmanager
def _one_line_errors(repo_id: str) -> Iterator[None]:
    """Turn what the Hub or the network raises into one line that says what to do."""
    try:
        yield
    except (HTTP_ERROR, OSError) as error:
        reason = " ".join(str(error).split())
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
            raise ValueError(
                f"`repo_id` must be a repository that your token may write, got {repo_id!r}: the Hub says {reason}; "
                "log in with `hf auth login`, or pass a write token."
            ) from error
        raise ValueError(
            f"`repo_id` must be a repository that the Hub answers for, got {repo_id!r}: {reason}; check "
            "the network and push again, nothing is there by halves."
        ) from error


def _checked_card(card: ModelCard | str | Path, endpoint: str) -> ModelCard:
    """The card, or the one in a file, after the Hub has checked its metadata."""
    name = "the generated one" if isinstance(card, ModelCard) else repr(str(card))
    try:
        card = card if isinstance(card, ModelCard) else ModelCard(Path(card).read_text(encoding="utf-8"))
        _validate(card, endpoint)
    except (yaml.YAMLError, FileNotFoundError, ValueError, TypeError) as error:
        raise ValueError(
            "`card` must be a README.md that begins with metadata in YAML, between lines of ---, as the Hub takes it, "
            f"got {name}: {' '.join(str(error).split())}; correct it, or leave `card` out."
        ) from error
    return card


def _validate(card: ModelCard, endpoint: str) -> None:
    """As `ModelCard.validate`, which before huggingface_hub 2.2 asks huggingface.co whatever the endpoint is."""
    body, headers = {"repoType": "model", "content": str(card)}, {"Accept": "text/plain"}
    response = get_session().post(f"{endpoint}/api/validate-yaml", json=body, headers=headers)
    if response.status_code == 400:
        raise ValueError(response.text)
    hf_raise_for_status(response)


def _check_repository(api: HfApi, repo_id: str, model_type: str, overwrite: bool) -> None:
    """Refuse to replace a model of another type unasked."""
    try:
        path = api.hf_hub_download(repo_id, "config.json")
    except (RepositoryNotFoundError, RemoteEntryNotFoundError):  # not LocalEntryNotFoundError: the Hub did not answer
        return
    present = json.loads(Path(path).read_text(encoding="utf-8")).get("model_type")
    if present != model_type and not overwrite:
        raise ValueError(
            f"`repo_id` must not hold a model of another type, got {repo_id!r} with {present!r}, not {model_type!r}; "
            "choose another name, or set `overwrite`."
        )
