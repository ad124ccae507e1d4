"""What a reader of the Hub does with a pushed model; test_hub_circle.py runs it with this package and without.

`python circle.py MODEL DATASET CLASSIFIER REPO RESULT` embeds with MODEL, trains a classifier and pushes it to REPO;
`python circle.py REPO DATASET RESULT` classifies with the one in REPO.
"""

import importlib.util
import sys
from pathlib import Path

import torch
from datasets import load_dataset
from sentence_transformers import SparseEncoder
from transformers import (
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    pipeline,
    set_seed,
)

DRAWS, EPOCHS, SHOWN = 5, 6, 16


def embed(model_id, sentences, **trust):
    """Codes by three ways, `(sentences, latent_size)` each, and the loss under a fixed seed."""
    tokenizer = AutoTokenizer.from_pretrained(model_id, **trust)
    inputs = tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")
    model = AutoModelForPreTraining.from_pretrained(model_id, **trust).eval()
    set_seed(1)
    with torch.inference_mode():
        codes = AutoModel.from_pretrained(model_id, **trust).eval()(**inputs).sparse_embedding
        loss = model(**inputs).loss
    encoder = SparseEncoder(model_id, device="cpu", **trust)
    sparse = encoder.encode(sentences, batch_size=len(sentences))
    features = pipeline("feature-extraction", model_id, device="cpu", **trust)
    return {
        "loss of the sampled ELBO": loss.clone(),
        "codes, AutoModel": codes.clone(),
        "codes, SparseEncoder": sparse.to_dense(),
        "similarity, SparseEncoder": encoder.similarity(sparse, sparse),
        "codes, pipeline": torch.tensor([features(text, truncation=True)[0] for text in sentences[:SHOWN]]),
        "active dimensions": torch.tensor(encoder.sparsity(sparse)["active_dims"]),
    }


def fine_tune(model_id, splits, folder, repo_id=None, **trust):
    """Train a classifier on the frozen encoder with the stock Trainer, save it, and push it to `repo_id`."""
    set_seed(2)
    tokenizer = AutoTokenizer.from_pretrained(model_id, **trust)
    names = splits["train"].features["label"].names
    ids = {name: index for index, name in enumerate(names)}
    labels = {"num_labels": len(names), "label2id": ids, "id2label": dict(enumerate(names))}
    model = AutoModelForSequenceClassification.from_pretrained(model_id, num_samples=DRAWS, **labels, **trust)
    rows = splits.map(lambda batch: tokenizer(batch["text"], truncation=True), batched=True, remove_columns="text")
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=256,
        learning_rate=5e-3,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        hub_model_id=repo_id,
    )
    trainer = Trainer(
        model,
        arguments,
        DataCollatorWithPadding(tokenizer),
        rows["train"],
        rows["test"],
        processing_class=tokenizer,
        compute_metrics=lambda rows: {"accuracy": (rows.predictions.argmax(-1) == rows.label_ids).mean()},
    )
    trainer.remove_callback(PrinterCallback)
    training_loss = trainer.train().training_loss
    measured = trainer.evaluate()
    trainer.save_model()
    if repo_id is not None:
        trainer.push_to_hub()
    return {
        "training loss": torch.tensor(training_loss),
        "test loss": torch.tensor(measured["eval_loss"]),
        "test accuracy": torch.tensor(measured["eval_accuracy"]),
    }


def classify(model_id, sentences, **trust):
    """Probabilities of the classes by the pipeline, `(sentences, num_labels)`: of draws and of the code itself."""
    classifier = pipeline("text-classification", model_id, device="cpu", **trust)
    columns = sorted(classifier.model.config.id2label.items())
    results, short = {}, {"truncation": True}
    for samples in (DRAWS, 0):
        classifier.model.config.num_samples = samples
        set_seed(3)
        rows = [{row["label"]: row["score"] for row in classifier(text, top_k=None, **short)} for text in sentences]
        results[f"probabilities, K = {samples}"] = torch.tensor([[row[name] for _, name in columns] for row in rows])
    return results


def marginal(classifier, tokenizer, sentences, samples):
    """What `classify` should give, `(sentences, num_labels)`: softmax(classifier(z)), its mean over draws of z."""
    set_seed(3)
    rows = []
    with torch.inference_mode():
        for sentence in sentences:
            posterior = classifier.model(**tokenizer([sentence], truncation=True, return_tensors="pt"))
            z = posterior.sparse_embedding
            if samples:
                repeated = {name: value.repeat_interleave(samples, 0) for name, value in posterior.items()}
                z = classifier.model.sample(type(posterior)(**repeated))["z"]
            rows.append(classifier.classifier(z).softmax(-1).mean(0))
    return torch.stack(rows)


if __name__ == "__main__":
    assert importlib.util.find_spec("hsvae_hf") is None, "hsvae_hf can be imported: this environment is not clean"
    model_id, dataset, *rest, result = sys.argv[1:]
    splits = load_dataset(dataset)
    sentences = splits["test"]["text"][:]
    results = {"environment": sys.prefix}
    if rest:
        results |= embed(model_id, sentences, trust_remote_code=True)
        results |= fine_tune(model_id, splits, rest[0], rest[1], trust_remote_code=True)
    else:
        results |= classify(model_id, sentences[:SHOWN], trust_remote_code=True)
    assert "hsvae_hf" not in sys.modules
    torch.save(results, Path(result))
