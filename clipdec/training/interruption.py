"""Signals that ask to stop wait for a whole step, so that a state can be written."""

import signal
import threading
from contextlib import contextmanager

NAMES = ("SIGINT", "SIGTERM", "SIGBREAK")  # SIGTERM never arrives on Windows, which alone has SIGBREAK: Ctrl-Break


class Stopped(KeyboardInterrupt):
    """A signal asked to stop."""

    def __str__(self):
        return signal.Signals(self.args[0]).name if self.args[0] else "another process"

    def end(self):
        """End as the signal would have: KeyboardInterrupt after SIGINT, an exit with 128 + its number after others."""
        if self.args[0] == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(128 + (self.args[0] or signal.SIGTERM)) from None


class Interruption:
    """Turns the signals NAMES into `Stopped`: at once, or, while `held`, by the note `signal`; a second one ends at
    once.
    """

    def __init__(self):
        self.signal, self.holding, self.before = None, False, {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread set them
            numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
            self.before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number, _):
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number
        if not self.holding:
            raise Stopped(number)

    @contextmanager
    def held(self):
        """Signals are noted only; those that came are raised at the end."""
        self.holding = True
        try:
            yield
        finally:
            self.holding = False
        if self.signal:
            raise Stopped(self.signal)
