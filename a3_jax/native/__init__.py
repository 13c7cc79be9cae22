"""Decode over a long context on a CPU: A3's search, attention and sorting in C++, called from XLA."""
