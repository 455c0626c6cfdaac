"""The demo behind ``python -m negdiag_param``, a user of the package like any other."""
