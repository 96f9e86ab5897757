"""mapspec: one YAML spec says how one kind of checkpoint becomes another."""

__version__ = "0.1.0"
