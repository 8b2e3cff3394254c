"""Calls on a driver that launches nothing; prints what was seen as JSON. A process of its own: it has one driver."""

import ctypes
import functools
import json
import sys

import torch
from conftest import inputs, mlp
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor
from triton_device import kernel_arguments

from nntk.bench.machine_code.absent_card.card import AbsentCard
from nntk.bench.machine_code.absent_card.evaluations import FAMILIES, WORKLOADS, Workload, call_of
from nntk.kernels.activations import Activation, Relu
from nntk.kernels.ahead_of_time import compile_ahead
from nntk.kernels.gpu import launches
from nntk.kernels.gpu.recorder import record, tensors_of
from nntk.kernels.gpu.rows import LaunchRow
from nntk.kernels.mlp import Layer
from nntk.kernels.perturb.paths import layer_paths
from nntk.kernels.perturb.triton import chunks, launch
from nntk.kernels.philox.triton import kernel as stream
from nntk.kernels.target import target_of

CARD = AbsentCard("sm_90")
ROUTES = [
    *(("gaussian", path) for path in ("step", "stationary", "staged", "stacked", "fused")), ("rademacher", "step"),
    ("flipout(3)", "step"), ("lowrank(1)", "step"), ("lowrank(2)", "step"),
]  # fmt: skip


def arguments_of(directions, path):
    """Arguments for differences of a small network in five chunks, in two groups."""
    model, x = mlp(20, 20 if path == "fused" else 70, 3, activation="tanh"), inputs(9, 20)
    scales = torch.full((9,), 0.1)
    return kernel_arguments(model, x, torch.arange(9), scales, directions, precision="bf16", path=path)


def differences(directions, path):
    """Those differences."""
    launch.plan_chunks = lambda *_: chunks.ChunkPlan(9, 2, 6, 0)
    launch.mlp_differences.plain(*arguments_of(directions, path))


def wrong_recorded_addresses(directions, path):
    """Arguments of repeated calls that are not where Triton would find them, and what was checked.

    Those that are in memory of their own are where their tensors are, and others inside the memory that they share.
    """
    _, recording = record(launch.mlp_differences.plain, arguments_of(directions, path))
    wrong, checked, run = [], [], LaunchRow.run

    def facts(argument):
        if isinstance(argument, TensorDescriptor):
            return argument.base.data_ptr(), *argument.shape, *argument.strides, *argument.block_shape, argument.padding
        return argument.data_ptr() if isinstance(argument, torch.Tensor) else argument

    def is_right(address, slots):
        memory, offset = slots[address.slot], address.offset
        if address.slot != address.view.slot:
            return 0 <= offset <= memory.nbytes
        return facts(address.at(memory.data_ptr() + offset)) == facts(address.tensor_of(slots))

    def check(row, slots, stream):
        run(row, slots, stream)
        for step in row.launches:
            checked.append(step.launch.kernel.__name__)
            wrong.extend((checked[-1], one.place) for one in step.addresses if not is_right(one, slots))

    LaunchRow.run = check
    before = CARD.counts
    recording(tensors_of(arguments_of(directions, path)))
    LaunchRow.run = run
    return (CARD.counts - before).launches, len(checked), wrong


def kept_launches(directions):
    """Launches and tensor maps of four calls with tensors without numbers, which all have the same address."""
    call, seen = call_of(Workload((64, 256, 256, 10), 256, 512), directions, 2**27), []
    for _ in range(4):
        before = CARD.counts
        call()
        counts = CARD.counts - before
        seen.append((counts.launches, counts.maps))
    return seen


def launches_by_triton(call):
    """The launches of a call, and how many of these were Triton's own."""
    run, by_triton, before = JITFunction.run, [], CARD.counts

    @functools.wraps(run)
    def counted(self, *arguments, **options):
        by_triton.append(self.__name__)
        return run(self, *arguments, **options)

    JITFunction.run = counted
    call()
    JITFunction.run = run
    return (CARD.counts - before).launches, len(by_triton)


def wrong_addresses(call):
    """Arguments of repeated launches that are not where their parts of the tensors are."""
    wrong, checked, repeat = [], [], launches.RepeatedLaunch.__call__

    def check(self, number, rows):
        repeat(self, number, rows)
        for place, part in self._parts:
            expected = part.tensor[number] if part.is_by_launch else part.tensor[rows]
            given = part.descriptor.base.data_ptr() if part.descriptor else self._direct.addresses[place]
            checked.append(given)
            if given != expected.data_ptr():
                wrong.append((self._kernel.__name__, place, number))

    launches.RepeatedLaunch.__call__ = check
    call()
    launches.RepeatedLaunch.__call__ = repeat
    return wrong, len(checked)


def planned_paths(workload, directions, budget):
    """The paths that the card is planned to take for the layers of a workload."""
    layers = [
        Layer(
            torch.empty(height, width, device="meta"), torch.empty(height, device="meta"),
            Activation() if height == workload.widths[-1] else Relu(), 2 * number, 2 * number + 1,
        )
        for number, (width, height) in enumerate(zip(workload.widths[:-1], workload.widths[1:], strict=True))
    ]  # fmt: skip
    target = target_of(torch.device("meta"))
    return layer_paths(layers, workload.inputs, directions, "odd", "difference", "bf16", budget, target).names


def taken_paths(workload, directions, budget):
    """The paths that a call takes, of which nothing is compiled."""
    paths, run, steps, fused = [], JITFunction.run, launch.LayerSteps, launch.evaluate_fused

    def layers(context, base_pass, chunk_samples, names):
        paths.append(tuple(names))
        return steps(context, base_pass, chunk_samples, names)

    def whole(context, *arguments):
        paths.append(("fused",) * len(context.layers))
        fused(context, *arguments)

    JITFunction.run = lambda self, *arguments, **options: None
    launch.LayerSteps, launch.evaluate_fused = layers, whole
    call_of(workload, directions, budget)()
    JITFunction.run, launch.LayerSteps, launch.evaluate_fused = run, steps, fused
    return paths


def refused_grids():
    """What the card says to grids of one program, and of too many along an axis."""
    out, ids = torch.empty(1, 128), torch.zeros(1, dtype=torch.int64)
    said = []
    for grid in ((1,), (1, 65_535), (1, 65_536), (1, 1, 65_536)):
        try:
            stream.write_words[grid](out, ids, 1, 2, 0, 128, 0, 128)
            said.append("")
        except RuntimeError as error:
            said.append(str(error))
    return said


def refused_maps():
    """Which tensor maps of bfloat16 the card refuses: a good one, and ones that break a rule each."""
    good = {"address": 2**20, "sizes": (64, 8), "stride": 128, "box": (64, 8), "swizzle": 3}
    bad = [{"address": 2**20 + 8}, {"sizes": (64, 0)}, {"sizes": (64, 2**32 + 1)}, {"stride": 24}, {"stride": 2**40},
           {"box": (64, 257)}, {"box": (4, 8)}, {"box": (128, 8)}, {"box": (64, 8), "swizzle": 2}]  # fmt: skip
    encode = ctypes.CDLL("libcuda.so.1").cuTensorMapEncodeTiled
    codes = []
    for change in ({}, *bad):
        rule = good | change
        arrays = [(ctypes.c_uint64 * 2)(*rule["sizes"]), (ctypes.c_uint64 * 1)(rule["stride"]),
                  (ctypes.c_uint32 * 2)(*rule["box"]), (ctypes.c_uint32 * 2)(1, 1)]  # fmt: skip
        bfloat16, space = 9, ctypes.create_string_buffer(128)
        codes.append(encode(space, bfloat16, 2, ctypes.c_void_p(rule["address"]), *arrays, 0, rule["swizzle"], 0, 0))
    return codes


def main():
    """All of it."""
    seen = {"routes": {}, "recorded": {}, "paths": []}
    for workload in (*WORKLOADS, Workload((64, 64, 64, 10), 256, 4096)):
        for family, budget in [*((family, 2**31) for family in FAMILIES), ("gaussian", 2**22)]:
            arguments = workload, family, budget
            seen["paths"].append((planned_paths(*arguments), taken_paths(*arguments)))
    seen["kept"] = [kept_launches(directions) for directions in FAMILIES]
    for directions, path in ROUTES:
        call = functools.partial(differences, directions, path)
        call()
        total, by_triton = launches_by_triton(call)
        seen["routes"][f"{directions} {path}"] = total, by_triton, *wrong_addresses(call)
        seen["recorded"][f"{directions} {path}"] = total, *wrong_recorded_addresses(directions, path)
    before = CARD.counts
    compile_ahead(functools.partial(differences, "gaussian", "step"))
    seen["ahead"] = (CARD.counts - before).launches
    seen["grids"], seen["maps"] = refused_grids(), refused_maps()
    json.dump(seen, sys.stdout)


if __name__ == "__main__":
    main()
