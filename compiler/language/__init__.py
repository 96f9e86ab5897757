"""The spec language: YAML text to a `Spec`, with the place of every value. Knows PyYAML and jsonschema; no op, no checkpoint."""
