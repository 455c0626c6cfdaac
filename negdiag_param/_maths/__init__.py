"""Tensors only: scalar maps, where a diagonal lies, and the operation that joins them."""
