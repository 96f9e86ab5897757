"""Program to text: the standalone converter."""
