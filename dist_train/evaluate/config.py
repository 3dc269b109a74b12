"""The `evaluate` section of a configuration."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class EvaluateConfig(BaseModel):
    """On what, and how, a model is evaluated."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    verification: tuple[Path, ...] = Field((), description="verification sets: InsightFace .bin files")
    identification: tuple[Path, ...] = Field((), description="identification sets: directories with gallery and probes")
    every_steps: int | None = Field(
        None, ge=1, description="steps between evaluations in training; null: only at the end"
    )
    batch_size: int = Field(64, ge=1, le=8192, description="pictures per rank and forward pass")
    flip: bool = Field(True, description="embedding = f(picture) + f(mirrored picture), as published figures have it")
