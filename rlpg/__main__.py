"""`python -m rlpg` is `rlpg`."""

import sys

from rlpg.cli import main

if __name__ == "__main__":
    sys.exit(main())
