"""Compares a converted model with its source: weights, outputs, and which rule or field explains a difference."""
