"""The demo: the main job of each package on real input, and one report."""
