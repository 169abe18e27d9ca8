"""What the tests in a browser share."""

import pytest


@pytest.fixture(scope="module")
def playwright():
    from playwright.sync_api import sync_playwright  # not needed, nor there, where no browser is used

    with sync_playwright() as started:
        yield started
