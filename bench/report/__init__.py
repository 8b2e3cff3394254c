"""Reports of runs: Markdown, and one HTML page with plots that opens without a network."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from nntk.bench.report import content, html, markdown, plots
from nntk.files.output import write_text
from nntk.files.paths import file_to_replace, folder_to_write

HELP = """\
Write what runs measured as a page to read: DIR/report.html, one self-contained file with tables and plots that opens
without a network, DIR/report.md, the same as Markdown, and the plots that the latter shows, DIR/plots/*.svg.

A section becomes a table, with units in its headers; a row that failed shows why, and no speed. Sections that have what
a plot needs get one:
  roofline     FLOP/s over FLOP/byte under the roofs that the run measured   (flops, bytes and time; roofs)
  scaling      time and peak memory along N, d, C or M, with fitted powers   (axis and value; time or peak memory)
  error        of the kernel over gamma and over M, beside the prediction    (error, at two or more gamma or M)
  differences  error over gamma, propagated and subtracted                   (both errors, at two or more gamma)
  speed-up     bars from the baseline                                        (speed-ups of two or more cases)
Equal input gives equal files, byte for byte.
"""

EPILOG = """\
examples:
  nntk-bench report results/cpu-amd-epyc/quick-20261124-000917-434510.json          one run, into ./report
  nntk-bench report results/cpu-amd-epyc/*.json --output /tmp/epyc                  several runs on one page
  nntk-bench report results/nvidia-h200/gpu-*.json --output results/nvidia-h200     beside the results
  nntk-bench run --output /tmp/out && nntk-bench report /tmp/out/*/quick-*.json     measure, then read

PATH is a JSON that nntk-bench run wrote, finished or not; the report says if it was not. Files of an earlier report in
DIR are replaced. Plots need matplotlib, which nntk[bench] brings.
Exit status: 0 written, 2 a file is missing or is no run (the message names the file and the key).
"""

DEFAULT_OUTPUT = Path("report")
_PAGES = ("report.html", "report.md")


def run(paths: Sequence[Path], output: Path | None, console: Console) -> int:
    """Write the report of one or more runs.

    Args:
        paths: Their files.
        output: Folder for the report, made if missing; ``DEFAULT_OUTPUT`` if None.
        console: Told what was written.

    Returns:
        The exit status, 0.

    Raises:
        ValueError: If a file cannot be used, names the file and the key; or if matplotlib is missing.
        OSError: If the folder cannot be written. This is found before a run is read.
    """
    if not paths:
        raise ValueError("a report needs at least one run: the path of a JSON that nntk-bench run wrote")
    folder = folder_to_write(DEFAULT_OUTPUT if output is None else output, "argument --output:")
    folder_to_write(folder / "plots", "argument --output:")
    for name in _PAGES:
        file_to_replace(folder / name, "argument --output:")
    measurements = [content.read(path) for path in paths]
    drawn = [plots.plots(measurement, number) for number, measurement in enumerate(measurements, 1)]
    files = {plot.name: f"plots/{plot.name}.svg" for group in drawn for plot in group}
    for plot in (plot for group in drawn for plot in group):
        write_text(folder / files[plot.name], plot.file)
    write_text(folder / "report.md", markdown.page(measurements, drawn, files))
    write_text(folder / "report.html", html.page(measurements, drawn))
    rows = sum(len(measurement.run.rows) for measurement in measurements)
    console.print(f"{rows} rows and {len(files)} plots of {len(paths)} run{'s' * (len(paths) > 1)}:", highlight=False)
    for name in _PAGES:
        console.print(f"  {folder / name}", highlight=False, soft_wrap=True)
    return 0
