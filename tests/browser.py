"""A page opened in a headless browser without a network, and what it did there."""

import shutil
from pathlib import Path
from typing import Any

import pytest


def chromium() -> str:
    """The browser's path; skip the test where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip(f"none of {', '.join(names)} is on PATH")
    return path


def open_offline(path: Path, width: int = 1280, dark: bool = False, click: str = "", ask: str = "0") -> dict[str, Any]:
    """Open an HTML file offline in a window `width` CSS px wide; skip the test where there is no browser.

    `click` is a selector to click once, `ask` an expression in JavaScript. Returns `answer` (its value), `requests`
    (addresses asked for besides the file; not data:), `errors` (of the console and of scripts), `text` (all that is
    visible), `empty_images` (number of images without size), `overflow` (CSS px by which the page is wider than the
    window), `open_details` (number of unfolded blocks in the text).
    """
    browser_path = chromium()
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    address = path.resolve().as_uri()
    requests: list[str] = []
    errors: list[str] = []
    with sync_api.sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=browser_path, args=arguments)
        context = browser.new_context(
            offline=True, viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"
        )
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        if click:
            page.click(click)
        result = page.evaluate(
            """() => ({
                text: document.body.innerText,
                empty_images: [...document.images].filter((i) => !i.naturalWidth || !i.width).length,
                overflow: document.documentElement.scrollWidth - window.innerWidth,
                open_details: document.querySelectorAll("main details[open]").length,
            })"""
        )
        result["answer"] = page.evaluate(ask)
        browser.close()
    foreign = [url for url in requests if url != address and not url.startswith("data:")]
    return result | {"requests": foreign, "errors": errors}
