"""Codes into running stores: Qdrant, Milvus, PostgreSQL with pgvector, through their own clients.

What is created is removed again if something fails on the way. PostgreSQL does it in one transaction. In Qdrant and
Milvus an end that can't be caught (SIGKILL, the network) leaves an unfinished collection.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hsvae_hf.extras import require
from hsvae_hf.store_formats import FIELD, Batch, Layout, sparsevec

_METHODS = {"qdrant": "upsert", "milvus": "insert", "pgvector": "cursor"}  # by which a client is known
_PACKAGES = {"qdrant": "qdrant_client", "milvus": "pymilvus"}
_MILVUS_LITE = [3, 2, 2]
MAX_TEXT = 65_535  # bytes of a VARCHAR of Milvus


def is_client(form: str, target: object) -> bool:
    """Whether `target` is a client of the store `form`."""
    return form in _METHODS and hasattr(target, _METHODS[form])


@contextmanager
def milvus_file(path: Path) -> Iterator[Any]:
    """A client of milvus-lite on a data base of its own, which is removed after a failure if it is new."""
    require("pymilvus", "milvus_lite", extra="stores")
    installed = version("milvus-lite")
    if [int(number) for number in re.findall(r"\d+", installed)[:3]] < _MILVUS_LITE:
        raise ImportError(
            f"milvus-lite {installed} ranks by BM25 where the inner product is asked for; run: pip install "
            "'hsvae_hf[stores]'"
        )
    from milvus_lite.server_manager import server_manager_instance
    from pymilvus import MilvusClient

    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    client = MilvusClient(str(path))
    try:
        yield client
    except BaseException:
        if new:
            server_manager_instance.release_server(str(path))  # else it would go on to serve what is no more there
            shutil.rmtree(path, ignore_errors=True)
        raise
    finally:
        client.close()


def check_client(form: str, client: Any, name: str, overwrite: bool) -> None:
    """Refuse a name that is taken, and a connection that could not take everything back.

    Raises:
        ImportError: if the package of the client is not installed.
        ValueError: saying what to change.
    """
    if form in _PACKAGES:
        require(_PACKAGES[form], extra="stores")
        exists = client.collection_exists(name) if form == "qdrant" else client.has_collection(name)
    else:
        exists = _check_postgres(client, name)
    if exists and not overwrite:
        raise ValueError(f"`name` must be new to the store, got {name!r}; pass `overwrite=True` to replace it.")


def _check_postgres(connection: Any, name: str) -> bool:
    if getattr(connection, "autocommit", False):
        raise ValueError("`target` must be a connection without autocommit, got one with it; set it to False.")
    cursor = connection.cursor()
    cursor.execute(
        "SELECT to_regtype('sparsevec') IS NULL, to_regclass(%s) IS NOT NULL, pg_current_xact_id_if_assigned() IS NULL",
        (f'"{name}"',),
    )
    missing, exists, unchanged = cursor.fetchone()
    if not unchanged:
        raise ValueError("`target` must be a connection without changes to commit, got one with some; commit them.")
    connection.rollback()
    if missing:
        raise ValueError(
            "`target` must be a database with pgvector 0.7 or later, got one without the type sparsevec; run: CREATE "
            "EXTENSION vector"
        )
    return bool(exists)


def send(form: str, client: Any, batches: Iterator[Batch], layout: Layout) -> None:
    """Put rows into a new collection or table, in place of one of the same name.

    Args:
        form: `"qdrant"`, `"milvus"` or `"pgvector"`.
        client: of that store.
        batches: the rows.
        layout: what they share, and the name.
    """
    if form == "pgvector":
        _send_postgres(client, batches, layout)
        return
    create, add, delete = (_qdrant if form == "qdrant" else _milvus)(client, layout)
    delete()
    try:
        create()
        for batch in batches:
            add(batch)
    except BaseException:
        delete()
        raise


_Steps = tuple[Callable[[], Any], Callable[[Batch], Any], Callable[[], Any]]


def _qdrant(client: Any, layout: Layout) -> _Steps:
    from qdrant_client import models

    name = layout.collection

    def create() -> None:
        vectors = {FIELD: models.SparseVectorParams()}
        client.create_collection(
            name, vectors_config={}, sparse_vectors_config=vectors, metadata={"hsvae_hf": dict(layout.about)}
        )

    def add(batch: Batch) -> None:
        points = [
            models.PointStruct(
                id=identity,
                vector={FIELD: models.SparseVector(indices=indices, values=values)},
                payload=None if text is None else {"text": text},
            )
            for identity, indices, values, text in batch.rows()
        ]
        client.upsert(name, points, wait=True)

    return create, add, lambda: client.collection_exists(name) and client.delete_collection(name)


def _milvus(client: Any, layout: Layout) -> _Steps:
    from pymilvus import DataType

    name = layout.collection

    def create() -> None:
        schema = client.create_schema(auto_id=False, description=json.dumps(layout.about))
        if layout.string_ids:
            schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=MAX_TEXT)
        else:
            schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field(FIELD, DataType.SPARSE_FLOAT_VECTOR)
        if layout.texts:
            schema.add_field("text", DataType.VARCHAR, max_length=MAX_TEXT)
        index = client.prepare_index_params()
        index.add_index(FIELD, index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
        client.create_collection(name, schema=schema, index_params=index)

    def add(batch: Batch) -> None:
        rows = []
        for identity, indices, values, text in batch.rows():
            row = {"id": identity, FIELD: dict(zip(indices, map(float, values), strict=True))}  # it takes no int
            rows.append(row if text is None else {**row, "text": text})
        if rows:
            client.insert(name, rows)

    return create, add, lambda: client.has_collection(name) and client.drop_collection(name)


def _send_postgres(connection: Any, batches: Iterator[Batch], layout: Layout) -> None:
    table, size = f'"{layout.collection}"', layout.stored_dimensions
    columns = {
        "id": "text" if layout.string_ids else "bigint",
        FIELD: f"sparsevec({size})",
        **({"text": "text"} if layout.texts else {}),
    }
    about = json.dumps(layout.about).replace("'", "''")
    insert = f"INSERT INTO {table} VALUES (%s, CAST(%s AS sparsevec){', %s' if layout.texts else ''})"
    cursor = connection.cursor()
    try:
        cursor.execute(f"DROP TABLE IF EXISTS {table}")
        cursor.execute(f"CREATE TABLE {table} ({', '.join(f'{name} {kind}' for name, kind in columns.items())})")
        cursor.execute(f"ALTER TABLE {table} ADD PRIMARY KEY (id)")
        cursor.execute(f"COMMENT ON TABLE {table} IS '{about}'")
        for batch in batches:
            rows = []
            for identity, indices, values, text in batch.rows():
                code = sparsevec(indices, values, size)
                rows.append((identity, code) if text is None else (identity, code, text))
            if rows:
                cursor.executemany(insert, rows)
        if layout.index == "hnsw":
            cursor.execute(f"CREATE INDEX ON {table} USING hnsw ({FIELD} sparsevec_ip_ops)")
        connection.commit()
    except BaseException:
        connection.rollback()
        raise
