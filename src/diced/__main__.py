"""``python -m diced`` is the command line."""

import sys

from diced.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
