"""Hybrid search: codes and words together, by reciprocal rank fusion."""

from collections.abc import Iterator, Sequence
from typing import Any

from hsvae_hf.extras import require
from hsvae_hf.index import Hit, Index
from hsvae_hf.input_checks import check_positive, check_sentences


def reciprocal_rank_fusion(rankings: Sequence[Sequence[Hit]], k: int = 10, constant: int = 60) -> list[Hit]:
    """One ranking of several: the score of a row is `sum 1 / (constant + rank)` (Cormack et al. 2009).

    Args:
        rankings: hits of one query, each list best first.
        k: hits of the result.
        constant: at least 1; the larger, the less the first ranks count for.

    Example:
        >>> first, second = [Hit("a", 0.9), Hit("b", 0.8)], [Hit("b", 12.0), Hit("c", 3.0)]
        >>> [hit.id for hit in reciprocal_rank_fusion([first, second])]
        ['b', 'a', 'c']
    """
    check_positive(k=k, constant=constant)
    scores: dict[int | str, float] = {}
    texts: dict[int | str, str | None] = {}
    for ranking in rankings:
        for rank, hit in enumerate(ranking, 1):
            scores[hit.id] = scores.get(hit.id, 0.0) + 1 / (constant + rank)
            texts.setdefault(hit.id, hit.text)
    best = sorted(scores, key=lambda name: -scores[name])[:k]  # of equal ones the first stays first
    return [Hit(name, scores[name], texts[name]) for name in best]


class HybridIndex:
    """An index of codes, and BM25 over its texts, asked together.

    BM25 is that of bm25s with its defaults, in memory. It is made of the texts of the index when this is created, and
    anew at the first search after rows came or went.

    Args:
        index: with an encoder and texts.
        stopwords: of bm25s: a language, or a list of words.

    Raises:
        ValueError: if the index has rows without a text.
        ImportError: without bm25s, of the extra `search`.

    Example:
        >>> from hsvae_hf import HybridIndex, Index
        >>> index = HybridIndex(Index.load("runs/reviews", encoder))  # doctest: +SKIP
        >>> hits = index.search(["friendly staff"], k=5)  # doctest: +SKIP
    """

    def __init__(self, index: Index, stopwords: str | list[str] = "en") -> None:
        require("bm25s", extra="search")
        self.index, self.stopwords, self._changes = index, stopwords, -1
        self._build()

    def _build(self) -> None:
        """Count the words of the texts that the index has now."""
        import bm25s

        self._ids: list[int | str] = []
        self._texts: list[str] = []
        for _, ids, part in self.index.blocks():
            missing = next((name for name, text in zip(ids, part, strict=True) if text is None), None)
            if missing is not None:
                raise ValueError(f"`index` must have the text of every row, got none of {missing!r}; add `texts`.")
            self._ids += ids
            self._texts += [str(text) for text in part]
        tokens = bm25s.tokenize(self._texts, stopwords=self.stopwords, show_progress=False)
        self._words: Any = None  # where no text has a word
        if any(len(words) for words in tokens.ids):
            self._words = bm25s.BM25()
            self._words.index(tokens, show_progress=False)
        self._changes = self.index.changes

    def search(
        self, queries: Sequence[str], k: int = 10, candidates: int = 100, constant: int = 60, **options: Any
    ) -> list[list[Hit]]:
        """The rows that codes and words rank highest together.

        Args:
            queries: sentences.
            k: hits per query.
            candidates: hits of each side that are fused.
            constant: as of `reciprocal_rank_fusion`.
            options: of `Index.search`.
        """
        queries = list(queries) if isinstance(queries, Iterator) else queries
        check_sentences(queries, "queries")
        check_positive(k=k, candidates=candidates)
        by_codes = self.index.search(queries, candidates, **options)
        by_words = self.by_words(list(queries), candidates)
        return [reciprocal_rank_fusion(pair, k, constant) for pair in zip(by_codes, by_words, strict=True)]

    def by_words(self, queries: Sequence[str], count: int) -> list[list[Hit]]:
        """The hits of BM25 alone; the arguments are those of `search`."""
        import bm25s

        if self._changes != self.index.changes:
            self._build()
        found: list[list[Hit]] = []
        for words in bm25s.tokenize(list(queries), stopwords=self.stopwords, show_progress=False, return_ids=False):
            known = [] if self._words is None else [word for word in words if word in self._words.vocab_dict]
            if not known:
                found.append([])
                continue
            scores = self._words.get_scores(known)
            order = [row for row in (-scores).argsort(kind="stable")[:count] if scores[row] > 0]
            found.append([Hit(self._ids[row], float(scores[row]), self._texts[row]) for row in order])
        return found
