"""A word-level tokenizer of a corpus. It holds its preprocessing, so it takes raw text."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hsvae_hf.input_checks import check_sentences, check_strings

logger = logging.getLogger(__name__)

PAD, EOS, UNK = "_PAD", "_EOS", "_UNK"  # ids 0, 1, 2; `_UNK` as in the already tokenised data sets
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\u30fc\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"  # no spaces between words
LETTER = rf"[[\p{{L}}\p{{M}}\u200c\u200d]&&[^{UNSPACED}]]"  # the last two join letters in some scripts
ALPHANUMERIC = rf"[[\p{{L}}\p{{M}}\p{{N}}\u200c\u200d]&&[^{UNSPACED}]]"
WORDS = (  # what counts as one word, first match first; chosen so that the paper's tokenised text passes unchanged
    r"\.{2,}|-{2,}",  # ellipses and dashes
    r"(?<![\p{L}\p{N}])(?:[a-z]\.){2,}[a-z]?|(?<![\p{L}\p{N}])(?:mrs?|ms|dr|vs)\.",  # abbreviations: u.s., mr.
    rf"'{LETTER}+",  # endings: 's, 't, 're
    r"\p{N}+(?:[.,:/]\p{N}+)+",  # numbers: 2.0, 1,000, 9/11
    rf"[{UNSPACED}]\p{{M}}*",  # one character
    rf"{ALPHANUMERIC}+(?:/{ALPHANUMERIC}+)*",  # words: village, and/or
    r"(?!\s)\X",  # punctuation; an emoji with what belongs to it
)
_LINKS = normalizers.Replace(Regex(rf"(?i)(?:https?://|www\.)[^\s{UNSPACED}\u3000-\u303f\uff00-\uffef]+"), " ")
_APOSTROPHES = normalizers.Replace(Regex(r"[\u2018\u2019]"), "'")
_QUOTES = normalizers.Replace(Regex(r'["`]|\'\''), " ")
_OTHER_QUOTES = normalizers.Replace(Regex(r"[\p{Pi}\p{Pf}\u201a\u201e\u300c-\u300f\u301d-\u301f\uff02]"), " ")
_UNSEEN_SPACES = normalizers.Replace("\u200b", " ")
_UNSEEN = normalizers.Replace(Regex(r"[\u00ad\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufe00-\ufe0f\ufeff]"), "")
_DOTTED_I = normalizers.Replace("i\u0307", "i")  # what Lowercase makes of the capital of Turkish
_NOT_ASCII = normalizers.Replace(Regex(r"[^\x00-\x7F]"), "")
_LOWER = normalizers.Lowercase()
ASCII = (_LINKS, normalizers.NFKD(), _APOSTROPHES, _NOT_ASCII, _QUOTES, _LOWER)  # the paper's
_CLEAN = (_LINKS, normalizers.NFC(), _APOSTROPHES, _QUOTES, _OTHER_QUOTES, _UNSEEN_SPACES, _UNSEEN)
UNICODE = (*_CLEAN, _LOWER, _DOTTED_I)
_SAMPLE = 1000  # texts that tell the share of unknown words
_LARGE_SHARE = 0.25  # of unknown words: English on another subject than the vocabulary's has less


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int = 20_000,
    max_length: int = 512,
    min_frequency: int = 1,
    ascii_only: bool = False,
) -> PreTrainedTokenizerFast:
    """Build the tokenizer of a corpus: its most frequent words.

    Hyperlinks and quotation marks go, letters become lower case, punctuation stands alone except in `'s`-like endings.
    Words are those of any script, accents included (Unicode's NFC); of a script without spaces between words (Chinese,
    Japanese, Thai, Lao, Khmer, Burmese) every character is a word. Every sentence ends in one end-of-sentence token,
    which is also the decoder's start token. Text that is already tokenised in the paper's way passes unchanged.

    Args:
        texts: sentences of the training corpus.
        vocab_size: number of word types, the three special tokens included, at least 4.
        max_length: tokens per sentence, end of sentence included, kept under `truncation=True`.
        min_frequency: words rarer than this stay unknown.
        ascii_only: the paper's rule (section 4.1): accents are dropped from letters, and all else that is not ASCII.

    Raises:
        ValueError: if `vocab_size` is below 4, `max_length` below 2, a text is no string, or no text has a word.

    >>> tokenizer = train_tokenizer(["The cat sees a dog.", "A dog sees the cat."])
    >>> tokenizer.decode(tokenizer("A cat barks.")["input_ids"])
    'a cat _UNK . _EOS'
    """
    if vocab_size < 4:
        raise ValueError(f"`vocab_size` must be at least 4, got {vocab_size}; three ids are special tokens.")
    if max_length < 2:
        raise ValueError(f"`max_length` must be at least 2, got {max_length}; the end of sentence counts.")
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNK))
    tokenizer.normalizer = normalizers.Sequence(list(ASCII if ascii_only else UNICODE))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(WORDS)), behavior="removed", invert=True)
    trainer = trainers.WordLevelTrainer(
        vocab_size=vocab_size, min_frequency=min_frequency, special_tokens=[PAD, EOS, UNK], show_progress=False
    )
    sample: list[str] = []
    tokenizer.train_from_iterator(_checked(texts, sample), trainer)
    if tokenizer.get_vocab_size() == 3:
        remedy = "leave out `ascii_only`, or check the text column" if ascii_only else "check the text column"
        raise ValueError(f"`texts` must hold at least one word, got none; {remedy}.")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", pair=f"$A {EOS} $B {EOS}", special_tokens=[(EOS, 1)]
    )
    result = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        bos_token=EOS,
        unk_token=UNK,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
    warn_unknown(result, sample)
    return result


def _checked(texts: Iterable[str], sample: list[str]) -> Iterator[str]:
    check_sentences(texts, "texts")
    for row, text in enumerate(texts):
        check_strings([text], "texts", row)
        if len(sample) < _SAMPLE:
            sample.append(text)
        yield text.replace(UNK, " ")


def unknown_share(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> float:
    """Share of the words of some texts that a tokenizer does not know, from 0 to 1.

    Words are what stands between spaces and holds a letter or a digit; of a word of several tokens the unknown part
    counts. Hyperlinks are no words.

    Args:
        tokenizer: any.
        texts: sentences; all are read.
    """
    counts = Counter(word for text in texts for word in text.split() if any(map(str.isalnum, word)))
    words = [word for word in counts if word != UNK and not word.lower().startswith(("http://", "https://", "www."))]
    if not words:
        return 0.0
    unknown = 0.0
    for word, ids in zip(words, tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"], strict=True):
        unknown += counts[word] * (ids.count(tokenizer.unk_token_id) / len(ids) if ids else 1.0)
    return unknown / sum(counts[word] for word in words)


def warn_unknown(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> None:
    """Warn if a tokenizer does not know more than a quarter of the words of the first 1,000 texts."""
    share = unknown_share(tokenizer, islice(texts, _SAMPLE))
    if share > _LARGE_SHARE:
        logger.warning(
            "%.0f%% of the words of the corpus are unknown to the tokenizer: codes and models know only the rest",
            100 * share,
        )
