"""What an embedding model takes: size, colours, range and layout of its pictures, as its file or its user says."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Self, cast

from dist_train.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

InputType = Literal["float32", "uint8"]
Layout = Literal["NCHW", "NHWC"]
Color = Literal["rgb", "bgr"]
Channels = tuple[float, float, float]
Shape = Sequence[int | str | None]

RANGES: dict[str, tuple[float, float]] = {"0..255": (0, 1), "0..1": (0, 255), "-1..1": (127.5, 127.5)}
"""Ranges by name: what is taken from a value 0 .. 255, and by what the rest is divided."""
DEFAULT_SIZE_PX = 112
_SAID = ("input_type", "input_layout", "input_color", "input_mean", "input_std")  # metadata of files of ours


@dataclass(frozen=True)
class Stated:
    """What a user says of a model that does not say it itself; None is not said.

    Attributes:
        mean: of each channel, in the order that the model takes them.
        std: likewise.
        color: order of the channels.
        image_size: side of the pictures in pixels, where the model leaves it open.
        output: name of the output with the embeddings.
    """

    mean: Channels | None = None
    std: Channels | None = None
    color: Color | None = None
    image_size: int | None = None
    output: str | None = None

    def __bool__(self) -> bool:
        return self != Stated()


class Entry(NamedTuple):
    """The input of a model as its graph declares it.

    Attributes:
        kind: of its values.
        layout: order of its axes.
        side_px: of its pictures; None where any goes.
        batch: number of pictures; None where any goes.
    """

    kind: InputType
    layout: Layout
    side_px: int | None
    batch: int | None

    @classmethod
    def of(cls, path: Path, shape: Shape, kind: str) -> Self:
        """Read the declaration of a model's input.

        Raises:
            UserError: it is none of square pictures of three colours.
        """
        expected = "float32 or uint8 [batch, 3, S, S] or [batch, S, S, 3] of square pictures of three colours"
        if kind not in ("tensor(float)", "tensor(uint8)") or len(shape) != 4:
            raise UserError(f"model {path}: takes {kind} {list(shape)}, expected {expected}")
        batch, *picture = [axis if isinstance(axis, int) and axis > 0 else None for axis in shape]
        layout: Layout = "NHWC" if picture[0] != 3 and picture[2] == 3 else "NCHW"
        channels, *sides = picture if layout == "NCHW" else [picture[2], *picture[:2]]
        known = {side for side in sides if side is not None}
        if channels not in (3, None) or len(known) > 1:
            raise UserError(f"model {path}: takes {kind} {list(shape)}, expected {expected}")
        return cls("uint8" if kind == "tensor(uint8)" else "float32", layout, next(iter(known), None), batch)


@dataclass(frozen=True)
class Convention:
    """What an embedding model takes and gives.

    Attributes:
        image_size: side S of the pictures in pixels.
        embedding_dim: length of an embedding.
        input_type: of the values.
        layout: NCHW: [B, 3, S, S]; NHWC: [B, S, S, 3].
        mean: what the caller takes from the values 0 .. 255 of each channel ...
        std: ... and divides the rest by.
        color: order of the channels.
    """

    image_size: int
    embedding_dim: int
    input_type: InputType = "float32"
    layout: Layout = "NCHW"
    mean: Channels = (127.5, 127.5, 127.5)
    std: Channels = (127.5, 127.5, 127.5)
    color: Color = "rgb"

    @classmethod
    def of_ours(cls, image_size: int, embedding_dim: int, input_type: InputType = "float32") -> Self:
        """float32 [B, 3, S, S] in [-1, 1] or, with the scaling inside, uint8 [B, S, S, 3] as decoded; red first."""
        if input_type == "float32":
            return cls(image_size, embedding_dim)
        return cls(image_size, embedding_dim, "uint8", "NHWC", (0, 0, 0), (1, 1, 1))

    @classmethod
    def of_entry(cls, path: Path, entry: Entry, stated: Stated, embedding_dim: int) -> Self:
        """The convention of a model that does not say it: as stated; else red first and -1 .. 1, or 0 .. 255 of uint8.

        Raises:
            UserError: what is stated does not go with the model's input.
        """
        whole = entry.kind == "uint8"
        usual = RANGES["0..255" if whole else "-1..1"]
        mean, std = stated.mean or (usual[0],) * 3, stated.std or (usual[1],) * 3
        if whole and (any(mean) or std != (1, 1, 1)):
            raise UserError(
                f"model {path}: takes uint8, so values 0..255 as decoded; leave --input-range, --input-mean and "
                "--input-std out"
            )
        if entry.side_px and stated.image_size not in (None, entry.side_px):
            raise UserError(
                f"model {path}: takes pictures of {entry.side_px} px, --input-size is {stated.image_size}; leave it out"
            )
        side = entry.side_px or stated.image_size or DEFAULT_SIZE_PX
        return cls(side, embedding_dim, entry.kind, entry.layout, mean, std, stated.color or "rgb")

    @classmethod
    def of_metadata(cls, path: Path, entry: Entry, metadata: dict[str, str], embedding_dim: int) -> Self | None:
        """The convention that a file of ours states; None of a file that states none.

        Raises:
            UserError: what it states is nothing that can be done.
        """
        if not all(key in metadata for key in _SAID):
            return None
        kind, layout, color, *numbers = (metadata[key] for key in _SAID)
        try:
            mean, std = (float(number) for number in numbers)
        except ValueError:
            mean = std = 0.0
        if (kind, layout) != (entry.kind, entry.layout) or color.lower() not in ("rgb", "bgr") or not std:
            said = ", ".join(f"{key} {metadata[key]!r:.40}" for key in _SAID)
            raise UserError(
                f"model {path}: its metadata says {said}, but its input is {entry.kind} {entry.layout}; "
                "the file was changed: export it again"
            )
        side = entry.side_px or DEFAULT_SIZE_PX
        told = cast(Color, color.lower())
        return cls(side, embedding_dim, entry.kind, entry.layout, (mean,) * 3, (std,) * 3, told)

    def __str__(self) -> str:
        side, order = self.image_size, "red" if self.color == "rgb" else "blue"
        shape = f"B, 3, {side}, {side}" if self.layout == "NCHW" else f"B, {side}, {side}, 3"
        return f"{self.input_type} [{shape}], {order} first, {self.range_text()}"

    def range_text(self) -> str:
        """The range of the values in words."""
        for name, (mean, std) in RANGES.items():
            if (self.mean, self.std) == ((mean,) * 3, (std,) * 3):
                return name
        taken, divided = (",".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"(value - {taken}) / {divided}"

    def to_metadata(self) -> dict[str, str]:
        """Entries of an ONNX file's metadata, for programs and for readers; of files of ours."""
        whole = self.input_type == "uint8"
        side = self.image_size
        return {
            "image_size": str(side),
            "embedding_dim": str(self.embedding_dim),
            "input_type": self.input_type,
            "input_shape": f"batch,{side},{side},3" if whole else f"batch,3,{side},{side}",
            "input_layout": self.layout,
            "input_color": self.color.upper(),
            "input_range": "0..255, as decoded" if whole else "-1..1, (value - 127.5) / 127.5",
            # What the caller does: (value - mean) / std of every channel.
            "input_mean": f"{self.mean[0]:g}",
            "input_std": f"{self.std[0]:g}",
            "output": "raw embeddings; normalize to unit length and compare by cosine",
        }

    def as_taken(self, images: "Tensor") -> "Tensor":
        """Images float32 [B, 3, S, S] in [-1, 1], red first, as the model takes them."""
        import torch  # the command line reads the options' names without it

        from dist_train.data.levels import grey_levels

        values = images
        if (self.mean, self.std) != ((127.5,) * 3, (127.5,) * 3) or self.input_type == "uint8":
            levels = grey_levels(images)
            values = levels.flip(1) if self.color == "bgr" else levels
            if self.input_type == "uint8":
                values = values.to(torch.uint8)
            elif any(self.mean) or self.std != (1, 1, 1):
                mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (self.mean, self.std))
                values = (values - mean) / std
        elif self.color == "bgr":
            values = images.flip(1)
        return values if self.layout == "NCHW" else values.permute(0, 2, 3, 1)  # [B, 3, S, S] -> [B, S, S, 3]

    def contradicts(self, stated: Stated, output: str | None) -> str:
        """Where what is stated differs from this convention, in words; empty if nowhere."""
        pairs = {
            "--input-mean or --input-range": (stated.mean, self.mean),
            "--input-std or --input-range": (stated.std, self.std),
            "--input-color": (stated.color, self.color),
            "--input-size": (stated.image_size, self.image_size),
            "--output": (stated.output, output),
        }
        return next((name for name, (said, own) in pairs.items() if said is not None and said != own), "")
