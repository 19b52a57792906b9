"""`python -m internevo` is the `internevo` command; torchrun starts ranks this way."""

from internevo.cli import main

main()
