"""What is said of groups of pictures at one global threshold, in the words of ISO/IEC 19795-10."""

from dataclasses import dataclass
from typing import Any

from dist_train.evaluate.rates import Rate

NONE = "(none)"
SIGNIFICANT = 0.01  # probability of any group flagged wrongly, over all groups and both rates


@dataclass(frozen=True)
class Group:
    """A group's pictures and rates.

    Attributes:
        name: the value that its pictures have.
        pictures: their number.
        identities: that have pictures in it.
        fmr: over impostor pairs inside the group.
        fnmr: over genuine pairs inside the group.
        fmr_p: adjusted probability of an FMR this much above the other groups' if all were equal; None: not compared.
        fnmr_p: the same for its FNMR.
    """

    name: str
    pictures: int
    identities: int
    fmr: Rate
    fnmr: Rate
    fmr_p: float | None = None
    fnmr_p: float | None = None

    @property
    def worse_fmr(self) -> bool:
        """Whether its FMR is significantly higher than that of the others together."""
        return self.fmr_p is not None and self.fmr_p < SIGNIFICANT

    @property
    def worse_fnmr(self) -> bool:
        """Whether its FNMR is significantly higher than that of the others together."""
        return self.fnmr_p is not None and self.fnmr_p < SIGNIFICANT


@dataclass(frozen=True)
class Differential:
    """How much a rate differs between groups.

    Attributes:
        worst_over_best: the largest rate over the smallest; None where that is 0, or fewer than two groups have pairs.
        gini: Gini coefficient of the groups' rates; None for fewer than two groups.
    """

    worst_over_best: float | None
    gini: float | None


@dataclass(frozen=True)
class GroupsResult:
    """What a model does to the groups of a set at one threshold.

    Attributes:
        name: of the set.
        by: the column that the groups are of.
        fmr: that was demanded of all impostor pairs.
        threshold: cosine; a pair matches at or above it.
        overall_fmr: over all impostor pairs of the set.
        overall_fnmr: over all genuine pairs.
        groups: in the order of their names, "(none)" last.
        across_fmr: over impostor pairs across groups, by both names in the order of `groups`.
        across_fnmr: over genuine pairs across groups, where there are any.
        fmr_differential: of the groups' FMR.
        fnmr_differential: of the groups' FNMR.
        notes: what a reader must know.
    """

    name: str
    by: str
    fmr: float
    threshold: float
    overall_fmr: Rate
    overall_fnmr: Rate
    groups: tuple[Group, ...]
    across_fmr: dict[tuple[str, str], Rate]
    across_fnmr: dict[tuple[str, str], Rate]
    fmr_differential: Differential
    fnmr_differential: Differential
    notes: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """The figures, ready for JSON."""
        return {
            "set": self.name,
            "by": self.by,
            "fmr": self.fmr,
            "threshold": self.threshold,
            "overall": {"fmr": self.overall_fmr.summary(), "fnmr": self.overall_fnmr.summary()},
            "groups": [
                {
                    "group": group.name,
                    "pictures": group.pictures,
                    "identities": group.identities,
                    "fmr": group.fmr.summary() | {"p": group.fmr_p, "significantly_higher": group.worse_fmr},
                    "fnmr": group.fnmr.summary() | {"p": group.fnmr_p, "significantly_higher": group.worse_fnmr},
                }
                for group in self.groups
            ],
            "across": [
                {"groups": list(both), "fmr": rate.summary()}
                | ({"fnmr": self.across_fnmr[both].summary()} if both in self.across_fnmr else {})
                for both, rate in self.across_fmr.items()
            ],
            "differential": {
                "fmr": {"worst_over_best": self.fmr_differential.worst_over_best, "gini": self.fmr_differential.gini},
                "fnmr": {
                    "worst_over_best": self.fnmr_differential.worst_over_best,
                    "gini": self.fnmr_differential.gini,
                },
            },
            "notes": list(self.notes),
        }
