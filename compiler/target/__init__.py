"""The target class in Transformers: tensor names, shapes, ties and config fields."""
