"""Connected components of a graph of documents."""

import numpy as np


def connected_components(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The components of the graph with the edges (a[i], b[i]), which are int64 ids.

    Returns all ids in increasing order, and for each id the smallest id of its component. Runs in this process and
    needs about 100 bytes of memory per edge.
    """
    from scipy.sparse import coo_array, csgraph

    ids, numbers = np.unique(np.concatenate([a, b]), return_inverse=True)
    if not len(ids):
        return ids, ids
    rows, columns = numbers.reshape(2, -1)
    graph = coo_array((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(len(ids), len(ids)))
    _, labels = csgraph.connected_components(graph, directed=False)
    _, first = np.unique(labels, return_index=True)
    return ids, ids[first][labels]
