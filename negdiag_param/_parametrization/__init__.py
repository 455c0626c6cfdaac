"""The parametrization modules: a scalar map put on a diagonal."""
