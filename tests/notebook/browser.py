"""A page in Chromium, for the tests that look at one. Without Chromium (on Debian `apt install chromium`) they are left
out.
"""

import shutil
from contextlib import contextmanager

import pytest

GUARD = 600_000  # ms, against hanging only
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WANT = "left out, for want of Chromium: nothing was tested in a browser; on Debian `apt install chromium`"
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason=WANT)


@contextmanager
def browsing(playwright, folder, address):
    """A page in a browser with an empty profile; its errors and dialogs are kept in `page.wrong`."""
    flags = "no-sandbox disable-gpu disable-background-networking disable-component-update disable-sync no-first-run"
    settings = {"args": [f"--{flag}" for flag in flags.split()], "viewport": {"width": 1280, "height": 800}}
    settings |= {"user_data_dir": folder / "profile", "executable_path": CHROMIUM}
    context = playwright.chromium.launch_persistent_context(**settings)
    context.set_default_timeout(GUARD)
    page = context.pages[0]
    page.wrong = []
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("dialog", lambda dialog: (page.wrong.append(dialog.message), dialog.dismiss()))
    page.goto(address, wait_until="commit")
    yield page
    context.close()
