"""The `backbone` section of a configuration."""

from typing import Literal

from pydantic import Field

from dist_train.section import Section

BackboneName = Literal[
    "iresnet18", "iresnet34", "iresnet50", "iresnet100", "iresnet200", "mobilefacenet", "tiny", "nano"
]


class BackboneConfig(Section):
    """Which network turns images into embeddings."""

    name: BackboneName = Field(
        "iresnet50", description="the network; `tiny` is made for CPUs, `nano` for pictures of up to 64 px on CPUs"
    )
    embedding_dim: int = Field(512, ge=2, le=8192, description="how many numbers an embedding has (D)")
    dropout: float = Field(
        0.0, ge=0.0, lt=1.0, description="probability with which dropout zeroes a value before the last layer"
    )
