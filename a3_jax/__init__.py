"""Approximate attention by greedy candidate selection (A3, HPCA 2020), and a cost model of the accelerator that runs it."""
