"""What the accelerator of the paper costs: cycles, seconds, joules and square metres. NumPy alone."""
