"""One JSON a run, rewritten atomically after every row: whatever stops a run, the finished rows are on disk."""

import json
import math
import os
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

SCHEMA = 1
"""Version of the layout that results/README.md documents."""

Row = dict[str, Any]


class Record:
    """The results of one run.

    Args:
        folder: Folder of the device's results; made if missing.
        suite: Name of the suite.
        facts: What the figures depend on: device, versions, commit, seed, options.

    Raises:
        OSError: If the folder cannot be made or written.
    """

    def __init__(self, folder: Path, suite: str, facts: Mapping[str, Any]) -> None:
        self._began = time.monotonic()
        now = datetime.now(timezone.utc)
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{suite}-{now:%Y%m%d-%H%M%S-%f}.json"
        self._content: dict[str, Any] = {
            "schema": SCHEMA,
            "suite": suite,
            "started": now.isoformat(timespec="seconds"),
            "status": "running",
            **facts,
            "rows": [],
        }
        self._write()

    @property
    def rows(self) -> list[Row]:
        """The finished rows."""
        rows: list[Row] = self._content["rows"]
        return rows

    def add(self, section: str, row: Row) -> None:
        """Append a finished row to a section, and write; figures that are not finite are written as null."""
        kept = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()
        }
        self.rows.append({"section": section, "elapsed_s": round(time.monotonic() - self._began, 3), **kept})
        self._write()

    def close(self, status: str) -> None:
        """Write how the run ended: ``complete``, ``interrupted`` or ``failed``."""
        self._content["status"] = status
        self._content["elapsed_s"] = round(time.monotonic() - self._began, 3)
        self._write()

    def _write(self) -> None:
        partial = self.path.with_suffix(f".{os.getpid()}.tmp")
        partial.write_text(json.dumps(self._content, indent=1, allow_nan=False) + "\n")
        partial.replace(self.path)
