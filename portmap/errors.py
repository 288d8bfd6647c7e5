"""What can go wrong with port mapping?

- :class:`PortmapError`: all of it.

  - :class:`MappingFailed`: no gateway gave a mapping; says what each protocol answered.
  - :class:`FetchFailed`: an HTTP exchange with a gateway did not work; nobody outside of ``portmap`` sees it.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["FetchFailed", "MappingFailed", "PortmapError"]


class PortmapError(Exception):
    """All errors of port mapping."""


class FetchFailed(PortmapError):
    """An HTTP exchange did not work; the text is a sentence's end: ``no answer within 1 s``, ``Connection refused``."""


class MappingFailed(PortmapError):
    """No gateway gave a mapping.

    Attributes:
        reasons: what each protocol said, or why it was not asked; empty where there is no gateway.
    """

    def __init__(self, text: str, reasons: Mapping[str, str]) -> None:
        super().__init__(text)
        self.reasons = dict(reasons)
