"""Memory is planned before a call begins, and what does not fit is refused with what would."""

import logging
from types import SimpleNamespace

import pytest
import torch
from conftest import inputs, mlp
from triton_device import Allocated

from nntk import Attention, NonlocalNTK
from nntk.estimators import memory
from nntk.kernels import target
from nntk.kernels.perturb import config

GIB = 2**30


def made(**settings):
    """A kernel of two outputs."""
    return NonlocalNTK(mlp(3, 8, 2), **{"samples": 512, **settings})


@pytest.fixture
def machine(monkeypatch):
    """A machine with so much free memory."""

    def of(free):
        for module in ("nntk.estimators.memory", "nntk.estimators.plan"):
            monkeypatch.setattr(f"{module}.free_bytes", lambda device: free)

    return of


@pytest.mark.parametrize(("outputs", "factor"), [("trace", 1), ("mean", 1), ("diagonal", 2), ("full", 4)])
def test_a_plan_counts_the_kernel(outputs, factor):
    """Its entries, of inputs with themselves and with others."""
    kernel = made(outputs=outputs)
    assert kernel.plan(inputs(7, 3)).result == kernel(inputs(7, 3)).nbytes == 7 * 7 * 4 * factor
    assert kernel.plan(inputs(7, 3), inputs(5, 3)).result == kernel(inputs(7, 3), inputs(5, 3)).nbytes


@pytest.mark.parametrize(
    "settings",
    [{}, {"weights": Attention()}, {"estimator": "plugin"}, {"estimator": "unbiased", "outputs": "full"}],
    ids=["energy", "attention", "plugin", "unbiased"],
)
def test_a_plan_bounds_what_is_allocated(settings):
    """The bound holds for differences in chunks, for all differences at once, and for their products."""
    kernel, x = made(max_memory=2**22, **settings), inputs(300, 3)
    with torch.no_grad(), Allocated() as allocated:
        kernel(x)
    plan = kernel.plan(x)
    # Making float64 of the float32 differences, and of the kernel, is the largest of what a plan does not itemise.
    assert allocated.peak <= plan.total + 2 * (plan.held + plan.result)
    assert plan.displacements == (min(512, max(64, 2**22 // (300 * (120 if settings.get("weights") else 32))))
                                  if "estimator" not in settings else 512)  # fmt: skip


def test_a_plan_is_for_reading(machine, caplog):
    """It states the bytes of each part and the free memory; it is logged when a kernel begins."""
    machine(64 * GIB)
    said = str(made().plan(torch.zeros(10**5, 3)))
    assert said == (
        "112 GiB of 64 GiB that are free: the kernel 37.3 GiB and its sums 74.5 GiB, copies of inputs and model 192 B, "
        "differences 195 MiB (64 of 512 displacements at a time), evaluation 128 MiB; by layers, direct, fp32: The "
        "model is an MLP of known layers."
    )
    machine(None)
    with caplog.at_level(logging.INFO, logger="nntk"):
        made()(inputs(4, 3))
    (message,) = caplog.messages
    assert str(made().plan(inputs(4, 3))).startswith(message) and "free" not in message


def test_what_does_not_fit_is_refused(machine):
    """Before any work; the message says what would fit."""
    machine(GIB)
    with pytest.raises(MemoryError, match=r"makes it take 112 GiB, and 1 GiB are free. kernel.operator\(x\)"):
        made()(torch.zeros(10**5, 3))
    with pytest.raises(MemoryError, match="displacements take 1.91 GiB, and 1 GiB are free. Fewer inputs"):
        made().differences(torch.zeros(10**6, 3)[:500_000])


def test_a_million_inputs_by_an_operator():
    """Products and the diagonal of a kernel that has 10^12 entries, within the budget and a few vectors."""
    kernel, x = NonlocalNTK(mlp(2, 4, 1), samples=8, max_memory=2**25), torch.rand(10**6, 2)
    operator, v = kernel.operator(x), torch.ones(10**6)
    with torch.no_grad(), Allocated() as allocated:
        product = operator @ v
    assert allocated.peak < 2**25 + 5 * 8 * 10**6
    few = slice(0, 10**6, 10**5)
    total = sum((kernel(x[few], x[start : start + 50_000]).double().sum(1) for start in range(0, 10**6, 50_000)), 0)
    torch.testing.assert_close(product[few].double(), total, rtol=1e-4, atol=1e-4)


def test_free_memory_is_what_the_machine_says(tmp_path, monkeypatch):
    """The lesser of the machine's and its container's counts; cached files count as free."""
    meminfo, cgroup = tmp_path / "meminfo", tmp_path / "cgroup"
    cgroup.mkdir()
    monkeypatch.setattr(memory, "_MEMINFO", meminfo)
    monkeypatch.setattr(memory, "_CGROUP", cgroup)
    cpu = torch.device("cpu")
    assert memory.free_bytes(cpu) is None
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:    8 kB\n")
    assert memory.free_bytes(cpu) == 8192
    (cgroup / "memory.max").write_text("max\n")
    assert memory.free_bytes(cpu) == 8192
    (cgroup / "memory.max").write_text("5000\n")
    (cgroup / "memory.current").write_text("3000\n")
    (cgroup / "memory.stat").write_text("anon 2000\ninactive_file 1000\n")
    assert memory.free_bytes(cpu) == 3000


def test_what_pytorch_holds_of_a_gpu_is_free(monkeypatch):
    """A kernel that fitted fits again, though its memory was not given back to the machine."""
    for name, size in (("mem_get_info", (GIB, 8 * GIB)), ("memory_reserved", 6 * GIB), ("memory_allocated", GIB)):
        monkeypatch.setattr(torch.cuda, name, lambda device, size=size: size)
    assert memory.free_bytes(torch.device("cuda")) == 6 * GIB


@pytest.mark.parametrize(
    ("whole", "budget"), [(80 * GIB, 2 * GIB), (4 * GIB, GIB // 4), (0, GIB // 4)], ids=["80 GiB", "4 GiB", "unknown"]
)
def test_the_default_budget_follows_the_card(monkeypatch, whole, budget):
    """A fortieth of a GPU's whole memory, at least 256 MiB; the CPU has its own, and a chosen budget stays."""
    monkeypatch.setattr(config, "memory_of", lambda device: whole)
    default, chosen = made().settings, made(max_memory=2**21).settings
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert default.budget(cuda) == budget and default.budget(cpu) == 2**27
    assert chosen.budget(cuda) == chosen.budget(cpu) == 2**21


def test_the_memory_of_a_card_is_all_of_it(monkeypatch):
    """What other processes hold of it does not change a kernel's chunks; without a card nothing is asked."""
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert target.memory_of(cuda) == target.memory_of(torch.device("cpu")) == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 * GIB))
    assert target.memory_of(cuda) == 80 * GIB
