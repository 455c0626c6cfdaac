"""The public functions, and what they check before anything changes."""
