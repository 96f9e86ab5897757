"""A language server for spec files: pure functions from (text, position) to answers, and a thin server around them."""
