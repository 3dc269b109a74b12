"""The class-sharded classifier. Its configuration is there without torch, which takes seconds to import."""

from typing import TYPE_CHECKING, Any

from dist_train.head.config import HeadConfig

if TYPE_CHECKING:
    from dist_train.head.head import Head
    from dist_train.head.head_snapshot import HeadSnapshot

__all__ = ["Head", "HeadConfig", "HeadSnapshot"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any of its names
    if name == "Head":
        from dist_train.head.head import Head

        return Head
    if name == "HeadSnapshot":
        from dist_train.head.head_snapshot import HeadSnapshot

        return HeadSnapshot
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
