"""Measured roofs of a device: rates of copies and dense products, which limit the speed of every op.

A roof is the fastest of many runs, in this process or before. A speed above its roof is an error of measurement.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from nntk.bench.measure import environment
from nntk.bench.measure.timing import Timing, seconds
from nntk.bench.results import tables
from nntk.bench.results.tables import Column
from nntk.files.output import Output, json_text, write_text
from nntk.files.paths import file_to_replace
from nntk.kernels.cost import Cost

SCHEMA = 1
"""Version of the layout of the cache and of the JSON."""

PRODUCTS = {
    "cpu": {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16},
    "cuda": {"fp64": torch.float64, "fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16},
}
"""Precisions of products and their dtypes by kind of device; fp32 on a GPU uses no tensor cores."""

COLUMNS = (
    Column("roof", "case"),
    Column("best", "best"),
    Column("median", "median"),
    Column("runs", "runs"),
    Column("measured", "measured"),
)
CAPTION = (
    "A copy reads and writes a buffer far larger than the caches, a sum reads it; products are square, two operations "
    "a multiply-add. The best run is the roof."
)


@dataclass(frozen=True)
class Roof:
    """Highest rate that was measured.

    Attributes:
        name: ``"copy"``, ``"read"``, or the precision of a product.
        unit: ``"bytes"``, read and written, or ``"flops"``, two for a multiply-add.
        work: Number of units in one run.
        samples_s: Durations of the runs, in seconds.
        measured: Time of the measurement, in UTC.
    """

    name: str
    unit: str
    work: float
    samples_s: tuple[float, ...]
    measured: str

    @property
    def per_second(self) -> float:
        """Rate of the fastest run."""
        return self.work / min(self.samples_s)

    def summary(self) -> dict[str, Any]:
        """Return name, unit and rate, for the results of a run."""
        return {"name": self.name, "unit": self.unit, "per_second": self.per_second}


def measure(
    device: torch.device, duration: float = 1.0, scale: int = 1, only: Sequence[str] | None = None
) -> Iterator[Roof]:
    """Measure the roofs of a device.

    Args:
        device: The device, a CPU or a CUDA GPU.
        duration: Least total time of the runs of one roof, in seconds; there are at least five runs.
        scale: Divisor of the sides of products and of the lengths of buffers, for a rehearsal.
        only: Names of the roofs; None for all.

    Yields:
        Roofs, those of memory first.
    """
    on_gpu = device.type == "cuda"
    if only is None or {"copy", "read"} & set(only):
        yield from _memory((2**28 if on_gpu else 2**26) // scale, device, duration)
    size = (8192 if on_gpu else 2048) // scale
    for name, dtype in PRODUCTS[device.type].items():
        if only is None or name in only:
            with _tf32(name == "tf32"):
                yield _product(name, size, dtype, device, duration)


def _product(name: str, size: int, dtype: torch.dtype, device: torch.device, duration: float) -> Roof:
    a, b, out = (torch.randn(size, size, device=device).to(dtype) for _ in range(3))
    return _roof(name, "flops", 2.0 * size**3, lambda: torch.mm(a, b, out=out), device, duration)


def _memory(count: int, device: torch.device, duration: float) -> Iterator[Roof]:
    source = torch.ones(count, device=device)
    target = torch.empty_like(source)
    yield _roof("copy", "bytes", 2.0 * source.nbytes, lambda: target.copy_(source), device, duration)
    yield _roof("read", "bytes", source.nbytes, source.sum, device, duration)


def _roof(
    name: str, unit: str, work: float, run: Callable[[], object], device: torch.device, duration: float
) -> Roof:  # fmt: skip
    seconds(run, device)
    samples: list[float] = []
    while len(samples) < 5 or sum(samples) < duration:
        samples.append(seconds(run, device))
    return Roof(name, unit, work, tuple(samples), f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M}")


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def cache_path(device: torch.device) -> Path:
    """Return the file with the roofs of a device, its driver, version of PyTorch and number of threads."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if device.type == "cuda":
        software = f"driver-{environment.driver(device)}"
    else:
        software = f"threads-{torch.get_num_threads()}"
    return base / "nntk" / f"roofline-{environment.slug(device)}-{software}-torch-{torch.__version__}.json"


def cached(device: torch.device) -> list[Roof] | None:
    """Return the roofs that were measured before on this device with this software; None if there are none."""
    try:
        content = json.loads(cache_path(device).read_text())
        if content["schema"] != SCHEMA:
            return None
        return [Roof(**{**roof, "samples_s": tuple(roof["samples_s"])}) for roof in content["roofs"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # The roofs are measured again, which replaces the broken file.


def roofs(device: torch.device) -> list[Roof]:
    """Return the roofs of a device: the best of earlier processes and of this one, which measures at its first call.

    Args:
        device: The device.

    Returns:
        The roofs. Other work during their measurement made them lower, never higher.
    """
    if device not in _MEASURED_DEVICES:
        _MEASURED_DEVICES.add(device)
        return remeasure(device)
    return cached(device) or remeasure(device)


_MEASURED_DEVICES: set[torch.device] = set()
"""Devices whose roofs this process has measured."""


def remeasure(device: torch.device, only: Sequence[str] | None = None) -> list[Roof]:
    """Measure the roofs of a device once more, all or those named in ``only``, and return the best so far."""
    kept = {roof.name: roof for roof in cached(device) or ()}
    for roof in measure(device, only=only if kept else None):
        if roof.name not in kept or roof.per_second > kept[roof.name].per_second:
            kept[roof.name] = roof
    write_text(cache_path(device), json_text(_content(device, list(kept.values()))))
    return list(kept.values())


def beside(name: str, cost: Cost, precision: str, timing: Timing, device: torch.device) -> dict[str, Any]:
    """Return the entries of a row for a speed and its roof.

    A machine may have become faster since its roofs were measured. A speed above its roof is compared once more with
    roofs that are measured now.

    Args:
        name: Name of the timed call.
        cost: Least work of the call.
        precision: Precision of the products.
        timing: Durations of the call.
        device: Device of the call.

    Returns:
        ``roof``, ``roof_share`` and the durations; a ``failure`` in place of the durations for a speed above its roof.
    """
    least, roof = least_seconds(cost, precision, roofs(device))
    if least > timing.median:
        least, roof = least_seconds(cost, precision, remeasure(device, _ROOFS_OF.get(roof, (roof,))))
    share = least / timing.median
    row = {"roof": roof, "roof_share": share}
    if share > 1:
        return {**row, "failure": f"{name}: {100 * share:.0f} % of the roof {roof}: it was measured wrong"}
    return {**row, **timing.row()}


_ROOFS_OF = {"memory": ("copy", "read"), "fp32": ("fp32", "tf32")}
"""Names of the measured roofs behind each roof that ``least_seconds`` names."""


def least_seconds(cost: Cost, precision: str, measured: Sequence[Roof]) -> tuple[float, str]:
    """Return the least time of the work of a call on a device, and the roof that limits it.

    Args:
        cost: Work of the call; its random numbers have no roof.
        precision: Precision of the products. Float32 may be three products of TF32 on tensor cores.
        measured: Roofs of the device.

    Returns:
        Seconds, and ``"memory"`` or the precision.
    """
    rates = {roof.name: roof.per_second for roof in measured}
    products = max(rates[precision], rates.get("tf32", 0.0) / 3) if precision == "fp32" else rates[precision]
    by_memory, by_products = cost.bytes / max(rates["copy"], rates["read"]), cost.flops / products
    return max((by_memory, "memory"), (by_products, precision))


def _content(device: torch.device, measured: Sequence[Roof]) -> dict[str, Any]:
    return {"schema": SCHEMA, **environment.describe(device), "roofs": [asdict(roof) for roof in measured]}


def run(device: torch.device, again: bool, output: Output | None, console: Console) -> int:
    """Show the roofs of a device, measured now or before.

    Args:
        device: The device.
        again: True to measure even if roofs are stored.
        output: Where the roofs go as JSON; None for nowhere.
        console: Console that shows the table.

    Returns:
        The exit status, 0.

    Raises:
        OSError: If the JSON cannot be written.
    """
    stored = None if again else cached(device)
    if stored is None:
        file_to_replace(cache_path(device), "the cache of roofs, in XDG_CACHE_HOME or ~/.cache,")
    shown: list[Roof] = []
    with tables.growing(console, f"Roofs of {environment.device_name(device)}", CAPTION, COLUMNS) as show:
        for roof in measure(device) if stored is None else stored:
            shown.append(roof)
            show(_cells(roof), "measuring" if stored is None else "")
    content = _content(device, shown)
    # Before the cache, whose folder may be one that cannot be written.
    if output:
        output.write_json(content)
    if stored is None:
        write_text(cache_path(device), json_text(content))
        console.print(f"kept in {cache_path(device)}", highlight=False, soft_wrap=True)
    else:
        console.print(f"from {cache_path(device)}; --again measures", highlight=False, soft_wrap=True)
    return 0


def _cells(roof: Roof) -> dict[str, Any]:
    middle = sorted(roof.samples_s)[len(roof.samples_s) // 2]
    return {
        "case": roof.name,
        "best": _rate(roof.per_second, roof.unit),
        "median": _rate(roof.work / middle, roof.unit),
        "runs": len(roof.samples_s),
        "measured": roof.measured,
    }


def _rate(per_second: float, unit: str) -> str:
    name = {"bytes": "B/s", "flops": "FLOP/s"}[unit]
    scale, prefix = (1e12, "T") if per_second >= 1e12 else (1e9, "G")
    return f"{per_second / scale:.4g} {prefix}{name}"
