"""What happens to a registered module: copies, readings, assignments, resets, checkpoints."""
