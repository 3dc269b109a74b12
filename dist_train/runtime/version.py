"""Versions of packages, as files say by what they were made."""

from importlib.metadata import PackageNotFoundError, version


def version_of(package: str) -> str:
    """A package's installed version; `not installed` where it is used from a folder on the path, as this one may be."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
