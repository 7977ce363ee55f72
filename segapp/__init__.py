"""A folder of scans and masks becomes a trained, measured, portable segmentation model."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("segapp")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"
