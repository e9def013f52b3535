"""A computation on tensors of fixed shapes, recorded once as a CUDA graph and replayed: one launch instead of thousands."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
Compute = Callable[..., Tensor]


def recorded(compute: Callable[[], T]) -> Callable[[], T]:
    """`compute` as a CUDA graph: warmed up on a stream of its own, recorded once. Each call gives the same answer, its tensors with new values."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            compute()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Other threads may train on the same card meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        answer = compute()

    def replay() -> T:
        graph.replay()
        return answer

    return replay


class Replays:
    """What has been recorded, by the shapes of what goes in.

    Args:
        record: turns a call without arguments into one that repeats it.
    """

    def __init__(self, record: Callable[[Callable[[], Tensor]], Callable[[], Tensor]] = recorded) -> None:
        self._record = record
        self._made: dict[Hashable, tuple[list[Tensor | None], Callable[[], Tensor]]] = {}

    def __call__(self, compute: Compute, tensors: Sequence[Tensor | None], kind: Hashable = None) -> Tensor:
        """What `compute` makes of these tensors; valid until the next call.

        Args:
            compute: does the same on the same memory whenever `kind` and the shapes are the same.
            tensors: on the device; copied to where the recorded computation reads them.
        """
        key = (kind, *(None if t is None else (t.shape, t.dtype, t.stride()) for t in tensors))
        if key not in self._made:
            held = [None if t is None else t.clone() for t in tensors]
            self._made[key] = held, self._record(lambda: compute(*held))
        held, replay = self._made[key]
        for place, tensor in zip(held, tensors, strict=True):
            if place is not None and tensor is not None:
                place.copy_(tensor)
        return replay()
