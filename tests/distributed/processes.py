"""Ranks of a group, each a process of its own, for tests: one set of processes runs many checks."""

import importlib
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import traceback
import warnings
from datetime import timedelta
from pathlib import Path


def run(module, functions, size, timeout=200.0, **options):
    """Run functions of a module one after another on all ranks of a new group.

    Args:
        module: Name of the module; its functions are called as ``function(rank, size, **options)``.
        functions: Names of the functions.
        size: Number of ranks.
        timeout: Timeout of the group in seconds.
        options: Further arguments.

    Returns:
        For each rank a dictionary from the name of a function to what it returned or to the text of its error; a rank
        that was killed has none for what it did not finish.
    """
    # Processes are forked from one that has imported everything, and has computed nothing. It finds what it imports by
    # its environment.
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, sys.path)))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["laws", "failures"])
    with tempfile.TemporaryDirectory() as folder:
        arguments = (module, functions, size, Path(folder), timeout, options)
        processes = [context.Process(target=_work, args=(rank, *arguments)) for rank in range(size)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(500)
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
                process.join()
        files = [Path(folder) / f"{rank}.pickle" for rank in range(size)]
        return [pickle.loads(file.read_bytes()) if file.exists() else {} for file in files]


def _work(rank, module, functions, size, folder, timeout, options):
    """Run the functions on one rank."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch.*")
    warnings.filterwarnings("ignore", message="the weights leave")
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size, timeout=timedelta(seconds=timeout)
    )
    functions = [(name, getattr(importlib.import_module(module), name)) for name in functions]
    results = {}
    for name, function in functions:
        try:
            results[name] = function(rank, size, **options)
        except BaseException as error:
            results[name] = f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-6)}"
        (folder / f"{rank}.pickle").write_bytes(pickle.dumps(results))
        if isinstance(results[name], str):
            break  # The ranks may be out of step.
    # Destroying a group waits for others, of which a test may have ended one.
    os._exit(0)
