"""The example behind ``python -m negdiag_param``: data, fit, report, plot."""
