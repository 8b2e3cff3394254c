"""Kernels that a new version of Triton is tried at: each at least once, in the configurations nearest to a limit."""

from collections.abc import Iterable

from nntk.bench.machine_code.catalogue import Task

SAMPLE = {
    "sm_90": (
        # The random stream, weights and attention: one case of each kernel.
        "write_noise signs fp32",
        "write_vectors normals",
        "write_rank_one bf16 16 16 1",
        "write_words",
        "unperturbed_layer operands relu",
        "sort_by_base",
        "assign_bases",
        "form fp32 64",
        "sum_squares padded wide",
        "reduce_weights power from cauchy",
        "write_weights power from cauchy",
        "statistics given pairs",
        "weights given pairs",
        "scores dot",
        "project signs",
        # More than 250 registers, a budget of instructions, or a spill under one of the versions before.
        "rank_update given pairs diagonal all 128 x 128",
        "rank_update rows trace of one triangle 128 x 128",
        "layer_pair diagonal given symmetric last 8192",
        "layer_step gaussian bf16 first gelu 1024x1024x2048",
        "layer_step rademacher bf16 hidden gelu 1024x1024x2048",
        "layer_step flipout bf16 first gelu 1024x1024x2048",
        "layer_step gaussian fp32 hidden gelu 1024x1024x2048",
        "stacked_step bf16 hidden gelu 1024x1024x2048",
        "stationary_step gaussian bf16 hidden gelu 256",
        "small_mlp rademacher fp32 gelu 64-64-64-64-64 none",
        "project(64) fp32",
    ),
    "sm_80": (
        "rank_update given pairs full all 64 x 64",
        "layer_step none tf32 hidden gelu 1024x1024x2048",
        "layer_step lowrank(64) fp32 hidden gelu 1024x1024x2048",
        "layer_pair full given symmetric last 8192",
        "project(64) fp32",
    ),
    "sm_100": ("statistics given pairs", "layer_step gaussian bf16 hidden gelu 1024x1024x2048"),
    "sm_120": ("layer_step rademacher fp32 hidden gelu 1024x1024x2048",),
}
"""Names of the cases by architecture. Compiling them takes a tenth of the time that all cases take."""


def sampled(tasks: Iterable[Task]) -> list[Task]:
    """Return the tasks of the sample."""
    return [task for task in tasks if task.case in SAMPLE.get(task.arch, ())]
