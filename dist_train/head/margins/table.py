"""The margins that a recipe may name, a row each; without torch, so that recipes are read in no time."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class MarginSpec:
    """What is known of a margin before it is built.

    Attributes:
        margin: its class as `module:name`, a `Margin`, imported when one is built.
        reads: keys of the `head` section that it takes. A key that only other margins take is refused, so that no
            value in a recipe is silently without effect.
        normalised: logits are scaled cosines; otherwise inner products with raw embeddings, and a bias.
        needs_class_counts: it takes the number of images of each class.
        several_labels: samples may have several labels, to each of which it is applied.
    """

    margin: str
    reads: frozenset[str] = frozenset()
    normalised: bool = True
    needs_class_counts: bool = False
    several_labels: bool = False


def _margin(
    name: str,
    *reads: str,
    normalised: bool = True,
    needs_class_counts: bool = False,
    several_labels: bool = False,
) -> MarginSpec:
    """A row for the class `name`, `module:class` within this package."""
    return MarginSpec(
        margin=f"dist_train.head.margins.{name}",
        reads=frozenset(reads),
        normalised=normalised,
        needs_class_counts=needs_class_counts,
        several_labels=several_labels,
    )


MARGINS: dict[str, MarginSpec] = {
    "softmax": _margin("fixed:Softmax", normalised=False),
    "normface": _margin("fixed:NormFace"),
    "sphereface": _margin("fixed:SphereFace", "m1"),
    "cosface": _margin("fixed:CosFace", "m3", several_labels=True),
    "arcface": _margin("fixed:ArcFace", "m2", "easy_margin", several_labels=True),
    "combined": _margin("fixed:Combined", "m1", "m2", "m3"),
    "adaface": _margin("quality:AdaFace", "m2", "adaface"),
    "curricularface": _margin("curricular:CurricularFace", "m2", "curricular_momentum"),
    "magface": _margin("quality:MagFace", "magface"),
    "adaptive": _margin("adaptive:AdaptiveArcFace", "adaptive", needs_class_counts=True),
}
