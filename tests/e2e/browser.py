"""A real browser without a window, held to what every page of ours must do: no error, and no word to another host."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

PATIENCE_S = 30.0
HEIGHT = 900
PHONE = 360


class Tab:
    """One page, open. ``forgiven``: what of its console may be an error."""

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self.driver = driver
        self.url = url
        self.forgiven: list[str] = []

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return str(self.run("return document.querySelector(arguments[0])?.textContent ?? ''", selector))

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def column(self, chart: str, number: int = 1) -> list[float]:
        """What a chart draws: the values that are known, oldest first."""
        values = self.run(f"return document.querySelector('#chart-{chart} .plot').plot?.data[{number}] ?? []")
        return [value for value in values if value is not None]

    def wait(self, condition: Callable[[], Any], what: str) -> None:
        """Return once this is true."""
        end = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > end:
                pytest.fail(f"never {what}; the page says: {' '.join(self.text('main').split())[:1_500]}")
            time.sleep(0.1)

    def scheme(self, scheme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def errors(self) -> list[str]:
        """What the console complains of, a breach of the page's policy included."""
        found = [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] != "INFO"]  # type: ignore[no-untyped-call]
        return [message for message in found if not any(words in message for words in self.forgiven)]

    def hosts(self) -> set[str]:
        """Everywhere that something was asked of."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]  # type: ignore[no-untyped-call]
        asked = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
        parts = [urlsplit(parameters["request"]["url"]) for parameters in asked]
        return {part.netloc for part in parts if part.scheme not in ("blob", "data")}


@contextlib.contextmanager
def open_tab(url: str, *, width: int = 1280, scheme: str = "light") -> Iterator[Tab]:
    """Open a page; when done, its console must be without error and its requests to its own host. Skips without one."""
    driver_path, browser = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")
    if driver_path is None or browser is None:
        pytest.skip("no chromium and chromedriver here; on Debian: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    # Tests run as root in containers, with a small /dev/shm.
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-first-run"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_path))
    try:
        size = {"width": width, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": width <= PHONE}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        tab = Tab(driver, url)
        tab.scheme(scheme)
        driver.get(url)
        yield tab
        assert tab.errors() == []
        assert tab.hosts() == {urlsplit(url).netloc}
    finally:
        driver.quit()
