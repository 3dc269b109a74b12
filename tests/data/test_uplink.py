"""Transfers beside the computation, with a stand-in for a stream that works only when it is waited for."""

import numpy as np
import pytest
import torch

from dist_train.data.batch import Transfer
from dist_train.data.levels import normalise
from dist_train.data.uplink import Uplink

CPU = torch.device("cpu")


class LateLane:
    """Works off what was queued, in order, only as far as somebody waits for it."""

    def __init__(self):
        self.queue = []
        self.waits = 0

    def submit(self, work):
        ticket = _Ticket(self, work)
        self.queue.append(ticket)
        return ticket


class _Ticket:
    def __init__(self, lane, work):
        self._lane, self._work, self.made = lane, work, None

    def take(self):
        while self.made is None:
            done = self._lane.queue.pop(0)
            done.made = done._work()
        return self.made

    def wait(self):
        self._lane.waits += self.made is None
        self.take()


def drawn(number, samples=5):
    generator = np.random.default_rng(number)
    labels = torch.from_numpy(generator.integers(0, 99, samples))
    return labels, torch.from_numpy(generator.integers(0, 256, (samples, 3, 7, 7), dtype=np.uint8))


def test_what_is_sent_arrives_though_the_callers_memory_changes_at_once_and_transfers_are_late():
    lane = LateLane()
    uplink, reused = Uplink(CPU, lane), drawn(0)
    tickets = []
    for number in range(8):
        for memory, fresh in zip(reused, drawn(number), strict=True):
            memory.copy_(fresh)
        tickets.append(uplink.send(reused, lambda near: [near[0], normalise(near[1])]))
    assert lane.waits == 5, "a slot is waited for only when it comes to its turn again"
    for number, ticket in enumerate(tickets):
        labels, pictures = drawn(number)
        near_labels, near_pictures = ticket.take()
        assert torch.equal(near_labels, labels)
        assert torch.equal(near_pictures, normalise(pictures))


def test_pinned_memory_is_allocated_once_unless_batches_grow():
    uplink = Uplink(CPU, LateLane())
    places = set()
    for number, samples in enumerate([6, 4, 6, 6, 5, 6]):
        uplink.send(drawn(number, samples), list).take()
        places |= {slot.data_ptr() for slot in uplink._slots if slot.numel()}
    assert len(places) == 3 + 1, "three slots, of which one was too small at first"


@pytest.mark.parametrize("views", [1, 2])
def test_a_batch_by_the_uplink_is_the_batch_without(views):
    labels, pictures = drawn(1)
    rest = [labels.numpy(), np.arange(5), np.zeros(5, np.int64)] + [pictures.flip(0).numpy()] * (views - 1)
    plain, sent = Transfer(CPU), Transfer(CPU)
    sent._uplink = Uplink(CPU, LateLane())
    for one, other in zip(plain(pictures.numpy(), *rest), sent(pictures.numpy(), *rest), strict=True):
        assert one is other is None or torch.equal(one, other)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_on_a_gpu_are_those_of_the_cpu_while_the_gpu_is_busy_and_nothing_waits():
    device = torch.device("cuda", torch.cuda.current_device())
    near, here = Transfer(device), Transfer(CPU)
    busy = torch.randn(4096, 4096, device=device)
    rest = [np.arange(64), np.arange(64), np.zeros(64, np.int64)]
    held = []
    for number in range(8):
        pictures = drawn(number, 64)[1].numpy()
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(20):
            busy = (busy @ busy).clamp_(-1, 1)
        batch = near(pictures, *rest)
        held.append((batch.images.sum(dtype=torch.float64), batch.images.clone(), batch.labels))
        del batch
        torch.cuda.set_sync_debug_mode("default")
    for number, (total, images, labels) in enumerate(held):
        expected = here(drawn(number, 64)[1].numpy(), *rest)
        assert torch.equal(labels.cpu(), expected.labels)
        torch.testing.assert_close(images.cpu(), expected.images, rtol=0, atol=1e-6)
        assert float(total) == pytest.approx(float(images.sum(dtype=torch.float64)))
