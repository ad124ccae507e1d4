"""Token ids and batches: nothing is set on a shared tokenizer, long texts are cheap, batches are of similar length."""

import copy
import time

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.tokenization_python import PythonBackend

from hsvae_hf.batching import BATCH_TOKENS, PADDING, SMALL_BATCH, length_batches
from hsvae_hf.models.vocabulary import tokenizer_checksum
from hsvae_hf.tokenization import train_tokenizer
from hsvae_hf.tokens import private_copy, tokenize

TEXTS = ["the cat sees a dog, twice", "", "naïve café 🙂 北京 <new> [MASK]", "a " * 30, "unbelievable"]
SPECIAL = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "pad", "cls", "sep", "mask")}


def trained(model, trainer, pre_tokenizer=None):
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(TEXTS, trainer)
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.enable_truncation(3)  # as some are saved
    tokenizer.enable_padding(length=9)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=8, **SPECIAL)
    made.add_tokens([AddedToken("<new>", lstrip=True), "unbeliev"])
    return made


def make(kind):
    special = list(SPECIAL.values())
    if kind == "words":
        return train_tokenizer(TEXTS, max_length=8)
    if kind == "wordpiece":
        return trained(models.WordPiece(unk_token="[UNK]"), trainers.WordPieceTrainer(special_tokens=special))
    if kind == "unigram":
        trainer = trainers.UnigramTrainer(special_tokens=special, unk_token="[UNK]", vocab_size=60)
        return trained(models.Unigram(), trainer, pre_tokenizers.Metaspace())
    return trained(models.BPE(), trainers.BpeTrainer(special_tokens=special), pre_tokenizers.ByteLevel())


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("limit", [None, 3, 8])
@pytest.mark.parametrize("kind", ["words", "wordpiece", "unigram", "bytes"])
def test_ids_are_those_of_the_tokenizers_own_call(kind, limit, side):
    tokenizer = make(kind)
    tokenizer.truncation_side = side
    before = tokenizer.backend_tokenizer.to_str()
    ids = tokenize(tokenizer, TEXTS, limit)
    assert tokenizer.backend_tokenizer.to_str() == before
    expected = copy.deepcopy(tokenizer)(TEXTS, truncation=limit is not None, max_length=limit)["input_ids"]
    assert [row.tolist() for row in ids] == expected
    assert private_copy(tokenizer).get_vocab() == tokenizer.get_vocab()


class Letters(PythonBackend):
    """A slow tokenizer: an ASCII letter is a word."""

    vocab_size = 128

    def get_vocab(self):
        return {chr(index): index for index in range(128)}

    def _tokenize(self, text):
        return list(text)

    def _convert_token_to_id(self, token):
        return ord(token)

    def _convert_id_to_token(self, index):
        return chr(index)


def test_a_slow_tokenizer_works_too():
    tokenizer = Letters(pad_token="\0", unk_token="\1", model_max_length=5)
    assert not tokenizer.is_fast
    found = [row.tolist() for row in tokenize(tokenizer, ["abc", "abcdefgh"], 5)]
    assert found == [[97, 98, 99], [97, 98, 99, 100, 101]]


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_very_long_text_costs_what_is_kept(side):
    tokenizer = make("words")
    tokenizer.truncation_side = side
    text = "the cat sees a dog " * 20_000
    started = time.process_time()
    (whole,) = private_copy(tokenizer)([text], truncation=True, max_length=8)["input_ids"]
    cost = time.process_time() - started
    started = time.process_time()
    (ids,) = tokenize(tokenizer, [text], 8)
    assert ids.tolist() == whole
    assert time.process_time() - started < cost / 5
    spaces = " " * 50_000 + "the cat"
    assert tokenize(tokenizer, [spaces], 8)[0].tolist() == tokenizer(["the cat"])["input_ids"][0]


def test_batches_are_of_similar_length_and_of_so_many_tokens():
    lengths = np.random.default_rng(0).integers(1, 300, size=2000)
    batches = list(length_batches(lengths, None))
    np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.arange(2000))
    for rows in batches:
        longest, tokens = lengths[rows].max(), lengths[rows].max() * len(rows)
        assert tokens <= BATCH_TOKENS
        last = tokens - longest  # without its last row, each batch is one that is padded little
        assert last <= SMALL_BATCH or last - lengths[rows[:-1]].sum() <= PADDING * last
        assert lengths[rows[0]] == longest
    assert len(batches) < 2 * lengths.sum() / BATCH_TOKENS
    assert [len(rows) for rows in length_batches([9000, 5000, 1], None)] == [1, 1, 1]
    assert [rows.tolist() for rows in length_batches([2, 9, 5], 2)] == [[1, 2], [0]]
    assert list(length_batches([], None)) == []


def test_a_checksum_is_of_words_and_ids_and_words_may_be_added():
    tokenizer = make("wordpiece")
    size, before = len(tokenizer), tokenizer_checksum(tokenizer)
    assert before.startswith(f"{size}-")
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.add_tokens(["another"])
    assert tokenizer_checksum(tokenizer, size) == before
    assert tokenizer_checksum(tokenizer) != before
    letters = {chr(index): index for index in range(128)}
    fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(letters, unk_token="\1")))
    assert tokenizer_checksum(fast) == tokenizer_checksum(Letters(pad_token="\0", unk_token="\1"))
    letters["a"], letters["b"] = letters["b"], letters["a"]
    swapped = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(letters, unk_token="\1")))
    assert tokenizer_checksum(fast) != tokenizer_checksum(swapped)
