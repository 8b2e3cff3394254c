"""``python -m nntk.bench.machine_code`` is ``nntk-bench resources``."""

import sys

from nntk.bench.cli.app import main

sys.exit(main(["resources", *sys.argv[1:]]))
