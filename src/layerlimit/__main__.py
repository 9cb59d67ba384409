"""``python -m layerlimit`` is the command ``layerlimit``."""

import sys

from layerlimit.cli import main

if __name__ == "__main__":
    sys.exit(main())
