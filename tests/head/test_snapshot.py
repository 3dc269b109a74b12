"""Snapshots of tables and of a head that goes on training. Tier 1: no ranks, no devices."""

from threading import Thread

import pytest
import torch

from dist_train.head import Head, HeadConfig, snapshot
from dist_train.head.snapshot import TableSnapshot

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of few rows, so that changes come between them."""
    monkeypatch.setattr(snapshot, "_BLOCK_BYTES", 64)


def test_rows_changed_before_during_and_after_the_copying_are_copied_as_they_were():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        table = torch.randn(257, 4, generator=generator)
        expected = table.clone()
        taken = TableSnapshot(table)
        filling = Thread(target=taken.fill)
        for number in range(50):
            if number == 5:
                filling.start()
            rows = torch.randperm(257, generator=generator)[:13]
            taken.keep(rows)
            table[rows] = float(number)
        filling.join()
        assert taken.complete
        assert torch.equal(taken.copy, expected)
        assert not torch.equal(table, expected)


def test_only_rows_that_are_not_copied_yet_are_copied_before_a_change(monkeypatch):
    taken = TableSnapshot(torch.zeros(8, 4))
    copied = []
    monkeypatch.setattr(taken, "_take", lambda rows, take=taken._take: (copied.extend(rows.tolist()), take(rows)))
    taken.keep(torch.tensor([6, 2]))
    taken.keep(torch.tensor([2, 3]))
    taken.fill()
    taken.keep(torch.tensor([5]))
    assert copied[:3] == [6, 2, 3]
    assert sorted(copied) == sorted(set(copied))


def step(head, generator):
    embeddings = torch.randn(24, 8, generator=generator, requires_grad=True)
    head(embeddings, torch.randint(0, 500, (24,), generator=generator)).backward()
    head.step(0.5)


@pytest.mark.parametrize("storage", ["device", "host", "mmap"])
@pytest.mark.parametrize("rate", [0.1, 1.0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["sgd", "rowwise_adagrad"])
def test_a_head_is_saved_as_it_was_while_it_trains_on(storage, rate, dtype, optimizer, tmp_path):
    config = HeadConfig(
        storage=storage,
        storage_dir=tmp_path if storage == "mmap" else None,
        sample_rate=rate,
        dtype=dtype,
        optimizer=optimizer,
        margin="curricularface",  # has a state of its own
    )
    heads = [
        Head(config.model_copy(update={"storage_dir": tmp_path / name}) if storage == "mmap" else config,
             500, 8, group=None, rank=0, world_size=1, device=CPU, seed=1)
        for name in ("observed", "undisturbed")
    ]  # fmt: skip
    generators = [torch.Generator().manual_seed(2) for _ in heads]
    for head, generator in zip(heads, generators, strict=True):
        for _ in range(3):
            step(head, generator)
    expected = {name: value.clone() for name, value in heads[0].state_dict().items()}

    taken = heads[0].snapshot()
    filling = Thread(target=taken.fill)
    for number in range(6):
        if number == 2:
            filling.start()
        for head, generator in zip(heads, generators, strict=True):
            step(head, generator)
    filling.join()

    assert taken.state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(taken.state[name], value), name
    taken.close()
    for name, value in heads[1].state_dict().items():  # and training is what it would have been
        assert torch.equal(heads[0].state_dict()[name], value), name
    assert not torch.equal(heads[0].state_dict()["centers"], expected["centers"])
    for head in heads:
        head.close()
