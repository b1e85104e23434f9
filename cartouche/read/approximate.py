"""Search among more than a million vectors: a graph of neighbours (Malkov and Yashunin 2018), kept by usearch.

The graph only proposes candidates; their cosines are then computed exactly. Without usearch, or before the graph is
made, the search is exact and slower, and says so.
"""

from __future__ import annotations

import os
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np

from cartouche.config import CartoucheError

EXACT = 1_000_000
"""Up to so many vectors every one is compared: a gigabyte or two, a fraction of a second."""
WIDER = 4  # candidates asked of the graph for every picture that is wanted


class SlowWarning(UserWarning):
    """A search compares every vector, where an extra would spare it that."""


def write(place: Path, token: str, vectors: np.ndarray) -> bool:
    """Make the graph of vectors (N, D) where there are so many that it helps; says whether it did.

    token: the name of this very set of vectors; graphs of earlier ones are removed.
    """
    for old in place.glob("*.usearch"):
        old.unlink()
    if len(vectors) <= EXACT:
        return False
    try:
        from usearch.index import Index
    except ModuleNotFoundError:
        return False
    index = Index(ndim=vectors.shape[1], metric="ip", dtype="f16")
    index.add(np.arange(len(vectors)), np.asarray(vectors))
    temporary = place / f".{token}.tmp"
    try:
        index.save(str(temporary))
        os.replace(temporary, place / f"{token}.usearch")
    except (OSError, RuntimeError) as error:
        raise CartoucheError(f"cannot write the graph of the index in {place}: {error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return True


def candidates(place: Path, token: str, total: int, query: np.ndarray, count: int) -> np.ndarray | None:
    """Rows that are likely among the `count` nearest to a query (D,), or None where all must be compared.

    Warns with SlowWarning where a graph would help and there is none.
    """
    if total <= EXACT:
        return None
    try:
        from usearch.index import Index
    except ModuleNotFoundError:
        what = "pip install 'cartouche-ai[search]' and index again"
    else:
        path = place / f"{token}.usearch"
        graph = Index.restore(str(path), view=True) if path.is_file() else None
        if graph is not None:
            keys = np.asarray(graph.search(query, WIDER * count).keys).astype(np.int64)
            return keys[keys < total]
        what = "index again to make the graph that spares it that"
    warnings.warn(f"comparing with every one of {total:,} pictures; {what}", SlowWarning, stacklevel=3)
    return None
