"""What the target class in Transformers says of itself: names, shapes, ties and config fields. The only package that imports transformers to ask."""
