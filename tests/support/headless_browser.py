"""Headless Chromium, controlled with Selenium."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from http_clients import wait_until
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

DESKTOP, PHONE = (1280, 900), (360, 740)


class Browser:
    """Browser window. It stores its requests and its console messages until the next visit()."""

    def __init__(self, chromium: str, chromedriver: str, profile: str) -> None:
        options = ChromeOptions()
        options.binary_location = chromium
        for argument in (
            "--headless=new",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--force-device-scale-factor=1",
            f"--user-data-dir={profile}",
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
        ):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = Chrome(options=options, service=ChromeService(chromedriver))

    def visit(self, url: str, size: tuple[int, int] = DESKTOP, dark: bool = False) -> None:
        self.command(
            "Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=1, mobile=size == PHONE
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])
        # Requests of the page before, whose server may have ended, must not report failures for this one.
        self.driver.get("about:blank")
        self.console_messages(), self.requested_urls()
        self.driver.get(url)

    def command(self, name: str, **parameters: object) -> dict[str, Any]:
        """Executes a command of the DevTools protocol."""
        return self.driver.execute_cdp_cmd(name, parameters)

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def find_all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return self.find(selector).text

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        wait_until(condition, what)

    def console_messages(self) -> list[str]:
        """Returns the warnings and errors since the last call, including violations of the Content-Security-Policy."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")]

    def requested_urls(self) -> list[str]:
        """Returns the URLs requested since the last call, without data URLs."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return [url for url in sent if urlsplit(url).scheme != "data"]

    def violations(self) -> list[tuple[str, str, list[str]]]:
        """Returns the accessibility violations found by axe-core: the impact, the rule, and the elements."""
        self.run(files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
        report = self.driver.execute_async_script("axe.run().then(arguments[0], error => arguments[0]({error: String(error)}))")
        assert report.get("passes"), report
        return [
            (violation["impact"], violation["id"], [node["html"] for node in violation["nodes"]])
            for violation in report["violations"]
        ]

    def screenshot(self, path: Path) -> None:
        """Writes an image of the whole page."""
        import base64

        size = self.command("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        image = self.command("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(image["data"]))


@contextmanager
def open_browser(need: Callable[[str], str]) -> Iterator[Browser]:
    with tempfile.TemporaryDirectory(prefix="iris-browser-", ignore_cleanup_errors=True) as profile:
        window = Browser(need("chromium"), need("chromedriver"), profile)
        try:
            yield window
        finally:
            window.driver.quit()
