"""The `export` section of a configuration."""

from pydantic import Field

from dist_train.errors import UserError
from dist_train.runtime.extras import missing
from dist_train.section import Section


class ExportConfig(Section):
    """What is written for deployment when a run ends."""

    onnx: bool = Field(True, description="whether the run writes model.onnx at its end")
    opset: int = Field(18, ge=18, le=23, description="version of the ONNX operator set")
    normalize_inside: bool = Field(
        False,
        description="whether the model takes uint8 pictures [B, S, S, 3] and scales them itself, not floats in -1 .. 1",
    )
    check_images: int = Field(64, ge=1, le=65536, description="how many pictures ONNX and PyTorch are compared on")


def check_exporter(config: ExportConfig) -> None:
    """Refuse an export that cannot be made here, so that a run learns of it before its first step, not at its end.

    Raises:
        UserError: the recipe wants an ONNX file and packages of the extra `export` are not installed.
    """
    if config.onnx and (lack := missing("export")):
        raise UserError(f"export.onnx: {lack}, or train without model.onnx: export.onnx=false")
