"""Make docs/chat.png: the chat with the default model, one flagged prompt, both answers. Run `make picture`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from middleware import SAEAnnotator, ServerSource
from sae_runtime.detector.artefacts import Artefacts
from sae_runtime.models import DEFAULT_MODEL
from ui.backend import open_backend
from ui.page.app import Door, build_page, start_page

PICTURE = Path(__file__).with_name("chat.png")
EXAMPLE = "scales (in music)"
_ANSWER = 120_000  # milliseconds


def main() -> None:
    """Serve, ask, take the picture."""
    with open_backend(DEFAULT_MODEL) as backend, tempfile.TemporaryDirectory() as words:
        annotator = SAEAnnotator(source=ServerSource(backend.url, tokens=True), deadline=60, grace=None)
        page = build_page(annotator, backend, Artefacts.open(DEFAULT_MODEL), overlays=Path(words))
        url = start_page(page, Door(0), block=False)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
            view = browser.new_page(viewport={"width": 1440, "height": 1000}, color_scheme="light")
            view.goto(url)
            view.get_by_role("button", name=EXAMPLE).click()
            view.locator(".sc-card:not([hidden])").wait_for(timeout=_ANSWER)
            view.get_by_role("button", name="Send", exact=True).wait_for(timeout=_ANSWER)
            view.locator(".sc-word.sc-flagged").first.hover()
            view.screenshot(path=PICTURE)
            browser.close()
        page.close()
    print(f"{PICTURE} is made.")


if __name__ == "__main__":
    main()
