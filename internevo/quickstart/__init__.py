"""The whole job on one machine, with nothing but this package and Python's own library as text."""
