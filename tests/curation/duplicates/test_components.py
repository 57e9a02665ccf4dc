"""Connected components."""

import numpy as np
import pytest

from data.curation.duplicates.components import connected_components


def slow_components(edges: list[tuple[int, int]]) -> dict[int, int]:
    """The smallest id of the component of each id."""
    smallest = {id: id for edge in edges for id in edge}
    for _ in edges:
        for a, b in edges:
            smallest[a] = smallest[b] = min(smallest[a], smallest[b])
    return smallest


@pytest.mark.parametrize("n_edges", [0, 1, 30, 60])
def test_components_of_random_graphs(n_edges):
    ids = np.random.default_rng(n_edges).integers(-(2**62), 2**62, 50)
    a, b = np.random.default_rng(0).choice(ids, (2, n_edges))
    found_ids, found = connected_components(a, b)
    assert dict(zip(found_ids.tolist(), found.tolist(), strict=True)) == slow_components(
        list(zip(a.tolist(), b.tolist(), strict=True))
    )
