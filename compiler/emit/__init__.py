"""Renders a Program as the mapping that another program reads: one module and one template for each target."""
