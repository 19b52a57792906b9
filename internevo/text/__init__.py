"""Documents and their readers."""
