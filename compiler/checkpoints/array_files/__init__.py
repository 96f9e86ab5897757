"""The files of arrays that other frameworks write: one module for each format."""
