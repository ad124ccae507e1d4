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
    missing. Seismic's structure is in memory. It is made when this is created, and anew at the first
    search after rows came or went.

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
        check_positive(n_postings=n_postings)
        check_share(summary_energy=summary_energy)
        self.index, self._changes = index, -1
        self._options = {"n_postings": n_postings, "summary_energy": summary_energy, "num_threads": 1} | options
        self._places = np.empty((0, 2), dtype=int)  # number of the segment and row in it, of each of Seismic's rows
        self._found: Any = None
        self._build()

    def _build(self) -> None:
        """Make Seismic's structure of the codes that the index has now."""
        import seismic

        data, self._kind = seismic.SeismicDataset(), seismic.get_seismic_string()
        places: list[tuple[int, int]] = []
        largest = max((float(np.abs(block.data).max(initial=0)) for block, _, _ in self.index.blocks()), default=1.0)
        for number, segment in enumerate(self.index.segments):
            codes = _split(segment.codes() * (1 / max(largest, 1e-30)))  # Seismic keeps values in half precision
            names = np.arange(codes.shape[1]).astype(self._kind)
            for row in np.flatnonzero(~segment.removed).tolist():
                part = slice(codes.indptr[row], codes.indptr[row + 1])
                if part.start < part.stop:
                    data.add_document(str(len(places)), names[codes.indices[part]], codes.data[part])
                    places.append((number, row))
        self._places = np.array(places, dtype=int).reshape(-1, 2)
        self._found = seismic.SeismicIndex.build_from_dataset(data, **self._options) if places else None
        self._changes = self.index.changes

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
        check_share(heap_factor=heap_factor)
        if self._changes != self.index.changes:
            self._build()
        codes = self.index.query_codes(queries)
        split = _split(codes)
        names = np.arange(split.shape[1]).astype(self._kind)
        hits: list[list[Hit]] = []
        for row in range(codes.shape[0]):
            part = slice(split.indptr[row], split.indptr[row + 1])
            if part.start == part.stop or self._found is None:
                hits.append([])
                continue
            asked = names[split.indices[part]], split.data[part]
            found = self._found.search("query", *asked, max(k, candidates), query_cut, heap_factor)
            rows = [int(number) for _, _, number in found]
            hits.append(self.index.hits_at(self._places[rows], codes[row], k))
        return hits


def check_share(**numbers: Any) -> None:
    """Refuse what is not above 0 and at most 1.

    Raises:
        ValueError: naming it.
    """
    for name, value in numbers.items():
        if not 0 < value <= 1:
            raise ValueError(f"`{name}` must be above 0 and at most 1, got {value!r}; choose such a share.")


def _split(codes: sparse.csr_matrix) -> sparse.csr_matrix:
    """Positive values, then the negative ones without their sign, `(rows, 2 latent_size)`."""
    split = sparse.hstack([codes.maximum(0), (-codes).maximum(0)], format="csr", dtype=np.float32)
    split.eliminate_zeros()
    return sparse.csr_matrix(split)
