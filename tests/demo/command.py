"""The command line, run in this process."""

from negdiag_param.__main__ import main

MAPS = ("exp", "softplus", "sign_flip")


def in_process(capsys, *arguments):
    try:
        code = main(arguments)
    except SystemExit as exit_:
        code = exit_.code
    return code, *capsys.readouterr()
