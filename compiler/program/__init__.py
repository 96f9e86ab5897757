"""Spec to `Program`: rules with patterns and ops, checked for everything that needs no sizes."""
