"""Names of rows of embeddings whose pictures lie in tars."""

import pyarrow as pa

from dist_train.embed.tar_keys import tars_of


def test_the_tar_of_a_key_ends_at_the_first_tar_and_pictures_in_none_have_none():
    keys = ["a-0.tar:1.jpg", "a.tar:b.tar:1.jpg", "A.TAR:x", "photos/1.jpg", "a.tar", "a:b.tar:c", "a.tar:a\nb", ""]
    found = tars_of(pa.array(keys, pa.string()))
    assert found.to_pylist() == ["a-0.tar", "a.tar", "A.TAR", None, None, "a:b.tar", "a.tar", None]
    assert len(found.dictionary) == 4
    assert tars_of(pa.array([], pa.string())).to_pylist() == []
