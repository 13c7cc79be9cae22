"""Greedy candidate selection over sorted keys: the same scores in several forms."""
