"""Any-precision language models: quantize once into stacked bitplanes, read at any precision."""
