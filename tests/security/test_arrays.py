"""Arrays of others: neither a pickle in an array nor an archive in its place is opened."""

import io

import numpy as np
import pytest

from dist_train.embed.gallery import Gallery, build_gallery
from dist_train.errors import UserError
from tests.embed.standin import Numbers, embed
from tests.security.payloads import Attack


def contents(mark):
    """What may stand in place of an array."""
    objects, archive = io.BytesIO(), io.BytesIO()
    np.save(objects, np.array([Attack(mark)], dtype=object), allow_pickle=True)
    np.savez(archive, embeddings=np.array([Attack(mark)], dtype=object))
    huge = objects.getvalue()[:8] + (118).to_bytes(2, "little")
    huge += b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 16), }".ljust(117) + b"\n"
    whole = {"objects": objects.getvalue(), "an archive": archive.getvalue()}
    return {**whole, "a claim": huge, "nothing": b"", "text": b"x" * 99}


@pytest.mark.parametrize("kind", ["objects", "an archive", "a claim", "nothing", "text"])
def test_a_gallery_and_a_file_of_embeddings_hold_numbers_or_are_refused(tmp_path, kind):
    embed(tmp_path / "faces.npy", Numbers())
    build_gallery([tmp_path / "faces.npy"], tmp_path / "gallery", quiet=True)
    content = contents(tmp_path / "mark")[kind]
    (tmp_path / "gallery" / "embeddings.npy").write_bytes(content)
    (tmp_path / "faces.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"gallery .*: damaged: "):
        Gallery(tmp_path / "gallery")
    with pytest.raises(UserError, match=r"embeddings .*: cannot be read: "):
        build_gallery([tmp_path / "faces.npy"], tmp_path / "new", quiet=True)
    assert not (tmp_path / "mark").exists()
