"""The page at `/`: one HTML document that holds its styles and its script and asks nobody but this daemon for anything."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

__all__ = ["Page", "page"]


@dataclass(frozen=True, slots=True)
class Page:
    """A document without data of the model; it fetches `status.json`.

    Attributes:
      html: the document.
      headers: to be sent with it. The policy names the hashes of the one script and the one style, so that a browser
        runs nothing else, whatever a log line or a name says.
    """

    html: bytes
    headers: dict[str, str]


@cache
def page() -> Page:
    """The page, put together once."""
    folder = files(__package__)
    style, script, html = (
        (folder / name).read_text("utf-8") for name in ("page.css", "page.js", "page.html")
    )
    policy = {
        "default-src": "'none'",
        "script-src": _hash_of(script),
        "style-src": _hash_of(style),
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    headers = {
        "Content-Security-Policy": "; ".join(f"{key} {value}" for key, value in policy.items()),
        "Content-Type": "text/html; charset=utf-8",
    }
    return Page(html.replace("/*STYLE*/", style).replace("/*SCRIPT*/", script).encode(), headers)


def _hash_of(text: str) -> str:
    """As a Content Security Policy names an inline script or style. Source: CSP Level 3, section 2.3.1."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
