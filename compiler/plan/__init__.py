"""Program to `Plan`: a checkpoint's names, sizes and arguments, bound and checked."""
