"""The word-level tokenizer: words of every script, the paper's preprocessing, special tokens, truncation."""

# ruff: noqa: RUF001 - letters that look like others are the point
import random
import re
import string

import pytest
from datasets import load_dataset
from transformers import AutoTokenizer

from hsvae_hf.tokenization import train_tokenizer, unknown_share, warn_unknown

CORPUS = ["the cat sat on the mat .", "a dog 's bone cost 2.50 dollars", "do n't panic , mr. fox !"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CORPUS, max_length=8)


def words(tokenizer, text):
    return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
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
def test_the_ascii_rule_is_the_papers(raw, expected):
    assert words(train_tokenizer(CORPUS, max_length=8, ascii_only=True), raw) == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("The Cat's https://a.b/c?d u.s. and/or 2.50 -- ok...", "the cat 's u.s. and/or 2.50 -- ok ..."),
        ("Привет, МИР! Ёж и й", "привет , мир ! ёж и й"),
        ("L\u2019Été déjà-vu, cafe\u0301", "l 'été déjà - vu , café"),  # NFC: accents stay, in one form
        ('\u201cthe\u201d \u00abcat\u00bb \u201esat\u201c \u300con\u300d "the" \u2018mat', "the cat sat on the 'mat"),
        ("İstanbul IĞDIR ısı", "istanbul iğdir ısı"),  # no language is known: I becomes i
        ("北京大学 カタカナー を 々", "北 京 大 学 カ タ カ ナ ー を 々"),
        ("that ที่นี่ ไทย", "that ที่ นี่ ไ ท ย"),
        ("हिन्दी में", "हिन्दी में"),  # marks belong to their letters
        ("می\u200cخواهم עִבְרִית", "می\u200cخواهم עִבְרִית"),
        ("한국어 문장", "한국어 문장"),
        ("👩\u200d👩\u200d👧🇩🇪 👍🏽 ❤\ufe0f❤", "👩\u200d👩\u200d👧 🇩🇪 👍🏽 ❤ ❤"),  # one emoji, one word
        ("co\u00adoperate\u200bnow \ufeffthe", "cooperate now the"),  # what is not seen
        ("见https://a.b/c?d这里 www.a.b、好", "见 这 里 、 好"),
        ("x² ½ ١٢٫٥ — … €5", "x² ½ ١٢ ٫ ٥ — … € 5"),
        ("naïve/Ωμέγα o'clock п'ять", "naïve/ωμέγα o 'clock п 'ять"),
    ],
)
def test_words_of_every_script_are_words(raw, expected):
    tokenizer = train_tokenizer([raw])
    assert words(tokenizer, raw) == [*expected.split(), "_EOS"]
    assert tokenizer.decode(tokenizer(raw)["input_ids"], skip_special_tokens=True) == expected


OLD_WORDS = (  # the rule for ASCII, in the standard library's words
    r"\.{2,}|-{2,}|(?<![a-z0-9])(?:[a-z]\.){2,}[a-z]?|(?<![a-z0-9])(?:mrs?|ms|dr|vs)\.|'[a-z]+|\d+(?:[.,:/]\d+)+"
    r"|[a-z0-9]+(?:/[a-z0-9]+)*|[^\sa-z0-9]"
)


def test_of_ascii_text_both_rules_make_the_same_words():
    draw = random.Random(0)
    letters = string.printable + "''\"..--//  aAzZ019''mr."
    texts = ["".join(draw.choices(letters, k=40)) for _ in range(2000)]
    one, other = (train_tokenizer(texts, 10**6, ascii_only=ascii_only) for ascii_only in (True, False))
    for text in texts:
        clean = re.sub(r"(?i)(?:https?://|www\.)\S+", " ", text, flags=re.ASCII)
        clean = re.sub(r"[\"`]|''", " ", clean).lower()
        expected = [*re.findall(OLD_WORDS, clean, re.ASCII), "_EOS"]
        assert words(one, text) == words(other, text) == expected


def test_saved_tokenizer_loads_without_trust_and_gives_the_same_ids(tokenizer, tmp_path):
    assert tokenizer.convert_tokens_to_ids(["_PAD", "_EOS", "_UNK"]) == [0, 1, 2]  # as the configuration expects
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 1, 1)
    assert tokenizer.model_input_names == ["input_ids", "attention_mask"]
    ids = tokenizer("the " * 100_000, truncation=True)["input_ids"]
    assert (len(ids), ids[-1]) == (8, tokenizer.eos_token_id)
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
        (iter(["...", None]), {}, "`texts` must be strings, got NoneType 'None' at index 1"),
        (["Привет"], {"ascii_only": True}, "`texts` must hold at least one word, got none; leave out `ascii_only`"),
        ("one sentence", {}, "`texts` must be several strings, got the single string 'one sentence'; pass a list"),
        ({"text": CORPUS}, {}, "`texts` must be one column of strings, got a dict with text; pass a column"),
        ([{"text": "one"}], {}, "`texts` must be strings, got dict .* at index 0; .*pass the column"),
        (CORPUS, {"vocab_size": 3}, "`vocab_size` must be at least 4, got 3"),
        (CORPUS, {"max_length": 1}, "`max_length` must be at least 2, got 1"),
    ],
)
def test_bad_input_is_named(texts, options, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(texts, **options)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("the cat sat", 0),
        ("the zebra sat", 1 / 3),
        ("https://zebra.org cat's -", 0),
        ("привет cat", 1 / 2),
        ("!!! ...", 0),
    ],
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_the_share_of_unknown_words_counts_those_that_vanish(text, share, ascii_only):
    tokenizer = train_tokenizer(["the cat sat on a mat . ' !", "'s"], ascii_only=ascii_only)
    assert unknown_share(tokenizer, [text]) == pytest.approx(share)


def test_a_large_share_of_unknown_words_is_told(caplog):
    tokenizer = train_tokenizer(CORPUS)
    warn_unknown(tokenizer, iter(CORPUS))
    assert not caplog.records
    warn_unknown(tokenizer, ["the cat", "привет мир"])
    assert "50% of the words of the corpus are unknown to the tokenizer" in caplog.text
    for options in ({"ascii_only": True}, {"vocab_size": 5}):
        caplog.clear()
        train_tokenizer(["привет мир in 2024", "ещё слова of 2024"], **options)
        assert re.search(r"\d\d% of the words of the corpus are unknown", caplog.text)


@pytest.mark.data
@pytest.mark.parametrize("ascii_only", [True, False])
def test_the_papers_tokenised_text_passes_unchanged(data_dir, ascii_only):
    texts = load_dataset(str(data_dir / "yahoo"), split="train")["text"][:]
    tokenizer = train_tokenizer(texts, ascii_only=ascii_only)
    vocabulary = tokenizer.get_vocab()
    same = [
        words(tokenizer, text)[:-1] == [word if word in vocabulary else "_UNK" for word in text.split()]
        for text in texts[:3000]
    ]
    assert sum(same) / len(same) > 0.98
