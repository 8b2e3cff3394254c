"""Chunks of one size submitted as one recording: a network's few short launches would wait for the host each time."""

import torch
from torch import Tensor

from nntk.kernels.perturb.layers import evaluate_layers
from nntk.kernels.perturb.operands import Call, Unmoved

_WORTHWHILE = 4
"""Chunks from which on recording one, which takes about as long as submitting one, is worth it."""


class Recorded:
    """``evaluate_layers`` for the chunks of some inputs.

    The first chunk is evaluated as it is, which compiles what it needs; the second is recorded, in a CUDA graph, and
    replayed for every other of its size. Its result is overwritten by the next. Where the caller records all of it, or
    there is no GPU, chunks are evaluated one by one.

    Args:
        call: What all chunks share.
        unmoved: The unperturbed pass of the inputs.
        chunks: How many there will be.
    """

    def __init__(self, call: Call, unmoved: Unmoved, chunks: int) -> None:
        self._call, self._unmoved, self._worthwhile, self._seen = call, unmoved, chunks >= _WORTHWHILE, 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, rows: Tensor, scales: Tensor) -> Tensor:
        """The differences of some displacements; see ``evaluate_layers``."""
        self._seen += 1
        alone = not self._worthwhile or rows.device.type != "cuda" or torch.cuda.is_current_stream_capturing()
        if alone or self._seen == 1 or (self._graph is not None and len(rows) != len(self._rows)):
            return evaluate_layers(self._call, self._unmoved, rows, scales)
        if self._graph is None:
            self._record(rows, scales)
        assert self._graph is not None, "it was recorded"
        self._rows.copy_(rows)
        self._scales.copy_(scales)
        self._graph.replay()
        return self._out

    def _record(self, rows: Tensor, scales: Tensor) -> None:
        """Record a chunk of this size; nothing runs."""
        self._rows, self._scales = rows.clone(), scales.clone()
        with torch.cuda.device(rows.device):
            here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
            aside.wait_stream(here)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.stream(aside):
                self._graph.capture_begin(capture_error_mode="thread_local")
                try:
                    self._out = evaluate_layers(self._call, self._unmoved, self._rows, self._scales)
                finally:
                    self._graph.capture_end()
            here.wait_stream(aside)
