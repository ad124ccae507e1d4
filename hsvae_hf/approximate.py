"""Approximate search for large collections: candidates by Seismic (Bruch et al. 2024), scores by the index."""

from typing import Any

import numpy as np
from scipy import sparse

from hsvae_hf.extras import require
from hsvae_hf.index import Hit, Index, Queries
from hsvae_hf.input_checks import check_positive


class ApproximateIndex:
    """An index of codes, asked through Seismic, which looks at few rows of each dimension's list.

    Seismic takes no negative values. So each dimension is two there, its positive and its negative values; of a product
    of unlike signs it knows nothing. The index scores what Seismic finds, so that scores are exact, and rows may be
    missing. Seismic's structure is in memory, made anew of the codes of the index when this is created.

    Args:
        index: of codes.
        n_postings: rows that a dimension's list keeps on average.
        summary_energy: share of a block that its summary keeps, above 0 to 1; more finds more and takes longer.
        options: others of pyseismic-lsr's `SeismicIndex.build_from_dataset`.

    Raises:
        ImportError: without pyseismic-lsr, of the extra `seismic`.

    Example:
        >>> from hsvae_hf import ApproximateIndex, Index
        >>> index = ApproximateIndex(Index.load("runs/reviews", encoder))  # doctest: +SKIP
        >>> hits = index.search(["friendly staff"], k=5)  # doctest: +SKIP
    """

    def __init__(self, index: Index, n_postings: int = 3500, summary_energy: float = 0.4, **options: Any) -> None:
        require("seismic", extra="seismic")
        import seismic

        check_positive(n_postings=n_postings)
        self.index, self._kind = index, seismic.get_seismic_string()
        data = seismic.SeismicDataset()
        for number, segment in enumerate(index.segments):
            codes, rows = _split(segment.codes()), np.flatnonzero(~segment.removed)
            names = np.arange(codes.shape[1]).astype(self._kind)
            for row in rows.tolist():
                part = slice(codes.indptr[row], codes.indptr[row + 1])
                data.add_document(f"{number} {row}", names[codes.indices[part]], codes.data[part])
        self._found = seismic.SeismicIndex.build_from_dataset(
            data, n_postings=n_postings, summary_energy=summary_energy, num_threads=1, **options
        )

    def search(
        self, queries: Queries, k: int = 10, candidates: int = 50, query_cut: int = 16, heap_factor: float = 0.8
    ) -> list[list[Hit]]:
        """The rows that are likely nearest to each query, best first.

        Args:
            queries: as of `Index.search`.
            k: hits per query.
            candidates: rows of Seismic that are scored, at least `k`.
            query_cut: dimensions of a query that Seismic reads, the largest.
            heap_factor: above 0 to 1; less finds more and takes longer.
        """
        check_positive(k=k, candidates=candidates, query_cut=query_cut)
        codes = self.index.query_codes(queries)
        split = _split(codes)
        names = np.arange(split.shape[1]).astype(self._kind)
        hits: list[list[Hit]] = []
        for row in range(codes.shape[0]):
            part = slice(split.indptr[row], split.indptr[row + 1])
            if part.start == part.stop:
                hits.append([])
                continue
            asked = names[split.indices[part]], split.data[part]
            found = self._found.search("query", *asked, max(k, candidates), query_cut, heap_factor)
            places = np.array([name.split() for _, _, name in found], dtype=int).reshape(-1, 2)
            hits.append(self.index.hits_at(places, codes[row], k))
        return hits


def _split(codes: sparse.csr_matrix) -> sparse.csr_matrix:
    """Positive values, then the negative ones without their sign, `(rows, 2 latent_size)`."""
    split = sparse.hstack([codes.maximum(0), (-codes).maximum(0)], format="csr", dtype=np.float32)
    split.eliminate_zeros()
    return sparse.csr_matrix(split)
