"""A learned fusion as `headcount eval --fuse` writes it among its figures, for galleries whose cosines are fused so."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, TypeAdapter

from dist_train.errors import UserError
from dist_train.evaluate.calibration import Owner, read_calibration
from dist_train.runtime.files import first_fault, read_bounded

PARTS_KEY = "parts"
MOST_PARTS = 64
_MOST_BYTES = 64 << 20  # of a file of figures
_TOLERANCE = 1e-6  # by which weights may miss a sum of 1

_Text = Annotated[str, Field(max_length=4096)]


@dataclass(frozen=True, slots=True)
class FusedModel:
    """A model whose embeddings a fusion takes.

    Attributes:
        name: for messages.
        sha256: digest of the model.
        embedding_dim: D.
        image_size: side of its pictures in pixels.
        flip: whether the mirrored picture's embedding was added.
        weight: of its cosines; those of all sum to 1.
        told: what a user said of an ONNX file of others, which makes its embeddings others.
    """

    name: _Text
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    embedding_dim: Annotated[int, Field(ge=1, le=1 << 20)]
    image_size: Annotated[int, Field(ge=1, le=1 << 16)]
    flip: bool
    weight: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
    told: Annotated[dict[_Text, _Text], Field(max_length=16)] = field(default_factory=dict)

    @classmethod
    def of(cls, description: Mapping[str, Any], weight: float) -> "FusedModel":
        """The model that embeddings with this description are by."""
        model = description["model"]
        return cls(
            model["name"],
            model["sha256"],
            description["embedding_dim"],
            description["image_size"],
            description["flip"],
            weight,
            dict(model.get("told", {})),
        )

    @property
    def made_by(self) -> dict[str, Any]:
        """What its embeddings' descriptions say, as JSON values, less the name, which a copy may have changed."""
        told = {"told": dict(self.told)} if self.told else {}
        how = {"embedding_dim": self.embedding_dim, "image_size": self.image_size, "flip": self.flip}
        return {"model": {"sha256": self.sha256} | told, **how}


class Fusion(NamedTuple):
    """A fusion with its thresholds.

    Attributes:
        parts: the models.
        thresholds: of the fused cosines, a calibration as JSON; empty where none was measured.
    """

    parts: tuple[FusedModel, ...]
    thresholds: str


_PARTS: TypeAdapter[tuple[FusedModel, ...]] = TypeAdapter(
    Annotated[tuple[FusedModel, ...], Field(min_length=2, max_length=MOST_PARTS)]
)
_FIGURES: TypeAdapter[list[dict[str, Any]]] = TypeAdapter(Annotated[list[dict[str, Any]], Field(max_length=1000)])


def parsed_parts(values: object) -> tuple[FusedModel, ...]:
    """The models of a fusion from JSON values.

    Raises:
        ValueError: fewer than two, damaged, or weights that do not sum to 1.
    """
    parts = _PARTS.validate_python(values)
    total = sum(part.weight for part in parts)
    if abs(total - 1) > _TOLERANCE:
        raise ValueError(f"weights of the models sum to {total:g}, expected 1")
    return parts


def described(parts: Sequence[FusedModel]) -> list[dict[str, Any]]:
    """The models as JSON values."""
    return [asdict(part) for part in parts]


def fused_digest(parts: Sequence[FusedModel]) -> str:
    """The hexadecimal SHA-256 that a fusion is known by: of its models, how they embed, and their weights, in order."""
    text = json.dumps([[part.made_by, part.weight] for part in parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_fusion(path: Path) -> Fusion:
    """The fusion in a file of figures.

    Raises:
        UserError: the file is missing or another one, has no fusion, or more than one.
    """
    try:
        bodies = _FIGURES.validate_json(read_bounded(path, _MOST_BYTES))
        found = [body["fusion"][PARTS_KEY] for body in bodies if PARTS_KEY in (body.get("fusion") or ())]
        if len(found) != 1:
            raise ValueError(f"{len(found) or 'no'} fusions in it, expected one")
        parts = parsed_parts(found[0])
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        why = first_fault(error) if isinstance(error, OSError | ValueError) else f"damaged ({type(error).__name__})"
        raise UserError(
            f"--fusion {path}: {why}; expected figures by `headcount eval --fuse A --fuse B --json {path.name}`"
        ) from error
    owner = Owner(" + ".join(part.name for part in parts), fused_digest(parts))
    return Fusion(parts, read_calibration(path, owner).to_text())
