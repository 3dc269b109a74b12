"""Optional packages: which extra of the distribution brings each, and the message for one that is not installed."""

import importlib.util

from dist_train.errors import UserError

# Extra -> modules that it brings. The packages are those of pyproject.toml, [project.optional-dependencies].
EXTRAS: dict[str, tuple[str, ...]] = {
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "report": ("matplotlib",),
    "glyphs": ("fontTools", "matplotlib"),
    "s3": ("s3fs",),
    "gcs": ("gcsfs",),
    "ray": ("ray",),
    "timm": ("timm",),
    "metric": ("pytorch_metric_learning",),
    "faiss": ("faiss",),
    "prune": ("torch_pruning",),
    "qat": ("torchao",),
    "fddb": ("scipy",),
    "serve": ("fastapi", "uvicorn", "python_multipart", "prometheus_client"),
}


def missing(extra: str) -> str:
    """What `extra` lacks and how to install it, as the end of a sentence; empty where everything is there."""
    lacking = [name for name in EXTRAS[extra] if importlib.util.find_spec(name) is None]
    if not lacking:
        return ""
    return f"needs {', '.join(lacking)}, not installed here; install the extra: pip install 'headcount[{extra}]'"


def require(extra: str, what: str) -> None:
    """Refuse `what` before it begins where a package of `extra` is not installed.

    Raises:
        UserError: names `what`, the missing packages and the extra that brings them.
    """
    if lack := missing(extra):
        raise UserError(f"{what}: {lack}")
