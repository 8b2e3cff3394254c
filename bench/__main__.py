"""``python -m nntk.bench`` is ``nntk-bench``."""

import sys

from nntk.bench.cli import main

sys.exit(main())
