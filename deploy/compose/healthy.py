#!/usr/bin/env python3
"""The health check of the images, which have no curl: exit with 0 if the URL answers 200, else with 1 and the reason.

usage: healthy URL
"""

import sys
import urllib.error
import urllib.request

TIMEOUT_S = 2.0


def problem(url: str) -> str | None:
    """Return why the URL is not healthy, or None."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S):  # noqa: S310 - compose.yaml gives the URL
            return None
    except urllib.error.HTTPError as error:
        return f"{url}: {error.code} {error.read(1000).decode(errors='replace')}"
    except OSError as error:
        return f"{url}: {error}"


if __name__ == "__main__":
    sys.exit(problem(sys.argv[1]))
