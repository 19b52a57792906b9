"""Near-duplicates: found by MinHash, and of each cluster one kept."""
