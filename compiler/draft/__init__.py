"""Proposes a spec for a checkpoint that no spec fits."""
