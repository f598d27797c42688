"""``python -m autospace``."""

from autospace.cli import main

if __name__ == "__main__":
    main()
