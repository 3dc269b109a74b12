"""Our shards in other readers, and other writers' shards in ours."""

import json

import cv2
import numpy as np
import pytest
import webdataset

from dist_train.data.config import DataConfig
from dist_train.data.loader import build_loader
from dist_train.data.manifest import load_manifest
from dist_train.errors import UserError
from tests.data.sets import encode, make_set, picture, sample, write_tar


def test_plain_webdataset_reads_our_shards(tmp_path):
    make_set(tmp_path, [7, 5], records=True)
    files = sorted(str(path) for path in tmp_path.glob("*.tar"))
    seen = list(webdataset.WebDataset(files, shardshuffle=False).decode("rgb8").to_tuple("jpg", "cls", "json"))
    assert [record["number"] for _, _, record in seen] == list(range(12))
    assert [label for _, label, _ in seen] == [n % 5 for n in range(12)]
    assert np.abs(seen[3][0].astype(int) - picture(3)).mean() < 4


def test_dalis_own_reader_reads_our_shards(tmp_path):
    dali = pytest.importorskip("nvidia.dali")
    make_set(tmp_path, [6, 6])
    files = sorted(str(path) for path in tmp_path.glob("*.tar"))

    @dali.pipeline_def(batch_size=12, num_threads=1, device_id=None)
    def reading():
        pictures, labels = dali.fn.readers.webdataset(
            paths=files, ext=["jpg", "cls"], missing_component_behavior="error"
        )
        return pictures, labels

    pipeline = reading()
    pipeline.build()
    images, labels = pipeline.run()
    assert [int(bytes(np.array(label)).decode()) for label in labels] == [n % 5 for n in range(12)]
    assert cv2.imdecode(np.array(images[4]), cv2.IMREAD_COLOR).shape == (32, 32, 3)


def everything(path, count: int, **settings) -> dict[int, np.ndarray]:
    """A picture of each label."""
    with build_loader(DataConfig(path=str(path), workers=0, **settings), count, 0, 1, seed=0) as loader:
        batch = next(loader)
    pixels = ((batch.images + 1) * 127.5).round().numpy().transpose(0, 2, 3, 1)
    return dict(zip(batch.labels.tolist(), pixels, strict=True))


def test_shards_that_webdataset_wrote_are_read(tmp_path):
    with webdataset.ShardWriter(str(tmp_path / "part-%06d.tar"), maxcount=4, verbose=0) as writer:
        for number in range(10):
            extension = ("jpg", "jpeg", "png", "webp")[number % 4]
            image = encode(picture(number), f".{extension}")
            writer.write({"__key__": f"k{number:04d}", extension: image, "cls": number})
    seen = everything(tmp_path, 10, augment={"flip": 0})
    assert sorted(seen) == list(range(10))
    for number, pixels in seen.items():
        assert np.abs(pixels - picture(number)).mean() < 6
    assert load_manifest(tmp_path).samples == 10, "the manifest is written on first use"


def test_shards_as_img2dataset_writes_them_are_read_by_a_key_of_their_json(tmp_path):
    samples = []
    for number in range(6):
        about = {"caption": "a", "identity": 5 - number, "status": "success", "key": f"{number:09d}"}
        samples.append(
            [
                (f"{number:09d}.jpg", encode(picture(number))),
                (f"{number:09d}.json", json.dumps(about).encode()),
                (f"{number:09d}.txt", b"a"),
            ]
        )
    write_tar(tmp_path / "00000.tar", samples, index=False)
    (tmp_path / "00000_stats.json").write_text("{}")
    seen = everything(tmp_path, 6, label_key="identity", augment={"flip": 0})
    assert sorted(seen) == list(range(6))
    assert np.abs(seen[5] - picture(0)).mean() < 6


def test_a_set_of_tars_without_labels_is_refused_with_the_key_that_was_looked_for(tmp_path):
    write_tar(tmp_path / "00000.tar", [[("a.jpg", encode(picture(0))), ("a.json", b"{}")]], index=False)
    with pytest.raises(UserError, match="label"):
        everything(tmp_path, 1)


@pytest.mark.parametrize("length", [3300, 4000])  # in a header, in a picture
def test_a_torn_tar_among_them_is_named_and_its_whole_samples_are_used(tmp_path, caplog, length):
    for number in range(2):
        write_tar(tmp_path / f"{number}.tar", [sample(number * 3 + i, i) for i in range(3)], index=False)
    data = (tmp_path / "1.tar").read_bytes()
    (tmp_path / "1.tar").write_bytes(data[:length])
    with build_loader(DataConfig(path=str(tmp_path), workers=0), 4, 0, 1, seed=0) as loader:
        assert loader.manifest.samples == 4
        assert sorted(next(loader).labels.tolist()) == [0, 0, 1, 2]
    assert f"shard {tmp_path / '1.tar'}: left out: 1 truncated" in caplog.text


def test_the_record_of_a_tar_may_come_in_any_order(tmp_path):
    members = [("a.cls", b"0"), ("a.jpg", encode(picture(1))), ("b.jpg", encode(picture(2))), ("b.cls", b"1")]
    write_tar(tmp_path / "0.tar", [members[:2], members[2:]], index=False)
    assert sorted(everything(tmp_path, 2)) == [0, 1]
