"""What the tests with a browser share: a laboratory, and two servers that both do STUN and TURN.

Fixtures and tests of a file live on one loop: a browser belongs to one, and takes a second to start.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from aiortc import RTCIceServer

from iceagent.lab import Lab
from iceagent.lab.services import coturn, serve

USER, PASSWORD = "browser", "secret"
# What a router lets out that lets out nothing else.
HTTPS_PORT = 443


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One for all tests of a file."""
    with Lab() as made:
        yield made


@pytest.fixture(scope="module")
def servers(lab: Lab) -> dict[str, str]:
    """Addresses of TURN servers, by make; each answers on port 443, too."""
    theirs, ours = lab.machine("coturn"), lab.machine("serve")
    for port in (3478, HTTPS_PORT):
        coturn(theirs, users={USER: PASSWORD}, port=port)
    serve(ours, "--listen", f"{ours.address}:{HTTPS_PORT}", "--user", f"{USER}:{PASSWORD}")
    return {"coturn": theirs.address, "serve": ours.address}


def turn(host: str, *options: str) -> RTCIceServer:
    """STUN and TURN there; ``options``: ``":443?transport=tcp"``, say."""
    urls = [f"turn:{host}{option}" for option in options or ("",)]
    return RTCIceServer(urls=urls, username=USER, credential=PASSWORD)
