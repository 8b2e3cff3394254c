"""``python -m nntk.bench`` is ``nntk-bench``."""

import sys

from nntk.bench.cli.app import main

sys.exit(main())
