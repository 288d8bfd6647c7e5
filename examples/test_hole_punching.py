"""Does hole_punching.py get through? On real NATs, as ``pytest examples``; docs/lab.md explains every line.

Needs root (or ``unshare -Urnm pytest examples``), nft(8) and ``pip install iceagent pytest``.
"""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from iceagent.lab import Impairment

SCRIPT = Path(__file__).with_name("hole_punching.py")
PORT = 4000


def introduce(sock, is_over):
    """A rendezvous server: tell each of two clients where the other one is, as often as they ask."""
    clients = []
    while not is_over.is_set():
        try:
            _, source = sock.recvfrom(1500)
        except TimeoutError:
            continue
        if source not in clients:
            clients.append(source)
        if len(clients) == 2:
            host, port = clients[1 - clients.index(source)]
            sock.sendto(f"{host} {port}".encode(), source)


@pytest.fixture
def rendezvous(natlab):
    machine = natlab.machine("rendezvous")
    is_over = threading.Event()
    with machine.namespace.socket() as sock:
        sock.bind((machine.address, PORT))
        sock.settimeout(0.1)
        thread = threading.Thread(target=introduce, args=(sock, is_over))
        thread.start()
        yield f"{machine.address}:{PORT}"
        is_over.set()
        thread.join()


@pytest.mark.parametrize(
    ("kind_a", "kind_b", "gets_through"),
    [
        ("full-cone", "full-cone", True),
        ("port-restricted", "port-restricted", True),
        ("addr-restricted", "symmetric", True),
        ("port-restricted", "symmetric", False),
    ],
)
def test_two_homes(natlab, rendezvous, kind_a, kind_b, gets_through):
    homes = [natlab.router(kind) for kind in (kind_a, kind_b)]
    machines = [natlab.machine(behind=home) for home in homes]
    command = [sys.executable, str(SCRIPT), rendezvous]
    processes = [machine.popen(command, stdout=subprocess.PIPE, text=True) for machine in machines]
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0 if gets_through else 1] * 2, said
    if gets_through:
        assert homes[1].address in said[0] and homes[0].address in said[1]


@pytest.mark.natlab_needs("/dev/net/tun")
def test_a_lossy_uplink(natlab, rendezvous):
    uplink = Impairment(delay_s=0.025, loss=0.1)
    homes = [natlab.router("port-restricted", impairment=uplink) for _ in range(2)]
    machines = [natlab.machine(behind=home) for home in homes]
    processes = [machine.popen([sys.executable, str(SCRIPT), rendezvous]) for machine in machines]
    assert [process.wait() for process in processes] == [0, 0]
