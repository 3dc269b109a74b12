"""Paths of a split: the two sets and the pairs in OUT, the job's own files in `OUT/.prep`.

Both sets are made in `OUT/.prep` and renamed at the end: a folder of tars without a manifest would be taken for a set.
"""

from dataclasses import dataclass
from pathlib import Path

from data_prep.job.plan import JobFiles

TRAIN, HELDOUT = "train", "heldout"


@dataclass(frozen=True, slots=True)
class SplitFiles:
    """Paths of a split into `out`."""

    out: Path

    @property
    def job(self) -> JobFiles:
        """What all jobs have."""
        return JobFiles(self.out)

    @property
    def plan(self) -> Path:
        """All that decides what the split gives."""
        return self.job.home / "split.json"

    @property
    def done(self) -> Path:
        """What came of it; its presence means that all is complete."""
        return self.out / "split.json"

    @property
    def pairs(self) -> Path:
        """The verification set."""
        return self.out / "verification.bin"

    @property
    def surveys(self) -> Path:
        """Folder of what was found in each shard."""
        return self.job.home / "survey"

    def index(self, unit: int) -> Path:
        """Index of a shard of the set, made from the tar itself."""
        return self.surveys / f"{unit:06d}.idx"

    def rows(self, unit: int) -> Path:
        """What a split needs to know of each sample of a shard: `data_prep.split.survey.ROW` [samples]."""
        return self.surveys / f"{unit:06d}.npy"

    def surveyed(self, unit: int) -> Path:
        """Mark of a shard that was looked through; written last."""
        return self.surveys / f"{unit:06d}.json"

    @property
    def labels(self) -> Path:
        """New label of each identity in its part, int64 [classes]; -1 of one without pictures."""
        return self.job.home / "labels.npy"

    @property
    def heldout(self) -> Path:
        """Whether each identity is held out, bool [classes]."""
        return self.job.home / "heldout.npy"

    @property
    def gallery(self) -> Path:
        """Places of the gallery's samples, int64, ascending; see `data_prep.split.choice.place`."""
        return self.job.home / "gallery.npy"

    def part(self, name: str) -> Path:
        """A part of the set while it is made."""
        return self.job.home / name

    def complete_part(self, name: str) -> Path:
        """A part of the set once it is complete."""
        return self.out / name

    def shard(self, name: str, unit: int) -> Path:
        """The shard of a part that a shard of the set gives."""
        return self.part(name) / f"x-{unit:06d}.tar"

    def parted(self, unit: int) -> Path:
        """Mark of a shard that was parted; written last."""
        return self.job.home / "parted" / f"{unit:06d}.json"
