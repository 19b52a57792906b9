"""Layouts over ranks: one file a kind, and `apply.py` that puts them on a model. All moving torch API is in here."""
