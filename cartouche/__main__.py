"""`python -m cartouche` is the command `cartouche`."""

import sys

from cartouche.cli import main

if __name__ == "__main__":
    sys.exit(main())
