"""The word-level tokenizer: the paper's preprocessing, special tokens, truncation."""

import pytest
from datasets import load_dataset
from transformers import AutoTokenizer

from hsvae_hf.tokenization import train_tokenizer

CORPUS = ["the cat sat on the mat .", "a dog 's bone cost 2.50 dollars", "do n't panic , mr. fox !"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CORPUS, max_length=8)


def words(tokenizer, text, **options):
    return tokenizer.convert_ids_to_tokens(tokenizer(text, **options)["input_ids"])


def test_special_tokens_have_the_ids_that_the_config_expects(tokenizer):
    assert tokenizer.convert_tokens_to_ids(["_PAD", "_EOS", "_UNK"]) == [0, 1, 2]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 1, 1)
    assert tokenizer.model_input_names == ["input_ids", "attention_mask"]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("The Cat", ["the", "cat", "_EOS"]),
        ('"the" `cat`', ["the", "cat", "_EOS"]),
        ("the cát", ["the", "cat", "_EOS"]),
        ("see https://a.b/c?d the cat", ["_UNK", "the", "cat", "_EOS"]),
        ("dog\u2019s bone.", ["dog", "'s", "bone", ".", "_EOS"]),
        ("2.50, mr. fox", ["2.50", ",", "mr.", "fox", "_EOS"]),
        ("the _UNK cat", ["the", "_UNK", "cat", "_EOS"]),
        ("日本 the", ["the", "_EOS"]),
        ("", ["_EOS"]),
    ],
)
def test_raw_text_is_preprocessed_as_in_the_paper(tokenizer, raw, expected):
    assert words(tokenizer, raw) == expected


def test_truncation_keeps_the_end_of_sentence(tokenizer):
    ids = tokenizer("the " * 100_000, truncation=True)["input_ids"]
    assert len(ids) == 8
    assert ids[-1] == tokenizer.eos_token_id


def test_saved_tokenizer_loads_without_trust_and_gives_the_same_ids(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = [*CORPUS, "Raw Text, \u201cquoted\u201d _UNK", ""]
    assert loaded(texts, truncation=True)["input_ids"] == tokenizer(texts, truncation=True)["input_ids"]
    assert loaded.model_max_length == 8
    assert loaded.decode(loaded("the cat")["input_ids"], skip_special_tokens=True) == "the cat"


def test_frequent_words_win_a_place_in_the_vocabulary():
    tokenizer = train_tokenizer(["b b b a a c"], vocab_size=5)
    assert set(tokenizer.get_vocab()) == {"_PAD", "_EOS", "_UNK", "b", "a"}


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "`texts` must hold at least one word"),
        (["...", None], {}, "`texts` must hold strings, got None in row 1"),
        (CORPUS, {"vocab_size": 3}, "`vocab_size` must be at least 4, got 3"),
        (CORPUS, {"max_length": 1}, "`max_length` must be at least 2, got 1"),
    ],
)
def test_bad_input_is_named(texts, options, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(texts, **options)


@pytest.mark.data
def test_the_papers_tokenised_text_passes_unchanged(data_dir):
    texts = load_dataset(str(data_dir / "yahoo"), split="train")["text"][:]
    tokenizer = train_tokenizer(texts)
    vocabulary = tokenizer.get_vocab()
    same = [
        words(tokenizer, text)[:-1] == [word if word in vocabulary else "_UNK" for word in text.split()]
        for text in texts[:3000]
    ]
    assert sum(same) / len(same) > 0.98
