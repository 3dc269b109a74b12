"""The class-sharded classifier."""

from dist_train.head.config import HeadConfig
from dist_train.head.head import Head, HeadSnapshot

__all__ = ["Head", "HeadConfig", "HeadSnapshot"]
