"""The command line of the scripts: options that show their defaults, and errors that become messages."""

import argparse
import sys
from contextlib import contextmanager


def parser(doc, out=None, kind="folder"):
    """An ArgumentParser with the option --out; its description is the first paragraph of a script's docstring."""
    shown = argparse.ArgumentDefaultsHelpFormatter
    options = argparse.ArgumentParser(description=doc.split("\n\n")[0], formatter_class=shown)
    options.add_argument("--out", default=out, required=out is None, help=f"{kind} to write")
    return options


@contextmanager
def messages(fail, stopped):
    """An error of the work becomes a message for `fail`; Ctrl-C ends it with the message `stopped`."""
    try:
        yield
    except (OSError, ValueError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        sys.exit(stopped)
