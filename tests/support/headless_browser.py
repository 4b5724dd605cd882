"""A real browser, driven by Selenium: Debian's chromium and chromedriver."""

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
    """One window. What it asked for and what it complained of is kept until visit() begins anew."""

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
        self.complaints(), self.requests()
        self.driver.get(url)

    def command(self, name: str, **parameters: object) -> dict[str, Any]:
        """One of the DevTools protocol."""
        return self.driver.execute_cdp_cmd(name, parameters)

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return self.find(selector).text

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def until(self, holds: Callable[[], object], what: str) -> None:
        wait_until(holds, what)

    def complaints(self) -> list[str]:
        """What the console says since the last call, violations of the Content-Security-Policy among it."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")]

    def requests(self) -> list[str]:
        """The addresses that were asked for since the last call; those within the page itself are left out."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return [url for url in sent if urlsplit(url).scheme != "data"]

    def violations(self) -> list[tuple[str, str, list[str]]]:
        """What axe-core finds wrong for people who use the page with other means: impact, rule, places."""
        self.run(files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
        found = self.driver.execute_async_script("axe.run().then(arguments[0], error => arguments[0]({error: String(error)}))")
        assert found.get("passes"), found
        return [(one["impact"], one["id"], [node["html"] for node in one["nodes"]]) for one in found["violations"]]

    def picture(self, path: Path) -> None:
        """All of the page, however long."""
        import base64

        size = self.command("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        told = self.command("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(told["data"]))


@contextmanager
def open_browser(need: Callable[[str], str]) -> Iterator[Browser]:
    with tempfile.TemporaryDirectory(prefix="iris-browser-", ignore_cleanup_errors=True) as profile:
        one = Browser(need("chromium"), need("chromedriver"), profile)
        try:
            yield one
        finally:
            one.driver.quit()
