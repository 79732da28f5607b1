"""`python -m jobgate.cli` is `jobgate`."""

from jobgate.cli import main

main()
