"""Cycles of preferences: A > B, B > C, C > A on one prompt. No reward model can be right about all of them.

A comparison of K responses, best first, says that each is better than the next. On the graph of all responses to all
prompts a comparison is part of a cycle exactly if two neighbours of it stand in one strongly connected component.
Memory: 24 bytes an edge.
"""

from array import array

import numpy as np

SHOWN = 20


class Cycles:
    """Takes comparisons as digests, then finds those in cycles."""

    def __init__(self) -> None:
        self._prompts, self._better, self._worse, self._rows = (array("q") for _ in range(4))
        self._locations: list[str] = []

    def add(self, prompt: int, responses: list[int], location: str) -> None:
        """64-bit digests of a prompt and its responses, best first."""
        for better, worse in zip(responses, responses[1:], strict=False):
            self._prompts.append(prompt)
            self._better.append(better)
            self._worse.append(worse)
            self._rows.append(len(self._locations))
        self._locations.append(location)

    def find(self) -> np.ndarray:
        """The rows, in the order they came, that are part of a cycle."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        prompts, better, worse, rows = (
            np.array(part, np.int64) for part in (self._prompts, self._better, self._worse, self._rows)
        )
        if not len(rows):
            return rows
        ends = np.stack([np.concatenate([prompts, prompts]), np.concatenate([better, worse])], axis=1)
        nodes, names = np.unique(ends, axis=0, return_inverse=True)
        one, other = names.reshape(2, -1)
        graph = coo_array((np.ones(len(rows), np.int8), (one, other)), shape=(len(nodes), len(nodes)))
        component = connected_components(graph.tocsr(), directed=True, connection="strong")[1]
        return np.unique(rows[component[one] == component[other]])

    def report(self) -> dict:
        """How many comparisons stand in cycles, of how many prompts, and where the first of them are."""
        found = self.find()
        inside = np.isin(np.array(self._rows, np.int64), found)
        return {
            "comparisons": len(found),
            "prompts": len(np.unique(np.array(self._prompts, np.int64)[inside])),
            "first": [self._locations[row] for row in found[:SHOWN]],
        }
