"""UDP hole punching in thirty lines, to be tested: see test_hole_punching.py and docs/lab.md.

``python hole_punching.py HOST:PORT`` asks a rendezvous server for a peer, sends to it until something comes back, and
prints the address that works.
"""

import socket
import sys
import time

LIMIT_S = 5.0
STEP_S = 0.1


def punch(rendezvous: tuple[str, int]) -> tuple[str, int] | None:
    """The address of a peer that was reached, and that has reached us; ``None`` where that is not possible."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(STEP_S)
    peer: tuple[str, int] | None = None
    ends_at = time.monotonic() + LIMIT_S
    while time.monotonic() < ends_at:
        sock.sendto(b"who else?" if peer is None else b"punch", peer or rendezvous)
        try:
            data, source = sock.recvfrom(1500)
        except TimeoutError:
            continue
        if source == rendezvous:
            host, port = data.decode().split()
            peer = peer or (host, int(port))
        else:
            # From wherever it came: behind some NATs the peer has another port for us than for the server.
            for _ in range(3):
                sock.sendto(b"through", source)
            if data == b"through":
                return source
            peer = source
    return None


if __name__ == "__main__":
    host, _, port = sys.argv[1].rpartition(":")
    reached = punch((host, int(port)))
    print(f"reached {reached[0]}:{reached[1]}" if reached else "no way through")
    sys.exit(reached is None)
