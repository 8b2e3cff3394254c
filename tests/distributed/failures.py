"""What happens on every rank when one of them differs, fails, stops answering, or is killed."""

import os
import signal
import time

import torch
from conftest import inputs, mlp
from laws import model_of

import nntk
from nntk.distributed import RankError, Sharded, matrix_file, write_kernel
from nntk.distributed import inputs as shared_inputs


def message_of(function):
    """Return the kind and the text of the error of a call."""
    try:
        function()
    except Exception as error:
        return type(error).__name__, str(error)
    return "no error", ""


def differences_between_ranks(rank, size):
    """Return the errors of ranks that differ from rank 0 in one thing; the last rank is the other one."""
    is_other = rank == size - 1
    x, settings = inputs(5, 3), {"samples": 20}
    relu = torch.nn.Sequential(model_of(torch.float32)[0], torch.nn.ReLU(), model_of(torch.float32)[2])

    def call(over="displacements", model=None, x=x, deterministic=False, method=None, **changed):
        model = model_of(torch.float32) if model is None else model
        kernel = Sharded(nntk.NonlocalNTK(model, **{**settings, **changed}), over, deterministic=deterministic)
        return message_of(lambda: (method or Sharded.__call__)(kernel, x))

    other = {
        "parameters of the model": {"model": mlp(3, 6, 2, seed=7)},
        "model": {"model": relu},
        "seed": {"seed": 1},
        "gamma": {"gamma": 0.2},
        "samples": {"samples": 21},
        "estimator": {"estimator": "plugin"},
        "weights": {"weights": nntk.FixedKernel("cauchy")},
        "x": {"x": inputs(5, 3, seed=9)},
        "deterministic": {"deterministic": True},
        "step": {"method": Sharded.diagonal},
        "propagation": {"propagation": "direct"},
    }
    messages = {name: call(**(changed if is_other else {})) for name, changed in other.items()}
    messages["column"] = call("inputs", x=x.double() if is_other else x)
    versions = dict(shared_inputs.versions(torch.device("cpu")))
    shared_inputs.versions = lambda device: {**versions, "version of nntk": "9.9"} if is_other else versions
    messages["version of nntk"] = call()
    shared_inputs.versions = lambda device: versions
    messages["nothing"] = call()
    return messages


def errors_on_ranks(rank, size):
    """Return the errors of ranks whose inputs are bad: of one, and of all."""
    kernel = Sharded(nntk.NonlocalNTK(model_of(torch.float32), samples=20), "inputs")
    bad = torch.full((5, 3), torch.nan)
    one = message_of(lambda: kernel(bad if rank == 1 else inputs(5, 3)))
    every = message_of(lambda: kernel(bad))
    large = nntk.NonlocalNTK(model_of(torch.float32), samples=20)
    with torch.no_grad():
        large.model[2].weight.fill_(3e38)
    infinite = message_of(lambda: Sharded(large, "inputs")(inputs(5, 3) if rank else inputs(5, 3) * 0))
    return {"one": one, "every": every, "infinite": infinite, "after": message_of(lambda: kernel(inputs(5, 3)))}


def a_stalled_rank(rank, size):
    """Return the errors and the time after which ranks have them, where the last one sleeps beyond the timeout."""
    kernel = Sharded(nntk.NonlocalNTK(model_of(torch.float32), samples=20), timeout=4.0)
    kernel(inputs(5, 3))
    start = time.monotonic()
    if rank == size - 1:
        time.sleep(5)
    error = message_of(lambda: kernel(inputs(5, 3)))
    return error, time.monotonic() - start, message_of(lambda: kernel(inputs(5, 3)))


def a_killed_rank(rank, size):
    """Return the errors where one rank is killed while all compute."""
    kernel = Sharded(nntk.NonlocalNTK(model_of(torch.float32), samples=20))
    kernel(inputs(5, 3))
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return message_of(lambda: kernel(inputs(5, 3)))


def writing(rank, size, path, victim, number, after):
    """Write a matrix; one rank is killed before or after it enters its tile of a number into its journal."""
    written, original = [], matrix_file.write_journal

    def write_journal(where, identity, checksums, of=None):
        if of is not None and rank == victim and len(written) == number and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        original(where, identity, checksums, of)
        if of is not None:
            written.append(max(index for index, value in enumerate(checksums) if value is not None))
            if rank == victim and len(written) == number + 1 and after:
                os.kill(os.getpid(), signal.SIGKILL)

    matrix_file.write_journal = write_journal
    kernel = Sharded(nntk.NonlocalNTK(model_of(torch.float32), samples=16))
    try:
        write_kernel(path, kernel, inputs(60, 3), tile=3)
        error = None
    except RankError as raised:
        error = (raised.ranks, str(raised))
    return written, error
