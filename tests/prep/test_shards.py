import errno
import io
import tarfile

import pytest

from data_prep.shards import ShardWriter
from dist_train.errors import WorkError

SAMPLES = [
    ("000000000", b"j" * 511, 0, None),
    ("000000001-00", b"j" * 512, 7, {"source": "Žofie\n/1.jpg", "score": 0.5}),
    ("a" * 80, b"", 123_456_789, {}),
    ("000000002", bytes(range(256)) * 900, 3, None),
]


def test_a_shard_is_byte_for_byte_what_tarfile_writes(tmp_path):
    with ShardWriter(tmp_path / "x.tar") as writer:
        for key, image, label, record in SAMPLES:
            writer.write(key, image, label, record, "png")
    with tarfile.open(tmp_path / "x.tar") as found:
        members = [(info, found.extractfile(info).read()) for info in found]
    assert [info.name for info, _ in members[:5]] == [
        "000000000.png", "000000000.cls", "000000001-00.png", "000000001-00.cls", "000000001-00.json",
    ]  # fmt: skip
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for info, data in members:
            fresh = tarfile.TarInfo(info.name)
            fresh.size = len(data)
            tar.addfile(fresh, io.BytesIO(data))
    assert (tmp_path / "x.tar").read_bytes() == plain.getvalue()
    assert writer.shard.bytes == len(plain.getvalue())


def test_a_name_that_does_not_fit_in_a_header_is_refused(tmp_path):
    with pytest.raises(ValueError, match="names have at most 100 bytes"), ShardWriter(tmp_path / "x.tar") as writer:
        writer.write("é" * 50, b"", 0)
    assert list(tmp_path.iterdir()) == []


def test_a_writer_left_by_an_error_leaves_nothing_behind(tmp_path):
    def fill():
        with ShardWriter(tmp_path / "x.tar") as writer:
            writer.write("a", b"x", 0)
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(WorkError, match="No space left on device"):
        fill()
    assert list(tmp_path.iterdir()) == []
