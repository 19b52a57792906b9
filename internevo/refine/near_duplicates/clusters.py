"""Clusters of near-duplicates, by union-find over pairs, and which document of each is kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Clusters:
    """Documents that have near-duplicates."""

    keys: np.ndarray  # int64, sorted
    roots: np.ndarray  # of each its cluster: the lowest key in it

    @classmethod
    def of(cls, pairs: Iterable[np.ndarray]) -> Clusters:
        """What is linked, directly or through others, is one cluster. From arrays (pairs, 2) of keys, int64, in any
        order, of which one at a time is in memory."""
        clusters = cls(np.empty(0, np.int64), np.empty(0, np.int64))
        for some in pairs:
            clusters = clusters._joined(some)
        return clusters

    def _joined(self, pairs: np.ndarray) -> Clusters:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        ends = np.concatenate([self.keys, pairs[:, 0], self.roots, pairs[:, 1]])
        keys, places = np.unique(ends, return_inverse=True)
        links = np.split(places, 2)
        graph = coo_array((np.ones(len(links[0]), bool), links), shape=(len(keys), len(keys)))
        _, labels = connected_components(graph, directed=False)
        _, lowest = np.unique(labels, return_index=True)
        return Clusters(keys, keys[lowest[labels]])

    def dropped(self, priorities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The keys of all that are not kept, sorted, and of each the one that is kept in its place.

        A cluster keeps its document of the highest priority, int64 by key; among equals the first.
        """
        order = np.lexsort((self.keys, ~priorities, self.roots))  # ~ turns the order round, and cannot overflow
        _, first, cluster = np.unique(self.roots[order], return_index=True, return_inverse=True)
        keepers = np.empty_like(self.keys)
        keepers[order] = self.keys[order][first[cluster]]
        gone = keepers != self.keys
        return self.keys[gone], keepers[gone]
