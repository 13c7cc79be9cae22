"""A3 in integers, bit for bit as the accelerator computes it."""
