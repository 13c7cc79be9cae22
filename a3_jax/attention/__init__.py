"""Exact attention, attention over selected rows, and the same for batches of heads."""
