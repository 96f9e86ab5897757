"""A spec proposed for a checkpoint that none fits."""
