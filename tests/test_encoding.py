"""Codes of sentences: those of the model, in order, whatever the batch, the threads and the format."""

import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse
from transformers import AutoModelForPreTraining, BertConfig
from vector_models import small

from hsvae_hf import (
    HSVAEConfig,
    HSVAEForPreTraining,
    HSVAEForSequenceClassification,
    HSVAEModel,
    batching,
    encoding,
)
from hsvae_hf.encoding import encode, encode_stream, encode_vectors
from hsvae_hf.files import save_codes
from hsvae_hf.loading import load_for_inference
from hsvae_hf.tokenization import train_tokenizer

SENTENCES = [
    "a small village in iran",
    "",
    "the restaurant was great , the waiter was not",
    "village",
    "great great great great great great great great great great great great",
    "naïve café 🙂 Ωμέγα 北京",
    "the village in iran was small",
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(SENTENCES, vocab_size=100, max_length=20)


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny(HSVAEModel, tokenizer)


def tiny(model_class, tokenizer, **options):
    torch.manual_seed(0)
    config = HSVAEConfig(vocab_size=len(tokenizer), embedding_size=8, hidden_size=16, latent_size=24, **options)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.base_model.latent_head.parameters():
            parameter.mul_(4)  # gates that differ between sentences
    return model


@pytest.fixture
def checkpoint(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def dense(model, tokenizer, sentences, **options):
    """The naive reference: one padded batch through the tokenizer's own call."""
    inputs = tokenizer(sentences, return_tensors="pt", padding=True, truncation=True, **options)
    with torch.no_grad():
        return model(**inputs).sparse_embedding.numpy()


def test_codes_are_the_models_in_the_order_given(model, tokenizer):
    codes = encode(model, tokenizer, SENTENCES)
    assert isinstance(codes, sparse.csr_matrix)
    assert codes.dtype == np.float32
    expected = dense(model, tokenizer, SENTENCES)
    np.testing.assert_allclose(codes.toarray(), expected, atol=1e-6)
    assert codes.nnz == np.count_nonzero(expected)
    assert 0 < codes.nnz < expected.size
    assert codes.has_canonical_format
    assert (codes.data != 0).all()
    left = dense(model, tokenizer, SENTENCES, padding_side="left")
    np.testing.assert_allclose(left, expected, atol=1e-6)
    assert encode(model, tokenizer, iter([])).shape == (0, 24)


@pytest.mark.parametrize("batch_size", [None, 1, 3, 1000])
def test_a_code_does_not_depend_on_its_batch(model, tokenizer, batch_size, monkeypatch):
    monkeypatch.setattr(encoding, "_WINDOW", 4)
    monkeypatch.setattr(batching, "_TOGETHER", 3)
    sentences = SENTENCES * 3
    expected = sparse.vstack([encode(model, tokenizer, [sentence]) for sentence in sentences])
    codes = encode(model, tokenizer, sentences, batch_size=batch_size)
    np.testing.assert_allclose(codes.toarray(), expected.toarray(), atol=1e-6)


def test_codes_of_length_one_are_the_codes_divided_by_their_lengths(model, tokenizer, monkeypatch):
    plain = encode(model, tokenizer, SENTENCES).toarray()
    unit = encode(model, tokenizer, SENTENCES, normalize=True)
    lengths = np.linalg.norm(plain, axis=1, keepdims=True)
    np.testing.assert_allclose(unit.toarray() * lengths, plain, rtol=1e-6)
    assert unit.dtype == np.float32
    monkeypatch.setattr(model.config, "active_threshold", 1e-9)  # no dimension is on
    assert encode(model, tokenizer, SENTENCES, normalize=True).nnz == 0
    coder, vectors = small(), np.random.default_rng(0).normal(size=(9, 5))
    found = encode_vectors(coder, vectors, normalize=True)
    np.testing.assert_allclose(found.power(2).sum(axis=1)[found.getnnz(axis=1) > 0], 1, rtol=1e-5)
    expected = encode_vectors(coder, vectors)
    np.testing.assert_allclose(found.multiply(np.sqrt(expected.power(2).sum(axis=1))).toarray(), expected.toarray())
    for refused in (
        lambda: encode(model, tokenizer, SENTENCES, normalize="l2"),
        lambda: encode_vectors(coder, vectors, normalize=1),
    ):
        with pytest.raises(ValueError, match="`normalize` must be True or False"):
            refused()


def test_blocks_are_the_rows_and_read_no_further(model, tokenizer, monkeypatch):
    monkeypatch.setattr(encoding, "_WINDOW", 3)
    read = []
    sentences = (read.append(sentence) or sentence for sentence in SENTENCES)
    blocks = encode_stream(model, tokenizer, sentences, batch_size=2)
    first = next(blocks)
    assert read == SENTENCES[:3]
    shapes = [first.shape, *(block.shape for block in blocks)]
    assert shapes == [(3, 24), (3, 24), (1, 24)]
    assert not model.training


def test_threads_get_what_they_would_alone(tokenizer):
    torch.manual_seed(0)
    transformer = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    words = {"encoder_type": "transformer", "encoder_config": transformer, "tie_word_embeddings": False}
    model = HSVAEForPreTraining(HSVAEConfig(vocab_size=len(tokenizer), latent_size=24, **words)).train()
    modes = [module.training for module in model.modules()]
    sentences = [" ".join([*SENTENCES[2:4], SENTENCES[4]][: 1 + row % 3]) for row in range(30)]

    def call(number: int) -> sparse.csr_matrix:
        options = {"max_length": (3, 7, 12, 20)[number % 4], "max_active_dims": (None, 5)[number % 2]}
        return encode(model, tokenizer, sentences[number % 8 :], **options)

    expected = [call(number) for number in range(32)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(call, range(32)))
    for codes, alone in zip(found, expected, strict=True):
        assert (codes != alone).nnz == 0  # bit for bit; dropout would show
    assert len({codes.nnz for codes in expected}) > 4
    assert [module.training for module in model.modules()] == modes


def test_long_sentences_are_truncated(model, tokenizer):
    long = ("village small " * 50_000).strip()
    codes = encode(model, tokenizer, [long, "village", " ".join(long.split()[:200])])
    np.testing.assert_allclose(codes[0].toarray(), codes[2].toarray(), atol=1e-6)
    shorter = encode(model, tokenizer, [long], max_length=3)
    np.testing.assert_allclose(shorter.toarray(), dense(model, tokenizer, [long], max_length=3), atol=1e-6)
    assert abs(shorter - codes[0]).max() > 1e-3


def test_models_with_a_head_and_of_half_precision_encode_alike(checkpoint, model, tokenizer):
    expected = encode(model, tokenizer, SENTENCES)
    loaded, loaded_tokenizer = load_for_inference(checkpoint)
    assert not loaded.training
    assert (encode(loaded, loaded_tokenizer, SENTENCES) != expected).nnz == 0
    for model_class in (HSVAEForPreTraining, HSVAEForSequenceClassification):
        other = tiny(model_class, tokenizer)
        assert (encode(other, tokenizer, SENTENCES) != encode(other.model, tokenizer, SENTENCES)).nnz == 0
    half = HSVAEModel.from_pretrained(checkpoint, dtype=torch.bfloat16)
    assert half.encoder.gru.weight_hh_l0.dtype == torch.bfloat16
    codes = encode(half, tokenizer, SENTENCES)
    assert codes.dtype == np.float32
    np.testing.assert_allclose(codes.toarray(), expected.toarray(), atol=0.1)


def test_modes_are_restored_also_after_an_error(tokenizer):
    model = tiny(HSVAEForPreTraining, tokenizer).train()
    model.model.encoder.eval()
    before = [module.training for module in model.modules()]
    encode(model, tokenizer, SENTENCES)
    assert [module.training for module in model.modules()] == before
    broken = train_tokenizer(["words that the model has no embedding for"] * 3, vocab_size=100)
    broken.add_tokens([f"word{number}" for number in range(100)])
    with pytest.raises(ValueError, match="`input_ids`"):
        encode(model, broken, ["word99"])
    assert [module.training for module in model.modules()] == before
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("suffix", ["npz", "parquet", "jsonl", "csv"])
def test_a_failed_save_leaves_nothing(model, tokenizer, tmp_path, suffix):
    blocks = encode_stream(model, tokenizer, iter(["fine", "half \ud83d"]))
    with pytest.raises(ValueError, match=r"`path`.*csv" if suffix == "csv" else "surrogate pair at index 1"):
        save_codes(tmp_path / f"codes.{suffix}", blocks)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_codes_are_written_block_by_block(tmp_path, suffix):
    written = []

    def blocks():
        for number in range(5):
            assert sum(values() is not None for values in written) <= 1
            block = sparse.csr_matrix(np.full((1, 3), number + 1, dtype=np.float32))
            written.append(weakref.ref(block.data))
            yield block
            del block

    assert save_codes(tmp_path / f"codes.{suffix}", blocks()) == len(written) == 5


def truncate(checkpoint: Path) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def drop(name: str):
    return lambda checkpoint: [path.unlink() for path in checkpoint.glob(name)]


def replace(old: str, new: str):
    def change(checkpoint: Path) -> None:
        config = checkpoint / "config.json"
        assert old in config.read_text()
        config.write_text(config.read_text().replace(old, new))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "weights are damaged or incomplete"),
        (drop("model.safetensors"), "no file named model.safetensors"),
        (drop("token*"), "no tokenizer files"),
        (drop("config.json"), "config.json"),
        (replace("{", "{{"), "not a valid JSON file"),
        (replace('"hsvae"', '"bert"'), "type 'bert', which is no text VAE"),
        (replace('"hsvae"', '"unheard-of"'), "type is unknown"),
        (replace('"latent_size": 24', '"latent_size": 25'), "shapes of its weights"),
        (replace('"latent_size": 24', '"latent_size": -1'), "`latent_size` must be at least 1"),
    ],
)
def test_damaged_checkpoints_are_refused_in_one_line(checkpoint, damage, message, capfd):
    damage(checkpoint)
    with pytest.raises(ValueError, match=message) as caught:
        load_for_inference(checkpoint)
    assert str(checkpoint) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "LOAD REPORT" not in capfd.readouterr().err


def test_weights_that_are_not_there_and_codes_that_are_not_finite_are_refused(checkpoint, tokenizer):
    with pytest.raises(ValueError, match=r"no weights for \d+ parameters such as 'decoder"):
        load_for_inference(checkpoint, AutoModelForPreTraining)
    model = tiny(HSVAEModel, tokenizer)
    torch.nn.init.constant_(model.latent_head.slab.bias, float("nan"))
    with pytest.raises(ValueError, match="`model` must give finite codes"):
        encode(model, tokenizer, ["the cat"])


def test_the_readme_says_how_long_codes_without_a_known_word_are():
    committed = load_for_inference(Path(__file__).parent.parent / "model_cards/hsvae-dbpedia-16")
    texts = ["", "qwxyz", "qwxyz zzyx", "qwxyz zzyx vvvk", "привет мир", "zzyx qwxyz"]
    codes = encode(*committed, texts)
    assert codes.getnnz(axis=1).tolist() == [93, 62, 42, 35, 93, 42]
    assert (codes[2] != codes[5]).nnz == 0
    assert "93 non-zeros" in (Path(__file__).parent.parent / "README.md").read_text()
