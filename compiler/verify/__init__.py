"""Does the converted model compute the same? Logits, round trips, and the rule at fault."""
