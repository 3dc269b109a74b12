import numpy as np
import pyarrow.parquet as pq
import pytest

from dist_train.embed.embedded import read_embedded
from dist_train.embed.table import names_path
from dist_train.errors import UserError
from tests.embed.standin import Numbers, embed


@pytest.mark.parametrize("name", ["out.parquet", "out.npy"])
def test_a_file_of_embeddings_is_a_set_with_unit_rows_labels_and_the_columns_that_are_asked_for(tmp_path, name):
    path = tmp_path / name
    embed(path, Numbers())
    found = read_embedded(path, ["score"])
    names = pq.read_table(names_path(path)).to_pylist()
    stored = np.load(path) if name == "out.npy" else np.stack(pq.read_table(path)["embedding"].to_pylist())
    assert found.keys == [row["path"] for row in names]
    assert np.allclose(found.features, stored / np.linalg.norm(stored, axis=1, keepdims=True), atol=1e-6)
    assert found.norms.tolist() == [row["norm"] for row in names]
    assert found.columns == {"score": [row["score"] for row in names]}
    labels = {}
    for label, row in zip(found.labels.tolist(), names, strict=True):
        assert (label == -1) == (row["label"] is None and row["identity"] is None)
        assert labels.setdefault(row["identity"], label) == label
    with pytest.raises(UserError, match="no column 'camera'; it has path, "):
        read_embedded(path, ["camera"])
