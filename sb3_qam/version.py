"""The version, which pyproject.toml and the documentation read from here."""

__version__ = "0.2.0"
