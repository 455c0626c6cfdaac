"""PyTorch's traps, each sprung on a naive parametrization and passed over by this package."""
