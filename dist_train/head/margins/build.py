"""From a margin's name to the margin."""

from pkgutil import resolve_name

from dist_train.errors import UserError
from dist_train.head.config import HeadConfig
from dist_train.head.margins.base import Classes, Margin
from dist_train.head.margins.table import MARGINS


def build_margin(config: HeadConfig, classes: Classes) -> Margin:
    """The margin that `config` names, for a rank's `classes`.

    Raises:
        UserError: counts of images are needed and missing, or not one for each class.
    """
    spec, counts = MARGINS[config.margin], classes.counts
    if counts is not None and counts.shape != (classes.total,):
        raise UserError(f"class counts of shape {list(counts.shape)} for {classes.total} classes")
    if counts is None and spec.needs_class_counts:
        raise UserError(f"head.margin={config.margin} needs the number of images of each class, and none were given")
    margin: Margin = resolve_name(spec.margin)(config, classes)
    return margin
