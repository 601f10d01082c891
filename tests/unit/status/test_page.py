"""The document at `/`."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

from streamtrain.status import page

_ELSEWHERE = re.compile(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//|@import|url\(")


class Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.inline: dict[str, str] = {}
        self.attributes: list[tuple[str, str | None]] = []
        self._open = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open = tag
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        if self._open in ("script", "style"):
            self.inline[self._open] = self.inline.get(self._open, "") + data

    def handle_endtag(self, tag: str) -> None:
        self._open = ""


def test_the_policy_names_the_script_and_the_style_that_are_in_the_page() -> None:
    parser = Parser()
    parser.feed(page().html.decode())
    policy = dict(part.split(" ", 1) for part in page().headers["Content-Security-Policy"].split("; "))
    for tag in ("script", "style"):
        digest = hashlib.sha256(parser.inline[tag].encode()).digest()
        assert policy[f"{tag}-src"] == f"'sha256-{base64.b64encode(digest).decode()}'"
    assert policy["default-src"] == "'none'"


def test_it_names_nothing_elsewhere_and_has_no_inline_handlers_or_styles() -> None:
    parser = Parser()
    parser.feed(page().html.decode())
    assert not _ELSEWHERE.search(page().html.decode())
    assert [name for name, _ in parser.attributes if name == "style" or name.startswith("on")] == []
    assert len(page().html) < 64_000
