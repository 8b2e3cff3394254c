"""``python -m nntk.bench`` is ``nntk-bench``."""

import sys

from nntk.bench.cli.main import main

sys.exit(main())
