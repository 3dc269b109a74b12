"""A head that starts from another: rows and optimizer state by name, on other ranks, in other stores; new rows."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import normalize

from dist_train.config import RunConfig
from dist_train.data.levels import normalise
from dist_train.errors import WorkError
from dist_train.runtime.ranks import Ranks
from dist_train.start import turns
from dist_train.start.head import start_head
from tests.ranks import ranks_here, run_ranks
from tests.sets import picture, write_set
from tests.start.runs import DIM, build, recipe, write_names, write_run

OLD = [f"p{number}" for number in range(11)]
# In another order, three gone, five new; the new ones lie among the others.
NEW = ["n0", "p9", "p3", "n1", "p10", "p2", "p7", "p0", "n2", "p6", "n3", "p5", "n4"]
CARRIED = [(new, OLD.index(name)) for new, name in enumerate(NEW) if name in OLD]
FRESH = [new for new, name in enumerate(NEW) if name not in OLD]

# Head of the run, and what the new run's has other than it.
CASES: list[tuple[dict, dict]] = [
    ({"margin": "curricularface"}, {"storage": "host"}),
    ({"optimizer": "adamw", "dtype": "bfloat16", "storage": "host", "margin": "adaface"}, {"storage": "mmap"}),
    ({"optimizer": "rowwise_adagrad", "centers_per_class": 2, "storage": "mmap"}, {"storage": "device"}),
    ({"margin": "softmax", "dtype": "bfloat16"}, {"dtype": "float32"}),
    ({"optimizer": "adamw"}, {"dtype": "bfloat16"}),
    ({}, {"optimizer": "adamw"}),
    ({"margin": "adaface"}, {"margin": "arcface"}),
]
EMBED: list[tuple[dict, dict]] = [
    ({"storage": "host"}, {}),
    ({"margin": "softmax", "centers_per_class": 3, "optimizer": "adamw"}, {"dtype": "bfloat16"}),
]


def at(folder: Path, number: int, settings: dict) -> dict:
    return settings | ({"storage_dir": folder / "unused"} if settings.get("storage") == "mmap" else {})


def save(rank: int, world_size: int, folder: Path) -> list[dict]:
    found = []
    for number, (settings, _) in enumerate(CASES + EMBED):
        config = recipe(folder / f"run-{number}", folder / "gone", at(folder, number, settings))
        found.append(plain(write_run(config, OLD, rank, world_size)))
    return found


def plain(tables: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: value.float().numpy().copy() for name, value in tables.items()}


class Net(nn.Module):
    """As a backbone that is in training: in that mode it would drop numbers, and change its statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(3 * 32 * 32, DIM, bias=False), nn.BatchNorm1d(DIM), nn.Dropout(0.5)
        )
        nn.init.normal_(self.layers[1].weight, generator=torch.Generator().manual_seed(5))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


def load(rank: int, world_size: int, folder: Path) -> list[dict]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turns, "_MEET_EVERY_S", 0.0)  # after each piece, though ranks have unequally many
        patch.setattr("dist_train.start.head._BLOCK_BYTES", 80 * world_size)  # one row or some at a time
        patch.setattr("dist_train.start.new_rows._BLOCK_BYTES", 40 * world_size)
        return started_heads(rank, world_size, folder)


def started_heads(rank: int, world_size: int, folder: Path) -> list[dict]:
    ranks, found = ranks_here(rank, world_size), []
    for number, (settings, changes) in enumerate(CASES + EMBED):
        embeds = number >= len(CASES)
        start = {"head": folder / f"run-{number}", "new_rows": "embed" if embeds else "random"}
        start |= {"backbone": folder} if embeds else {}
        head_settings = at(folder, number, settings | changes)
        config = recipe(folder / f"new-{number}-{world_size}", folder / "set", head_settings, start)
        head = build(config, len(NEW), rank, world_size, seed=2)
        before = plain(head.tables())
        net = Net()
        figures = start_head(config, head, net, 32, ranks)
        assert net.training
        assert not int(net.layers[2].num_batches_tracked)
        state = plain(head.tables() | {f"margin.{name}": value for name, value in head.margin.state().items()})
        found.append(
            {"figures": figures, "state": state, "before": before, "dtype": str(head.tables()["centers"].dtype)}
        )
        head.close()
    return [*found, {"refusal": refusal(ranks, config)}]


def refusal(ranks: Ranks, config: RunConfig) -> str:
    """What a rank ends with when the last one's network is damaged."""
    net = Net()
    if ranks.rank == ranks.world_size - 1:
        net.layers[1].weight.data.fill_(torch.nan)
    head = build(config, len(NEW), ranks.rank, ranks.world_size)
    with pytest.raises((WorkError, SystemExit)) as caught:
        start_head(config, head, net, 32, ranks)
    head.close()
    return f"{type(caught.value).__name__} {caught.value}"


def whole(ranks: list[list[dict]], number: int, key: str | None = None) -> dict[str, np.ndarray]:
    parts = [rank[number] if key is None else rank[number][key] for rank in ranks]
    return {
        name: np.concatenate([part[name] for part in parts]) if value.ndim == 2 else value
        for name, value in parts[0].items()
    }


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """What two ranks have written, and what one and three ranks have made of it."""
    folder = tmp_path_factory.mktemp("start")
    # No picture shows the last identity, and one of n1's is damaged.
    labels = [11 if number // 4 == 12 else number // 4 for number in range(len(NEW) * 4)]
    write_set(folder / "set", classes=len(NEW), views=4, labels=labels)
    write_names(folder / "set", NEW)
    spoil(folder / "set", "000013.png")
    saved = run_ranks(2, save, folder)
    return saved, {1: [load(0, 1, folder)], 3: run_ranks(3, load, folder)}


def spoil(directory: Path, name: str) -> None:
    for tar in directory.glob("*.tar"):
        content = bytearray(tar.read_bytes())
        if (place := content.find(name.encode())) >= 0:
            content[place + 512 : place + 520] = bytes(8)
            tar.write_bytes(content)
            return
    raise AssertionError(f"{name} is in no tar")


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("number", range(len(CASES)))
def test_rows_and_state_are_carried_by_name_to_other_ranks_and_stores(started, number, world_size):
    saved, loaded = started
    source, found = whole(saved, number), whole(loaded[world_size], number, "state")
    before = whole(loaded[world_size], number, "before")
    new, old = (list(each) for each in zip(*CARRIED, strict=True))
    changes = CASES[number][1]
    for name, table in found.items():
        if table.ndim != 2:
            if "margin" not in changes:
                np.testing.assert_array_equal(table, source[name], err_msg=name)
            continue
        np.testing.assert_array_equal(table[FRESH], before[name][FRESH], err_msg=name)
        if name not in source or ("optimizer" in changes and name != "centers"):
            np.testing.assert_array_equal(table, 0)
        elif changes.get("dtype") == "bfloat16" and name != "updates":
            nearest = torch.from_numpy(source[name][old]).bfloat16().float().numpy()
            assert np.abs(table[new] - source[name][old]).max() <= 2**-7 * np.abs(source[name][old]).max()
            assert (table[new] != nearest).any(), "stochastic, as in training"
        else:
            np.testing.assert_array_equal(table[new], source[name][old], err_msg=name)
    figures = [rank[number]["figures"] for rank in loaded[world_size]]
    assert all(each == {"start/carried": 8, "start/new": 5, "start/gone": 3} for each in figures)


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("number", range(len(CASES), len(CASES) + len(EMBED)))
def test_new_rows_are_the_mean_embedding_of_their_pictures_at_the_carried_length(started, number, world_size):
    saved, loaded = started
    settings, changes = EMBED[number - len(CASES)]
    k = settings.get("centers_per_class", 1)
    old = whole(saved, number)["centers"][[each for _, each in CARRIED]].reshape(len(CARRIED), k, -1)
    length = np.linalg.norm(old[:, :, :DIM], axis=2).mean()
    found = whole(loaded[world_size], number, "state")["centers"].reshape(len(NEW), k, -1)
    net = Net().eval()
    tolerance = 2**-7 if changes else 1e-5
    for label in FRESH[:-1]:
        shown = [(view // 4, view % 4) for view in range(len(NEW) * 4) if view // 4 == label and view != 13]
        pictures = np.stack([picture(of, view, 32) for of, view in shown])[..., ::-1].copy()  # stored blue first
        with torch.no_grad():
            raw = net(normalise(torch.from_numpy(pictures).permute(0, 3, 1, 2).float()))
        mean = normalize(raw, dim=1).mean(dim=0)
        expected = (mean / mean.norm() * length).numpy()
        np.testing.assert_allclose(found[label, 0, :DIM], expected, atol=tolerance * length)
        apart = np.linalg.norm(found[label, 1:, :DIM] - found[label, :1, :DIM], axis=1)
        np.testing.assert_allclose(apart, 0.1 * length, rtol=0.2)
        np.testing.assert_allclose(found[label, :, DIM:], old[:, :, DIM:].mean() if k > 1 else 0, atol=tolerance)
    state, before = (whole(loaded[world_size], number, key) for key in ("state", "before"))
    np.testing.assert_array_equal(state["centers"][FRESH[-1]], before["centers"][FRESH[-1]])
    assert all(not table[FRESH].any() for name, table in state.items() if table.ndim == 2 and name != "centers")
    assert loaded[world_size][0][number]["figures"] == {
        **{"start/carried": 8, "start/new": 5, "start/gone": 3},
        **{"start/bad_pictures": 1, "start/without_pictures": 1},
    }


def test_a_failure_of_one_rank_ends_all_ranks(started):
    for world_size, loaded in started[1].items():
        first, *others = [rank[-1]["refusal"] for rank in loaded]
        who = "rank 2: " if world_size == 3 else ""
        assert first.startswith(f"WorkError {who}start.new_rows=embed: the network that start.backbone gives has")
        assert others == ["SystemExit 1"] * (world_size - 1)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("given", ["model.safetensors", "model.centers.safetensors"])
def test_exported_centers_are_carried_by_the_names_beside_them(tmp_path, k, given):
    write_set(tmp_path / "set", classes=4, views=1)
    write_names(tmp_path / "set", ["c", "new", "a", "b"])
    centers = torch.arange(4.0 * k * DIM).view((4, k, DIM) if k > 1 else (4, DIM))
    save_file({"centers": centers}, tmp_path / "model.centers.safetensors")
    write_names(tmp_path, ["a", "b", "c", "d"])
    (tmp_path / "identities.parquet").rename(tmp_path / "model.identities.parquet")
    (tmp_path / given).touch()
    start = {"head": tmp_path / given, "new_rows": "random"}
    config = recipe(tmp_path / "run", tmp_path / "set", {"centers_per_class": k, "dtype": "bfloat16"}, start)
    head = build(config, 4)
    figures = start_head(config, head, Net(), 32, ranks_here(0, 1))
    assert figures == {"start/carried": 3, "start/new": 1, "start/gone": 1}
    found = head.tables()["centers"].float()
    torch.testing.assert_close(found[[2, 3, 0]], centers.view(4, -1)[:3], rtol=2**-7, atol=0)
    assert not head.tables()["momentum"].any()
