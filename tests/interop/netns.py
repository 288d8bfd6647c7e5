"""Where do these tests have their networks? In namespaces of the laboratory, set up by hand: not homes behind routers.

Needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN) and ip(8).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager

from iceagent.lab.namespace import Namespace


@contextmanager
def namespace() -> Iterator[Namespace]:
    """A namespace with loopback up and addresses usable at once, for the length of a ``with`` block."""
    with closing(Namespace("test", os.environ)) as made:
        yield made
