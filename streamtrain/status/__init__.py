"""What a person sees at `/`: the daemon's state of the last minutes as one page."""

from streamtrain.status.board import StatusBoard
from streamtrain.status.page import Page, page

__all__ = ["Page", "StatusBoard", "page"]
