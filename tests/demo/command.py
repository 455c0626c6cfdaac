"""The command line, run in this process."""

import re

from negdiag_param.__main__ import main

MAPS = ("exp", "softplus", "sign_flip")


def in_process(capsys, *arguments):
    try:
        code = main(arguments)
    except SystemExit as exit_:
        code = exit_.code
    return code, *capsys.readouterr()


def rows(output):
    """The rows of the printed tables as lists of text, by their labels."""
    found = (re.split(r"\s{2,}", line.strip()) for line in output.splitlines())
    return {label: entries for label, *entries in found if entries}
