"""Real uses of attention, each with its inputs, its model and its evaluation."""
