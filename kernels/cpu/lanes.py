"""Lanes: threads that take tasks from one list, each with products on its own thread alone.

A task is a whole chain of products and compiled kernels for one tile, so threads never wait for each other inside of
it: a thread that loses its core to another process delays its own tile alone. Noise is used by the thread that made it,
out of that core's cache. The results of a task do not depend on the number of lanes.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from queue import Empty, SimpleQueue
from threading import Barrier, Lock
from typing import TypeVar

import torch

Task = TypeVar("Task")

_lock = Lock()
_executor: ThreadPoolExecutor | None = None
_workers = 0


def run(tasks: Sequence[Task], start: Callable[[], Callable[[Task], None]], most: int, products: bool) -> None:
    """Run all tasks on as many threads as PyTorch uses, ``torch.get_num_threads()``.

    Args:
        tasks: Tasks, in the order in which they are begun.
        start: Function that each lane calls once; it returns the function that runs a task. What it allocates belongs
            to the lane and serves all of its tasks.
        most: Largest number of lanes, such as memory allows.
        products: True if tasks call PyTorch's products. On the caller's thread these would use all threads, and their
            last bits could depend on the number.
    """
    if len(tasks) == 1 and not products:
        start()(tasks[0])
        return
    queue: SimpleQueue[Task] = SimpleQueue()
    for task in tasks:
        queue.put(task)

    def lane() -> None:
        # The caller's modes belong to its thread. None of the results is part of a graph.
        with torch.inference_mode():
            work = start()
            try:
                for task in _taken(queue):
                    work(task)
            except BaseException:
                _empty(queue)
                raise

    threads = torch.get_num_threads()
    if threads == 1:
        lane()
        return
    executor = _start(threads)
    futures = [executor.submit(lane) for _ in range(min(threads, most, len(tasks)))]
    try:
        for future in futures:
            future.result()
    finally:
        # After an error or an interrupt no further task begins, and nothing of this call runs on.
        _empty(queue)
        wait(futures)


def _taken(queue: "SimpleQueue[Task]") -> Iterator[Task]:
    """Yield tasks until none is left."""
    while True:
        try:
            task = queue.get_nowait()
        except Empty:
            return
        yield task


def _empty(queue: "SimpleQueue[Task]") -> None:
    """Take all tasks without running them."""
    for _ in _taken(queue):
        pass


def _start(threads: int) -> ThreadPoolExecutor:
    """Return the threads of all calls, of which there are at least so many."""
    global _executor, _workers
    with _lock:
        if _executor is None or _workers < threads:
            _executor, _workers = ThreadPoolExecutor(threads, "nntk"), threads
            barrier = Barrier(threads)
            wait([_executor.submit(_use_one_thread, barrier) for _ in range(threads)])
            # The number that PyTorch gives to threads that start later is the caller's again.
            torch.set_num_threads(threads)
        return _executor


def _use_one_thread(barrier: Barrier) -> None:
    """Let products on this thread use it alone; the barrier sends one call to each thread."""
    # PyTorch sets the number of a thread when it is first asked for; only then does a number of the thread's own hold.
    torch.get_num_threads()
    torch.set_num_threads(1)
    barrier.wait()


def _forget_threads() -> None:
    """Start anew in a forked process, which has a copy of the pool but none of its threads."""
    global _executor, _workers, _lock
    _executor, _workers, _lock = None, 0, Lock()


os.register_at_fork(after_in_child=_forget_threads)
