"""Part of an index: postings, ids, and what a second stage reads, in arrays that may lie in files.

Rows are counted within the segment. The postings of a dimension are the rows whose code has it on, in ascending order,
and their values.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from scipy import sparse
from torch import Tensor

from hsvae_hf.index_checks import at_unit_length

SEGMENT_ROWS = 262_144  # whose scores fit a processor's cache
TABLE = "rows.arrow"
INT8_RANGE = 127


@dataclass(frozen=True)
class Segment:
    """Codes of some rows.

    Attributes:
        ends: where the postings of each dimension begin, and the last ones end, int64, `(latent_size + 1,)`.
        rows: int32, `(non-zeros,)`.
        values: float16 or float32, `(non-zeros,)`.
        table: columns `id`, int64 or string, and `text`, which may be null.
        kept: what the second stage reads: `vectors`, `(rows, size)`, float16, or int8 with `vector_scales`, `(rows,)`;
            or `code_ends`, `(rows + 1,)`, `code_dimensions` and `code_values`, `(non-zeros,)`.
        removed: which rows are removed, bool, `(rows,)`.
        folder: of its files, None if it has none.
    """

    ends: np.ndarray
    rows: np.ndarray
    values: np.ndarray
    table: pa.Table
    kept: dict[str, np.ndarray] = field(default_factory=dict)
    removed: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    folder: Path | None = None

    @classmethod
    def build(cls, codes: sparse.csr_matrix, table: pa.Table, kept: dict[str, np.ndarray], precision: str) -> "Segment":
        """Turn codes round.

        Args:
            codes: `(rows, latent_size)`.
            table: as of the class.
            kept: likewise.
            precision: of the values, "float16" or "float32".
        """
        columns = codes.tocsc()
        ends, rows = columns.indptr.astype(np.int64), columns.indices.astype(np.int32)
        return cls(ends, rows, columns.data.astype(precision), table, kept, np.zeros(codes.shape[0], dtype=bool))

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def latent_size(self) -> int:
        """Dimensions of a code."""
        return len(self.ends) - 1

    def add_scores(self, dimensions: np.ndarray, weights: np.ndarray, scores: Tensor) -> None:
        """Add what a query and each row share.

        Args:
            dimensions: that the query has on.
            weights: their values.
            scores: fp32, `(rows,)`, which are changed.
        """
        rows, values = torch.from_numpy(self.rows), torch.from_numpy(self.values)
        for dimension, weight in zip(dimensions.tolist(), weights.tolist(), strict=True):
            start, end = int(self.ends[dimension]), int(self.ends[dimension + 1])
            scores.index_add_(0, rows[start:end], values[start:end].float(), alpha=weight)

    def values_at(self, rows: np.ndarray, dimensions: np.ndarray) -> np.ndarray:
        """The values of some rows at some dimensions, `(rows, dimensions)`, float64."""
        found = np.zeros((len(rows), len(dimensions)))
        for place, dimension in enumerate(dimensions.tolist()):
            start, end = self.ends[dimension], self.ends[dimension + 1]
            at = np.searchsorted(self.rows[start:end], rows).clip(max=max(0, end - start - 1))
            if end > start:
                values = self.values[start:end][at]
                found[:, place] = np.where(self.rows[start:end][at] == rows, values, 0)
        return found

    def positions(self, ids: pa.Array) -> np.ndarray:
        """The row of each id, -1 of one that is not there or was removed, `(ids,)`."""
        if not len(self) or ids.type != self.table["id"].type:
            return np.full(len(ids), -1)
        places = pc.index_in(ids, value_set=self.table["id"]).fill_null(-1).to_numpy(zero_copy_only=False).copy()
        places[(places >= 0) & self.removed[places]] = -1
        return cast(np.ndarray, places)

    def codes(self) -> sparse.csr_matrix:
        """The codes of all rows, `(rows, latent_size)`, float32."""
        shape = (len(self), self.latent_size)
        return sparse.csc_matrix((self.values.astype(np.float32), self.rows, self.ends), shape=shape).tocsr()

    def without_removed(self) -> tuple[sparse.csr_matrix, pa.Table, dict[str, np.ndarray]]:
        """Codes, table and what is kept, of the rows that are not removed."""
        codes = self.codes()
        left = np.flatnonzero(~self.removed)
        kept = {name: array[left] for name, array in self.kept.items() if not name.startswith("code_")}
        if "code_ends" in self.kept:
            kept |= forward_arrays(self.kept_codes(left), str(self.kept["code_values"].dtype))
        return codes[left], self.table.take(left), kept

    def kept_codes(self, rows: np.ndarray) -> sparse.csr_matrix:
        """The codes of the second stage, `(rows, latent_size)`, float32."""
        ends, starts = self.kept["code_ends"][rows + 1], self.kept["code_ends"][rows]
        lengths = ends - starts
        begins = np.concatenate([[0], lengths.cumsum()])
        places = np.repeat(starts - begins[:-1], lengths) + np.arange(begins[-1])
        values = self.kept["code_values"][places].astype(np.float32)
        dimensions = self.kept["code_dimensions"][places].astype(np.int32)
        return sparse.csr_matrix((values, dimensions, begins), shape=(len(rows), self.latent_size))

    def kept_vectors(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of the second stage, `(rows, size)`, float32."""
        vectors = self.kept["vectors"][rows].astype(np.float32)
        scales = self.kept.get("vector_scales")
        return vectors if scales is None else vectors * scales[rows, None]

    def save(self, folder: Path) -> None:
        """Write into a new folder, which then is there whole or not at all."""
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        for name, array in {"ends": self.ends, "rows": self.rows, "values": self.values, **self.kept}.items():
            np.save(unfinished / f"{name}.npy", array)
        with pa.OSFile(str(unfinished / TABLE), "wb") as file, pa.ipc.new_file(file, self.table.schema) as writer:
            writer.write_table(self.table.combine_chunks())
        os.replace(unfinished, folder)

    @classmethod
    def load(cls, folder: Path) -> "Segment":
        """Map what `save` wrote into memory; nothing is read.

        Raises:
            OSError, ValueError: if a file is missing or damaged.
        """
        arrays = {path.stem: np.load(path, mmap_mode="c", allow_pickle=False) for path in folder.glob("*.npy")}
        table = pa.ipc.open_file(pa.memory_map(str(folder / TABLE))).read_all()
        ends, rows, values = (arrays.pop(name) for name in ("ends", "rows", "values"))
        lengths = {"vectors": table.num_rows, "vector_scales": table.num_rows, "code_ends": table.num_rows + 1}
        wrong = [name for name, array in arrays.items() if len(array) != lengths.get(name, len(array))]
        if wrong or ends.dtype != np.int64 or not ends[-1] == len(rows) == len(values):
            raise ValueError(f"arrays of {folder.name} do not fit one another")
        return cls(ends, rows, values, table, arrays, np.zeros(table.num_rows, dtype=bool), folder)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, and of ids and text."""
        arrays = (self.ends, self.rows, self.values, *self.kept.values())
        return sum(array.nbytes for array in arrays) + self.table.nbytes


def forward_arrays(codes: sparse.csr_matrix, precision: str) -> dict[str, np.ndarray]:
    """Codes as arrays of the second stage."""
    small = codes.shape[1] <= np.iinfo(np.uint16).max + 1
    return {
        "code_ends": codes.indptr.astype(np.int64),
        "code_dimensions": codes.indices.astype(np.uint16 if small else np.int32),
        "code_values": codes.data.astype(precision),
    }


def vector_arrays(vectors: np.ndarray, precision: str) -> dict[str, np.ndarray]:
    """Vectors, at length 1, as arrays of the second stage.

    Args:
        vectors: `(rows, size)`.
        precision: "float16", or "int8" with a scale for each row.

    >>> arrays = vector_arrays(np.array([[3.0, 4.0]]), "int8")
    >>> arrays["vectors"].tolist()
    [[95, 127]]
    """
    unit = at_unit_length(vectors)
    if precision != "int8":
        return {"vectors": unit.astype(precision)}
    scales = np.abs(unit).max(axis=1).clip(1e-12) / INT8_RANGE
    return {"vectors": np.rint(unit / scales[:, None]).astype(np.int8), "vector_scales": scales.astype(np.float32)}


def joined(segments: Sequence[Segment], precision: str) -> Segment:
    """One segment of the rows of several that are not removed."""
    parts = [segment.without_removed() for segment in segments]
    codes = sparse.vstack([part[0] for part in parts], format="csr")
    table = pa.concat_tables([part[1] for part in parts]).combine_chunks()
    kept = {name: np.concatenate([part[2][name] for part in parts]) for name in parts[0][2] if name != "code_ends"}
    if "code_ends" in parts[0][2]:
        lengths = np.concatenate([np.diff(part[2]["code_ends"]) for part in parts])
        kept["code_ends"] = np.concatenate([[0], lengths.cumsum()])
    return Segment.build(codes, table, kept, precision)


def compacted(segments: Sequence[Segment], precision: str) -> list[Segment]:
    """The same rows in few segments: neighbours of together at most `SEGMENT_ROWS` become one."""
    groups: list[list[Segment]] = []
    for segment in segments:
        if segment.removed.all():
            continue
        if groups and sum(map(len, groups[-1])) + len(segment) <= SEGMENT_ROWS:
            groups[-1].append(segment)
        else:
            groups.append([segment])
    return [group[0] if len(group) == 1 else joined(group, precision) for group in groups]


def is_small(segment: Segment, rows: int) -> bool:
    """Whether a segment that is in no file is to become one with the next, of so many rows."""
    return segment.folder is None and len(segment) < 2 * rows and len(segment) + rows <= SEGMENT_ROWS


def largest_id(segment: Segment) -> int:
    """The largest id, -1 where ids are strings."""
    ids = segment.table["id"]
    return int(pc.max(ids).as_py()) if pa.types.is_integer(ids.type) else -1
