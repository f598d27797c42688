"""``python -m autospace``."""

from autospace.cli import main

main()
