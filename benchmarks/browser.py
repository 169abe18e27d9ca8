"""A Jupyter server and a page in Chromium, for the benchmarks and the tests that look at one."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GUARD = 600_000  # ms, against hanging only
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = "no-sandbox disable-gpu disable-background-networking disable-component-update disable-sync no-first-run"


def answers(port):
    """Whether a server listens there."""
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


@contextmanager
def serving(folder, *command, path):
    """A Jupyter server of its own PORT, TOKEN and settings: the address of `path` on it. Its log is printed at the end,
    so that a test shows it beside an error.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, log = secrets.token_hex(16), folder / "server.log"
    command = [part.replace("PORT", str(port)).replace("TOKEN", token) for part in (sys.executable, "-m", *command)]
    fresh = ["_CONFIG", "_RUNTIME", "_DATA", "LAB_SETTINGS", "LAB_WORKSPACES"]
    settings = os.environ | {name: str(folder / name) for name in ("IPYTHONDIR", *(f"JUPYTER{n}_DIR" for n in fresh))}
    with open(log, "w") as file:
        server = subprocess.Popen(command, cwd=ROOT, env=settings, stdout=file, stderr=subprocess.STDOUT)
        try:
            end = time.monotonic() + GUARD / 1000
            while not answers(port):
                if server.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"{command[2]} does not answer")
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}/{path}?token={token}"
        finally:
            server.terminate()
            server.wait(GUARD / 1000)
            print(log.read_text(encoding="utf8"))


@contextmanager
def browsing(playwright, folder, address):
    """A page in a browser with an empty profile; its errors and dialogs are kept in `page.wrong`."""
    settings = {"args": [f"--{flag}" for flag in FLAGS.split()], "viewport": {"width": 1280, "height": 800}}
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
