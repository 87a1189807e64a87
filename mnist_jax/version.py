"""The version of the package, which checkpoints record."""

VERSION = "0.1.0"
