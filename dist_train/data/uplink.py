"""The way of a batch to a GPU: pinned memory that is used again, and a stream beside the one that computes."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Protocol

import torch
from torch import Tensor

_SLOTS = 3  # batches: one that is computed on, one that is there, one on its way
_ALIGNMENT = 64  # bytes; views of one piece of memory begin where a kernel can read in its widest steps

Work = Callable[[], list[Tensor]]


class Ticket(Protocol):
    """Work that a lane has taken."""

    def wait(self) -> None:
        """Let the host wait until the work is done."""

    def take(self) -> list[Tensor]:
        """What the work gives, for the stream that computes from now on, which waits for it; the host does not."""


class Lane(Protocol):
    """Where a device works off transfers while it computes."""

    def submit(self, work: Work) -> Ticket:
        """Queue `work`, which allocates what it gives."""


class SideStream:
    """A CUDA stream of its own.

    Args:
        device: on which.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def submit(self, work: Work) -> "_Launched":
        """See `Lane`."""
        with torch.cuda.stream(self._stream):
            made = work()
            done = torch.cuda.Event()
            done.record()
        return _Launched(made, done, self._device)


class _Launched:
    """What has been queued on a side stream."""

    def __init__(self, made: list[Tensor], done: torch.cuda.Event, device: torch.device) -> None:
        self._made, self._done, self._device = made, done, device

    def wait(self) -> None:
        """See `Ticket`."""
        self._made = []
        self._done.synchronize()

    def take(self) -> list[Tensor]:
        """See `Ticket`."""
        made, self._made = self._made, []
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(self._done)
        for tensor in made:
            tensor.record_stream(stream)  # else its memory would be given out again while `stream` reads it
        return made


class Uplink:
    """Sends the tensors of a batch together, as one piece of bytes.

    The host copies them into a slot of pinned memory, which is free as soon as its last transfer is over: with several
    slots that is long past.

    Args:
        device: where they are wanted.
        lane: takes the transfers; None: a `SideStream`.
    """

    def __init__(self, device: torch.device, lane: Lane | None = None) -> None:
        self._device, self._lane = device, lane or SideStream(device)
        self._slots = [torch.empty(0, dtype=torch.uint8)] * _SLOTS
        self._under_way: list[Ticket | None] = [None] * _SLOTS
        self._next = 0

    def send(self, tensors: Sequence[Tensor], finish: Callable[[list[Tensor]], list[Tensor]]) -> Ticket:
        """Begin to send `tensors`, which may change once this returns.

        Args:
            tensors: on the host.
            finish: what is made of them on the device; the ticket gives that.
        """
        number = self._next
        self._next = (number + 1) % _SLOTS
        if (before := self._under_way[number]) is not None:
            before.wait()
        places, size = _places(tensors)
        if self._slots[number].numel() < size:
            self._slots[number] = torch.empty(size, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        staged = self._slots[number][:size]
        for tensor, part in zip(tensors, _views(staged, tensors, places), strict=True):
            part.copy_(tensor)
        like = [torch.empty_like(tensor, device="meta") for tensor in tensors]

        def work() -> list[Tensor]:
            near = torch.empty(size, dtype=torch.uint8, device=self._device).copy_(staged, non_blocking=True)
            return finish(_views(near, like, places))

        ticket = self._under_way[number] = self._lane.submit(work)
        return ticket


def _places(tensors: Sequence[Tensor]) -> tuple[list[int], int]:
    """Where each tensor begins in one piece of memory, in bytes, and how long that is."""
    places, end = [], 0
    for tensor in tensors:
        places.append(end)
        end += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    return places, end


def _views(memory: Tensor, like: Sequence[Tensor], places: Sequence[int]) -> list[Tensor]:
    """Parts of `memory` in the types and shapes of the tensors `like`, dense."""
    return [
        memory[start : start + prod(each.shape) * each.element_size()].view(each.dtype).view(each.shape)
        for each, start in zip(like, places, strict=True)
    ]
