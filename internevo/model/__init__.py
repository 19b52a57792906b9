"""The transformer. Nothing here knows of ranks, meshes or processes."""
