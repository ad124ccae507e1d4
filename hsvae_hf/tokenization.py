"""A word-level tokenizer built from a corpus; it carries the paper's preprocessing, so it takes raw text."""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

PAD, EOS, UNK = "_PAD", "_EOS", "_UNK"  # ids 0, 1, 2; `_UNK` as in the already tokenised data sets
WORDS = (  # what counts as one word, first match first; chosen so that the paper's tokenised text passes unchanged
    r"\.{2,}|-{2,}",  # ellipses and dashes
    r"(?<![a-z0-9])(?:[a-z]\.){2,}[a-z]?|(?<![a-z0-9])(?:mrs?|ms|dr|vs)\.",  # abbreviations: u.s., mr.
    r"'[a-z]+",  # endings: 's, 't, 're
    r"\d+(?:[.,:/]\d+)+",  # numbers: 2.0, 1,000, 9/11
    r"[a-z0-9]+(?:/[a-z0-9]+)*",  # words: village, and/or
    r"[^\sa-z0-9]",  # punctuation
)


def train_tokenizer(
    texts: Iterable[str], vocab_size: int = 20_000, max_length: int = 512, min_frequency: int = 1
) -> PreTrainedTokenizerFast:
    """Build the tokenizer of a corpus: its most frequent words after the paper's preprocessing (section 4.1).

    Hyperlinks and quotation marks go, accents are dropped from letters, what is not ASCII then goes, letters become
    lower case, punctuation stands alone except in `'s`-like endings. Every sentence ends in one end-of-sentence token,
    which is also the decoder's start token. Text that is already tokenised that way passes unchanged.

    Args:
        texts: sentences of the training corpus.
        vocab_size: number of word types, the three special tokens included, at least 4.
        max_length: tokens per sentence, end of sentence included, kept under `truncation=True`.
        min_frequency: words rarer than this stay unknown.

    Raises:
        ValueError: if `vocab_size` is below 4, `max_length` below 2, a text is no string, or no text has a word.
    """
    if vocab_size < 4:
        raise ValueError(f"`vocab_size` must be at least 4, got {vocab_size}; three ids are special tokens.")
    if max_length < 2:
        raise ValueError(f"`max_length` must be at least 2, got {max_length}; the end of sentence counts.")
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNK))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(r"(?i)(?:https?://|www\.)\S+"), " "),
            normalizers.NFKD(),
            normalizers.Replace(Regex(r"[\u2018\u2019]"), "'"),
            normalizers.Replace(Regex(r"[^\x00-\x7F]"), ""),
            normalizers.Replace(Regex(r'["`]|\'\''), " "),
            normalizers.Lowercase(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(WORDS)), behavior="removed", invert=True)
    trainer = trainers.WordLevelTrainer(
        vocab_size=vocab_size, min_frequency=min_frequency, special_tokens=[PAD, EOS, UNK], show_progress=False
    )
    tokenizer.train_from_iterator(_checked(texts), trainer)
    if tokenizer.get_vocab_size() == 3:
        raise ValueError("`texts` must hold at least one word, got none; check the text column.")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", pair=f"$A {EOS} $B {EOS}", special_tokens=[(EOS, 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        bos_token=EOS,
        unk_token=UNK,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def _checked(texts: Iterable[str]) -> Iterable[str]:
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"`texts` must hold strings, got {text!r} in row {row}; drop or replace such rows.")
        yield text.replace(UNK, " ")
