"""Bad and odd input to the head on real ranks: every rank is told the same, and nothing is changed.

Tier 2 of the tests: gloo ranks on this machine, no accelerator.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from dist_train.errors import UserError, WorkError
from dist_train.head import Head, HeadConfig
from dist_train.runtime.lock import is_held
from tests.ranks import run_ranks

BATCH, DIM, CLASSES = 3, 8, 9


def build(rank: int, world_size: int, **settings) -> Head:
    config = HeadConfig(**settings)
    return Head(config, CLASSES, DIM, group=None, rank=rank, world_size=world_size, device=torch.device("cpu"), seed=5)


def offer(head: Head, embeddings: torch.Tensor, labels: torch.Tensor) -> str:
    try:
        head(embeddings.requires_grad_(), labels).backward()
        return "accepted"
    except (UserError, WorkError) as error:
        return f"{type(error).__name__}: {error}"


def bad_batches(rank: int, world_size: int) -> dict[str, str]:
    head = build(rank, world_size, margin="curricularface")
    before = {name: torch.as_tensor(head.class_centers()).clone() for name in ("centers",)}
    good = torch.randn(BATCH, DIM, generator=torch.Generator().manual_seed(rank))
    labels = torch.tensor([0, 4, 8])
    said = {}
    for name, label in (("beyond", 9), ("negative", -1)):
        wrong = labels.clone()
        if rank == 1:
            wrong[2] = label
        said[name] = offer(head, good.clone(), wrong)
    for name, value in (("nan", torch.nan), ("infinite", torch.inf)):
        wrong_embeddings = good.clone()
        if rank == 1:
            wrong_embeddings[1, 3] = value
        said[name] = offer(head, wrong_embeddings, labels)
    head.step(0.1)
    assert torch.equal(head.class_centers(), before["centers"])
    assert float(head.margin.state()["t"]) == 0.0
    said["afterwards"] = offer(head, good.clone(), labels)
    return said


def test_a_bad_batch_on_one_rank_is_refused_on_all_and_changes_nothing():
    ranks = run_ranks(2, bad_batches)
    assert ranks[0] == ranks[1]
    said = ranks[0]
    assert said["beyond"] == (
        "UserError: rank 1: label 9 at place 2 of the batch, but the head has 9 classes, labels 0 to 8"
    )
    assert said["negative"].startswith("UserError: rank 1: label -1 at place 2")
    for kind in ("nan", "infinite"):
        assert said[kind].startswith(
            "NonFiniteError: rank 1: embedding 1 of the batch is not finite (1 of 6 over all ranks)"
        )
    assert said["afterwards"] == "accepted"


def prepared(rank: int, world_size: int, directory: str) -> str:
    head = build(rank, world_size, storage="mmap", storage_dir=Path(directory))
    try:
        head.prepare(torch.tensor([0, 9 if rank else 1, 2]))
    except UserError as error:
        return str(error)
    return "accepted"


def test_prepare_refuses_labels_out_of_range_on_all_ranks(tmp_path):
    ranks = run_ranks(2, prepared, str(tmp_path))
    assert ranks[0] == ranks[1]
    assert ranks[0].startswith("rank 1: label 9 at place 1 of the batch")


def full_disk(rank: int, world_size: int, directory: str) -> str:
    path = Path(directory)
    if rank == 1:  # its file's place is taken by another shape
        (path / "centers-00001-of-00002").write_bytes(b"12345")
        (path / "centers-00001-of-00002.json").write_text('{"shape": [5, 1]}')
    try:
        build(rank, world_size, storage="mmap", storage_dir=path)
    except UserError as error:
        return f"{error}" + " and held" * is_held(path / f"rows-{rank:05d}-of-00002.lock")
    return "accepted"


def test_a_store_that_one_rank_cannot_open_stops_all_ranks_before_training(tmp_path):
    ranks = run_ranks(2, full_disk, str(tmp_path))
    assert ranks[0] == ranks[1]
    assert "rank 1: head.storage_dir" in ranks[0]
    assert "and held" not in ranks[0]
    assert "holds {'shape': [5, 1]}, expected {'shape': [4, 8]" in ranks[0]


def zeros(rank: int, world_size: int) -> tuple[float, np.ndarray, np.ndarray]:
    head = build(rank, world_size)
    head.class_centers()[0] = 0
    embeddings = torch.randn(BATCH, DIM)
    embeddings[0] = 0
    embeddings.requires_grad_()
    loss = head(embeddings, torch.tensor([0, 4, 8]))
    loss.backward()
    head.step(0.1)
    return float(loss), embeddings.grad.numpy(), head.class_centers().numpy()


def test_zero_vectors_give_finite_losses_and_gradients():
    for loss, gradient, centers in run_ranks(2, zeros):
        assert np.isfinite(loss)
        assert np.isfinite(gradient).all()
        assert np.isfinite(centers).all()
        assert (gradient[0] == 0).all()


def test_shapes_that_do_not_fit_are_refused():
    head = build(0, 1)
    with pytest.raises(UserError, match=r"embeddings \[3, 7\] and labels \[3\], expected \[B, 8\] and \[B\]"):
        head(torch.zeros(3, 7), torch.zeros(3, dtype=torch.int64))


def test_a_loss_without_gradient_covers_all_classes_and_leaves_no_trace():
    head, full = build(0, 1, sample_rate=0.3), build(0, 1)
    embeddings, labels = torch.randn(BATCH, DIM), torch.tensor([0, 4, 8])
    with torch.no_grad():
        assert float(head(embeddings, labels)) == float(full(embeddings, labels))
    before = head.class_centers().clone()
    head.step(0.1)
    assert torch.equal(head.class_centers(), before)


def test_forgotten_gradients_are_not_applied():
    head = build(0, 1)
    before = head.class_centers().clone()
    head(torch.randn(BATCH, DIM).requires_grad_(), torch.tensor([0, 4, 8])).backward()
    head.zero_grad()
    head.step(0.1)
    assert torch.equal(head.class_centers(), before)
