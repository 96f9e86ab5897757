"""A Plan for people: as text, and as an HTML page."""
