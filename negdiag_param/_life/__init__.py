"""What a registered module lives through: copies, readings, assignments, resets, checkpoints."""
