"""Atomic writing: a reader finds the old file or the complete new one."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Replace a file by a text, and make its folder if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    partial.write_text(text, encoding="utf-8", newline="\n")
    partial.replace(path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a file by JSON; numbers that are not finite are an error, since JSON does not have them."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
