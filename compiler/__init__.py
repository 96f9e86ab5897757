"""mapspec: a YAML spec describes how one kind of model checkpoint becomes another."""

__version__ = "0.2.0"
