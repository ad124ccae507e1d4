"""Model cards out of a run's own files, and pushing a run to the Hub: one commit, or nothing."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import get_session, hf_raise_for_status
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification

from hsvae_hf.loading import load_for_inference
from hsvae_hf.locating import HUB_IDS
from hsvae_hf.metrics import metric_path
from hsvae_hf.models.configuration_text_vae import TextVAEConfig

TEMPLATE = Path(__file__).parent / "model_card_template.md"
REPORT, RESULTS, SETTINGS, HEATMAP = "report.json", "all_results.json", "train_settings.json", "gates.png"
OF_THE_RUN = (REPORT, RESULTS, SETTINGS, HEATMAP)
HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]  # of the HTTP client, whichever huggingface_hub has
LICENSES = {"fancyzhx/dbpedia_14": "cc-by-sa-3.0", "Yelp/yelp_review_full": "other"}  # of the training text
SUMMARIES = {
    "hsvae": "Sparse sentence codes learned without labels: a hierarchical sparse VAE (HSVAE) switches every latent "
    "dimension on or off, sentence by sentence.",
    "gaussian-vae": "Dense sentence codes learned without labels by a VAE with a Gaussian posterior.",
    "mat-vae": "Sentence codes learned without labels by MAT-VAE, a VAE pulled to a sparse prior by an MMD.",
    "vsc": "Sparse sentence codes learned without labels by variational sparse coding.",
    "sdlgm": "Sparse sentence codes learned without labels, at most a fixed number of dimensions each (SDLGM, a "
    "reconstruction from its abstract).",
    "sparsemax-ae": "Sparse sentence codes learned without labels by a sparsemax autoencoder.",
    "text-encoder": "Dense sentence features.",
}
EXAMPLES = {"docstrings": "Set the title of the figure."}  # other texts have the words of the one below
EXAMPLE = "A small village in the north of the country."
CITATION = """@inproceedings{prokhorov-etal-2021-learning,
  title     = {Learning Sparse Sentence Encoding without Supervision:
               An Exploration of Sparsity in Variational Autoencoders},
  author    = {Prokhorov, Victor and Li, Yingzhen and Shareghi, Ehsan and Collier, Nigel},
  booktitle = {Proceedings of the 6th Workshop on Representation Learning for NLP (RepL4NLP-2021)},
  pages     = {34--46},
  year      = {2021}
}"""
SHOWN = {
    "reconstruction_loss": "reconstruction, nats per sentence",
    "z_kl": "KL of z, nats per sentence, unweighted",
    "gamma_kl": "KL of the gate, nats per sentence, unweighted",
    "perplexity": "perplexity per token",
    "squared_error_code": "squared error of a standardised dimension, from the code",
    "neighbours_kept": "share of the ten nearest of 1,000 rows by vector that codes find again",
    "average_hoyer_samples": "Average Hoyer of samples",
    "average_hoyer_slab_means": "Average Hoyer of slab means",
    "average_hoyer_posterior_means": "Average Hoyer of posterior means",
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
SHOWN_DIMENSIONS = 16  # ends of dimensions, in the card
PROBES = {"code": "the code", "gate": "the binarised gate alone", "samples": "draws"}
BASELINES = {"dense": "the vectors themselves, same rows", "tfidf": "TF-IDF, same rows"}


def _read(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"`folder` must hold intact files, got {str(path)!r} ({error}); write it again.") from error
    if not isinstance(found, dict):
        raise ValueError(f"`folder` must hold intact files, got {str(path)!r} without an object; write it again.")
    return found


def model_card(folder: str | Path, repo_id: str, dataset_id: str | None = None) -> ModelCard:
    """The card of a trained model, from its folder's own files; what was not measured is left out.

    Args:
        folder: of a run: `config.json`, and where they exist `all_results.json`, `train_settings.json`, `report.json`
            (of `scripts/evaluate_model.py --output`) and `gates.png` (of its `--heatmap`).
        repo_id: where the model goes, for the usage block.
        dataset_id: the training data on the Hub, where the settings do not tell.
    """
    folder = Path(folder)
    config = AutoConfig.from_pretrained(folder)
    report, results, settings = _read(folder, REPORT), _read(folder, RESULTS), _read(folder, SETTINGS)
    name = settings.get("dataset") or ""
    dataset = dataset_id or HUB_IDS.get(name)
    classes = "ForSequenceClassification" in (config.architectures or [""])[0]
    rows = {SHOWN[key]: value for key, value in {**report, **results}.items() if key in SHOWN}
    accuracy = {
        f"accuracy of logistic regression on {name}": report["accuracy"][key]
        for key, name in (PROBES | BASELINES).items()
        if key in report.get("accuracy", {})
    }
    own = {key: value for key, value in (rows | accuracy).items() if not key.endswith(tuple(BASELINES.values()))}
    rows |= accuracy
    title = repo_id.rpartition("/")[2]
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification" if classes else "feature-extraction",
        tags=["sparse", "sparse-encoder", "sentence-transformers", "sentence-embeddings", "vae", config.model_type],
        datasets=[dataset] if dataset else None,
        base_model=settings.get("base_model"),
        license=LICENSES.get(str(dataset)),
        model_name=title if rows else None,
        eval_results=_eval_results(own, dataset or Path(name).name or "unknown", classes) or None,
    )
    words = config.encoder_type == "gru"
    limits = (
        f"Trained {'' if classes else 'without labels '}on the text named above: its {'vocabulary and ' * words}"
        "subjects are those of that text"
        if settings or dataset
        else f"Its {'vocabulary and ' * words}subjects are those of its training text"
    )
    limits += ", and words outside its vocabulary are unknown to it." if words else "."
    if "active_threshold" in config.to_dict():
        limits += " Dimensions have no names; which sentences switch one on is a matter of looking."
    return ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        title=title,
        repo_id=repo_id,
        summary=SUMMARIES[config.model_type] + (" On top, a classifier trained with labels." if classes else ""),
        example=EXAMPLES.get(name, EXAMPLE),
        heatmap=(folder / HEATMAP).is_file(),
        config=config,
        classes=[config.id2label[index] for index in sorted(config.id2label)] if classes else [],
        model_rows=_model_rows(config),
        settings={key: _shown(value) for key, value in settings.items()},
        report=[(key, f"{value:.4g}" if isinstance(value, float) else value) for key, value in rows.items()],
        evaluated=_evaluated(report, results),
        advice=report.get("advice"),
        dimensions=_dimensions(report),
        limits=limits,
        citation=CITATION,
    )


def _dimensions(report: dict[str, Any]) -> list[tuple[int, str, float, str]]:
    """Dimension, end, share of the sentences and words, of those that tell most: on for some, with words to name."""
    rows = [
        (found["dimension"], sign, found[end]["share"], ", ".join(found[end]["words"]))
        for found in report.get("dimensions", ())
        for end, sign in (("positive", "+"), ("negative", "-"))
        if end in found and found[end]["share"] < 0.4 and len(found[end]["words"]) >= 5
    ]
    return sorted(sorted(rows, key=lambda row: -row[2])[:SHOWN_DIMENSIONS])


def _eval_results(rows: dict[str, Any], dataset: str, classes: bool) -> list[EvalResult]:
    kind = "text-classification" if classes else "feature-extraction"
    fixed: dict[str, Any] = {"task_type": kind, "dataset_type": dataset, "dataset_name": dataset}
    return [
        EvalResult(
            metric_type="accuracy" if "accuracy" in name else name.lower().replace(" ", "_").replace(",", ""),
            metric_name=name,
            metric_value=round(float(value), 4),
            **fixed,
        )
        for name, value in rows.items()
    ]


def _model_rows(config: Any) -> list[tuple[str, Any]]:
    vectors = not config.decodes_words
    encoder = {"gru": f"GRU, {config.hidden_size}", "vector": f"none; vectors of {config.vector_size} numbers"}.get(
        config.encoder_type, getattr(config.encoder_config, "model_type", None)
    )
    rows = [("type", config.model_type), ("encoder", encoder), ("latent dimensions", config.latent_size)]
    rows += [("reconstructs", "the encoder's vector")] if vectors else [("vocabulary", config.vocab_size)]
    own = {item.name for item in fields(config)} - {item.name for item in fields(TextVAEConfig)}
    shared = {"z_kl_weight", "gamma_kl_weight", "penalty_weight", "word_dropout", "free_bits"}
    if vectors:
        shared |= {"similarity_weight", "similarity_temperature"}
    values = [(name, getattr(config, name)) for name in sorted(own | shared)]
    return rows + [(name, value) for name, value in values if value is not None]


def _shown(value: Any) -> Any:
    """A setting as the card says it: of a path on the machine that trained, the name alone."""
    if value == "docstrings":
        return "docstrings, of the Python packages installed beside hsvae_hf"
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _evaluated(report: dict[str, Any], results: dict[str, Any]) -> str:
    found = report.get("settings", {})
    if {"hsvae_hf", "split"} <= set(found) and "rows" in report:
        by = f"by `scripts/evaluate_model.py` of hsvae_hf {found['hsvae_hf']}"
        return f"On {report['rows']} rows, split `{found['split']}`, {by}."
    return "By the training script." if results else ""


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

    Everything is made ready and checked in a temporary folder first; neither the run nor the repository is touched by
    a push that fails. A report or a picture of an earlier push goes where this run has none.

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
    config = AutoConfig.from_pretrained(folder) if (folder / "config.json").is_file() else None
    architecture = (getattr(config, "architectures", None) or ["Model"])[0]
    auto: Any = AutoModelForPreTraining if architecture.endswith("ForPreTraining") else AutoModel
    auto = AutoModelForSequenceClassification if architecture.endswith("ForSequenceClassification") else auto
    model, tokenizer = load_for_inference(folder, auto)
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary)
        model.save_pretrained(staged)
        if tokenizer is not None:
            tokenizer.save_pretrained(staged)
        for name in OF_THE_RUN:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, staged / name)
        generated = model_card(staged, repo_id, dataset_id)
        message, stale = f"Push {folder.resolve().name}", list(OF_THE_RUN)
        with _one_line(repo_id):
            _checked_card(card or generated, api.endpoint).save(staged / "README.md")
            _check_repository(api, repo_id, model.config.model_type, overwrite)
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=staged, commit_message=message, delete_patterns=stale
            )
        return str(commit)


@contextmanager
def _one_line(repo_id: str) -> Iterator[None]:
    """Say of whatever the Hub or the network raises what to do."""
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
    """The card, or that of a file, once its metadata has passed the Hub's own check."""
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
    """What `ModelCard.validate` does; before huggingface_hub 2.2 it asks huggingface.co, whatever the endpoint is."""
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
    found = json.loads(Path(path).read_text(encoding="utf-8")).get("model_type")
    if found != model_type and not overwrite:
        raise ValueError(
            f"`repo_id` must not hold a model of another type, got {repo_id!r} with {found!r}, not {model_type!r}; "
            "choose another name, or set `overwrite`."
        )


def push_metric(name: str, repo_id: str, token: str | None = None) -> str:
    """Push a metric of this package as a Space that `evaluate.load(repo_id)` reads.

    Args:
        name: `average_hoyer` or `active_dims`.
        repo_id: `user/name`.
        token: as in `push_to_hub`.

    Returns:
        The URL of the commit.

    Raises:
        ValueError: if there is no such metric, or the Hub refuses or cannot be reached.
    """
    folder, api = Path(metric_path(name)), HfApi(token=token)
    target = f"{repo_id.rpartition('/')[2]}.py"  # evaluate looks for a file named like the repository
    with tempfile.TemporaryDirectory() as temporary, _one_line(repo_id):
        api.create_repo(repo_id, repo_type="space", space_sdk="static", exist_ok=True)
        shutil.copyfile(folder / f"{name}.py", Path(temporary) / target)
        shutil.copyfile(folder / "README.md", Path(temporary) / "README.md")
        return str(api.upload_folder(repo_id=repo_id, repo_type="space", folder_path=temporary))
