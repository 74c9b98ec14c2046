"""`python -m tests.fake_gcs --port 0` serves a bucket and prints the endpoint."""

import sys

from .server import main

sys.exit(main(sys.argv[1:]))
