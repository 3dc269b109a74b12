"""What decides a split, beside the set."""

from typing import Any, NamedTuple

from data_prep.split.choice import Wanted


class SplitOptions(NamedTuple):
    """The options of `headcount prep split`.

    Attributes:
        wanted: how many identities are held out.
        time_field: key of the time in the samples' `.json`, by which the earliest pictures are the gallery's; or None.
        seed: of all choices.
        gallery: pictures of each held-out identity that are known.
        pairs: of the verification set.
        label_key: key of the label in samples without `.cls`, where the set does not say it.
    """

    wanted: Wanted
    time_field: str | None = None
    seed: int = 0
    gallery: int = 1
    pairs: int = 6000
    label_key: str = "label"

    def described(self) -> dict[str, Any]:
        """The options as JSON values."""
        return {**self._asdict(), "wanted": self.wanted.text}
