"""Work on fixed memory, recorded once and replayed: what a CUDA graph asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch


class Replayed:
    """Calls a function; on CUDA, from the second call on, as one CUDA graph.

    A graph is launched as a whole, so that the Python between its kernels costs nothing. The first
    call runs as it is: libraries choose their algorithms and memory in it. On any other device
    every call does.

    Not run on a GPU yet: the tests cover the code that runs on a CPU.

    Args:
        function: reads and writes the same tensors in every call, waits for nothing, and takes
            every random number from `generators`.
        device: of its tensors.
        generators: on that device; each replay continues their streams.
    """

    def __init__(
        self,
        function: Callable[[], None],
        device: torch.device,
        generators: Sequence[torch.Generator],
    ) -> None:
        self._function, self._generators = function, generators
        self._is_recording = device.type == "cuda"
        self._was_called = False
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Does the work once."""
        if not self._is_recording or not self._was_called:
            self._was_called = True
            self._function()
            return
        if self._graph is None:
            graph = torch.cuda.CUDAGraph()
            for generator in self._generators:
                graph.register_generator_state(generator)
            with torch.cuda.graph(graph):  # records, and runs nothing
                self._function()
            self._graph = graph
        self._graph.replay()
