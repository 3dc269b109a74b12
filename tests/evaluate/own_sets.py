"""A set as `prep align` could make of one's own pictures: each sample's record has a group and the detector's score."""

import json

from dist_train.data.manifest import Manifest
from tests.data.sets import encode, write_tar
from tests.sets import picture


def write_own_set(directory, people=8, views=4):
    """Shards of pictures whose `.json` has sex, score and role."""
    directory.mkdir()
    samples = []
    for label in range(people):
        for view in range(views):
            record = {"sex": "fm"[label % 2], "score": 0.9 + view / 100, "role": "probe" if view else "gallery"}
            key = f"{label:03d}-{view}"
            members = {"jpg": encode(picture(label, view, 32)), "cls": str(label).encode()}
            members["json"] = json.dumps(record).encode()
            samples.append([(f"{key}.{kind}", data) for kind, data in members.items()])
    Manifest(32, people, (write_tar(directory / "own-000000.tar", samples),)).save(directory)
    return directory
