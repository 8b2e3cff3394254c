"""Measured roofs: kept between calls, for the device and software that they were measured with."""

import io
import json

import pytest
import torch
from rich.console import Console

from nntk.bench.cli import app as cli
from nntk.bench.measure import roofline
from nntk.files.output import Output

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Roofs of small work, in a cache of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    calls = []

    def roofs(device, duration=1.0, only=None):
        calls.append(device)
        yield roofline.Roof("copy", "bytes", 4e9, (0.5, 0.25, 1.0), "2026-01-01 00:00")
        yield roofline.Roof("fp32", "flops", 6e12, (2.0, 3.0, 4.0), "2026-01-01 00:00")

    monkeypatch.setattr(roofline, "measure", roofs)
    return calls


def show(output=None, again=False):
    console = Console(file=io.StringIO(), width=120)
    assert roofline.run(CPU, again, output, console) == 0
    return console.file.getvalue()


def test_the_roof_is_the_fastest_run(small):
    """And is printed beside the median."""
    printed = show()
    assert "16 GB/s" in printed and "8 GB/s" in printed and "3 TFLOP/s" in printed and "2 TFLOP/s" in printed


def test_roofs_are_kept(small, tmp_path):
    """A second call measures nothing; --again does; a broken file is measured again."""
    first, second = show(), show(Output.at(tmp_path / "roofs.json"))
    assert len(small) == 1 and "--again measures" in second and "kept in" in first
    content = json.loads((tmp_path / "roofs.json").read_text())
    assert content["device"]["kind"] == "cpu" and content["roofs"][0]["samples_s"] == [0.5, 0.25, 1.0]
    show(again=True)
    roofline.cache_path(CPU).write_text("{")
    show()
    assert len(small) == 3


def test_a_roof_is_the_best_of_all_measurements(small, monkeypatch):
    """Each process measures once; what it finds, or finds when asked again, only raises what is kept."""
    monkeypatch.setattr(roofline, "_MEASURED_DEVICES", set())

    def rates():
        return {roof.name: roof.per_second for roof in roofline.roofs(CPU)}

    assert rates() == rates() == {"copy": 16e9, "fp32": 3e12} and len(small) == 1
    faster = roofline.Roof("fp32", "flops", 8e12, (1.0,), "2026-01-02 00:00")
    slower = roofline.Roof("copy", "bytes", 1e9, (1.0,), "2026-01-02 00:00")
    monkeypatch.setattr(roofline, "measure", lambda device, only: [faster, slower])
    roofline.remeasure(CPU, ("fp32",))
    assert rates() == {"copy": 16e9, "fp32": 8e12}


def test_the_command(small, capsys):
    """From the command line."""
    assert cli.main(["roofline", "--again"]) == 0 and "16 GB/s" in capsys.readouterr().out
    assert len(small) == 1


def test_other_software_has_other_roofs(monkeypatch):
    """Another PyTorch or another number of threads measures for itself."""
    here = roofline.cache_path(CPU)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert roofline.cache_path(CPU) != here


def test_roofs_of_this_machine(monkeypatch):
    """Copies and three precisions, in a few short runs; the setting of TF32 is put back."""
    before = torch.get_float32_matmul_precision()
    roofs = list(roofline.measure(CPU, duration=0.01, scale=8))
    assert [roof.name for roof in roofs] == ["copy", "read", "fp64", "fp32", "bf16"]
    assert all(len(roof.samples_s) >= 5 and roof.per_second > 1e6 for roof in roofs)
    assert torch.get_float32_matmul_precision() == before
