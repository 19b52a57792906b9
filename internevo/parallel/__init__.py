"""Layouts over ranks: one file a kind, and `build_rank_model.py`, which puts them on a model.

All moving torch API is in here.
"""
