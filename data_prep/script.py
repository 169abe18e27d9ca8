"""The command line of the scripts: options with bounds that show their defaults, and errors that become messages."""

import argparse
import os
import sys
from contextlib import contextmanager
from pathlib import Path

path = os.path.expanduser  # the type of every path: a shell leaves the ~ of --out=~/data as it is


def number(kind, allows, words):
    """The type of an option: an int or a float that `allows` is true of; `words` say of what it is true."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not allows(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {words}")
        return value

    return parse


count = number(int, lambda n: n >= 1, "a whole number of at least 1")
seed = number(int, lambda n: 0 <= n < 2**32, "a seed: a whole number from 0 to below 2^32")
share = number(float, lambda x: 0 <= x < 1, "a share from 0 to below 1")
percent = number(float, lambda x: 0 <= x <= 100, "a percentage from 0 to 100")


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the defaults of those options that have one, and the description as it is."""

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)


def parser(doc, out=None, kind="folder"):
    """An ArgumentParser with the option --out; its description is a script's docstring."""
    if hasattr(sys.stdout, "reconfigure"):  # not every console or pipe has every character of a name
        sys.stdout.reconfigure(errors="backslashreplace")
    prog = f"python -m data_prep.{Path(sys.argv[0]).stem}"
    options = argparse.ArgumentParser(prog, description=doc, formatter_class=Help)
    options.add_argument("--out", type=path, default=out, required=out is None, help=f"{kind} to write")
    return options


def print_beside(here, complete):
    """Figures {name: number} of the data beside those of the complete data set."""
    written = lambda figure: f"{figure:12,}" if isinstance(figure, int) else f"{figure:12,.3g}"
    print(f"{'':28}{'here':>12}{'complete':>12}")
    for name, figure in here.items():
        print(f"{name:28}{written(figure)}{written(complete[name])}")


@contextmanager
def messages(fail, stopped):
    """An error of the work becomes a message for `fail`; Ctrl-C ends it with the message `stopped`."""
    try:
        yield
    except (OSError, ValueError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        sys.exit(stopped)
