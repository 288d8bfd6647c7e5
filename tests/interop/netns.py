"""Network namespaces of the laboratory, set up by hand: for what is not a home behind a router.

Needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN) and ip(8).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from iceagent.lab.namespace import Namespace as LabNamespace


class Namespace(LabNamespace):
    """A new network namespace with loopback up and addresses usable at once; close it after use."""

    def __init__(self) -> None:
        super().__init__("test", os.environ)

    def ip(self, *commands: str) -> None:
        """Run commands of ip(8) here, in one batch."""
        self.run(["ip", "-batch", "-"], "\n".join(commands))


@contextlib.contextmanager
def namespace() -> Iterator[Namespace]:
    """A namespace for the length of a ``with`` block."""
    made = Namespace()
    try:
        yield made
    finally:
        made.close()
