"""``python -m nntk.bench.resources`` is ``nntk-bench resources``."""

import sys

from nntk.bench.cli import main

sys.exit(main(["resources", *sys.argv[1:]]))
