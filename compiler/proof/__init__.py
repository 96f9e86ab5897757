"""The compile-time proof: a spec's rules against the target class, on the meta device."""
