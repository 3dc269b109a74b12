import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dist_train.data.manifest import IDENTITIES_NAME
from dist_train.errors import UserError
from dist_train.evaluate.embedded_set import embed_set
from dist_train.evaluate.judging import Judging
from tests.data.sets import make_set
from tests.ranks import ranks_here, run_ranks

COLUMNS = ("number", "region")


@pytest.fixture(scope="module")
def regions(tmp_path_factory):
    """Seven pictures of three identities, each with a number in its .json; the identities have regions."""
    path = tmp_path_factory.mktemp("sets") / "regions"
    make_set(path, [4, 3], num_classes=3, records=True)
    table = {"label": [2, 0, 1], "name": ["c", "a", "b"], "count": [2, 3, 2], "region": ["south", "north", None]}
    pq.write_table(pa.table(table), path / IDENTITIES_NAME)
    return path


def embedded(rank, world_size, path):
    how = Judging(lambda images: images.mean(dim=(2, 3)) + 2, 32, 2, ranks_here(rank, world_size), flip=False)
    return embed_set(path, how, COLUMNS)


def plain(rank, world_size, path):
    found = embedded(rank, world_size, path)
    return found.features.numpy(), found.norms.numpy(), found.labels.tolist(), found.keys, found.roles, found.columns


def test_a_set_is_its_pictures_in_order_with_what_samples_and_identities_say_of_them(regions):
    found = embedded(0, 1, regions)
    assert (len(found), found.name, found.path) == (7, "regions", regions)
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert found.keys == [f"{number:08d}" for number in range(7)]
    assert found.roles == ["probe"] * 7
    assert found.columns["number"] == list(range(7))
    assert found.columns["region"] == ["north", None, "south", "north", None, "south", "north"]
    assert torch.allclose(found.features.norm(dim=1), torch.ones(7))
    assert 1 < float(found.norms.min()) < float(found.norms.max()) < 6


def test_two_ranks_get_what_one_gets(regions):
    alone = plain(0, 1, regions)
    for shared in run_ranks(2, plain, regions):
        assert all((one == other).all() for one, other in zip(alone[:2], shared[:2], strict=True))
        assert alone[2:] == shared[2:]


def test_a_column_that_nothing_has_is_refused_with_those_that_there_are(regions):
    how = Judging(lambda images: images.mean(dim=(2, 3)), 32, 2, ranks_here(0, 1), flip=False)
    with pytest.raises(UserError, match=r"'camera' is neither .* identities.parquet, which has region$"):
        embed_set(regions, how, ["camera"])


def test_a_set_that_several_evaluations_judge_is_embedded_once(regions):
    given = []
    how = Judging(lambda images: given.append(len(images)) or images.mean(dim=(2, 3)), 32, 7, ranks_here(0, 1), False)
    again = how._replace(kept={})
    first, second = embed_set(regions, again), embed_set(regions, again, COLUMNS)
    assert given == [7]
    assert torch.equal(first.features, second.features)
    assert list(second.columns) == list(COLUMNS)
    embed_set(regions, how)
    assert given == [7, 7]


def test_a_table_of_identities_that_is_damaged_or_too_long_is_refused_and_its_labels_are_no_column(tmp_path, regions):
    how = Judging(lambda images: images.mean(dim=(2, 3)), 32, 2, ranks_here(0, 1), flip=False)
    own = shutil.copytree(regions, tmp_path / "own")
    with pytest.raises(UserError, match="'label' is neither"):
        embed_set(own, how, ["label"])
    pq.write_table(pa.table({"label": range(4), "region": list("abcd")}), own / IDENTITIES_NAME)
    with pytest.raises(UserError, match=r"identities\.parquet: 4 rows for 3 identities"):
        embed_set(own, how, ["region"])
    (own / IDENTITIES_NAME).write_bytes(b"PAR1 and more")
    with pytest.raises(UserError, match=r"identities\.parquet: cannot be read"):
        embed_set(own, how, ["region"])
