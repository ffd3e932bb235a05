from __future__ import annotations

import shutil

import pytest

WAIT_MS = 60_000


@pytest.fixture(scope="package")
def browser():
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 2000, "height": 900})
    page.set_default_timeout(WAIT_MS)
    yield page
    page.close()
