"""Renders a Program as a standalone converter."""
