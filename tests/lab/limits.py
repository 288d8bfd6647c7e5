"""How long may a test take that takes longer than any other?"""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["limit"]


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    """So long: its own in the place of pytest's ``faulthandler_timeout``."""
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
