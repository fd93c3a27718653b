"""Exact mathematics of the method, on problems small enough to enumerate."""
