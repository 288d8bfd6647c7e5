"""Laboratories that are built and closed at the same moment: none touches another, and cables carry at once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest

from iceagent.lab import Lab
from iceagent.lab.namespace import Namespace
from iceagent.lab.owner import Owner, sweep

ROOT = Path(__file__).parents[2]
# At once, and laboratories that each builds; before links were waited for, two in a hundred were not up.
PROGRAMS, ROUNDS = 5, 30

# Looks at all links, which does not hurry the kernel as looking at one does.
BUILDER = """
import sys
from iceagent.lab import Lab

def asleep(namespace):
    states = {link.get_attr("IFLA_IFNAME"): link.get_attr("IFLA_OPERSTATE") for link in namespace.netlink(
        lambda ip: list(ip.get_links()))}
    return [f"{namespace.name}/{name}: {state}" for name, state in states.items() if name != "lo" and state != "UP"]

sys.stdin.readline()
for _ in range(ROUNDS):
    with Lab() as lab:
        router = lab.router()
        machine = lab.machine(behind=router)
        for each in (machine, router, lab.internet):
            for link in asleep(each.namespace):
                print(link)
""".replace("ROUNDS", str(ROUNDS))

# Its owner is there, and nothing else yet.
BEGINNER = """
import subprocess, sys
from iceagent.lab.owner import VARIABLE, Owner
owner = Owner()
child = subprocess.Popen(["sleep", "1000"], env={VARIABLE: owner.mark, "PATH": "/usr/bin:/bin"})
print(child.pid, owner.folder, flush=True)
sys.stdin.readline()
child.kill()
owner.close()
"""


def start(script: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )


def test_the_end_of_a_cable_that_is_up_alone_is_not_usable_and_both_are_in_the_end(natlab: Lab) -> None:
    one, other = natlab.add_namespace("one"), natlab.add_namespace("other")
    one.veth("left", other, "right")
    one.up("left", "192.0.2.1/24")
    assert not one.is_usable("left") and not other.is_usable("right")
    other.up("right", "192.0.2.2/24")
    for namespace, name in ((one, "left"), (other, "right")):

        def is_usable(namespace: Namespace = namespace, name: str = name) -> bool:
            return namespace.is_usable(name)

        natlab.wait_until(is_usable, 5.0, f"{name} is not usable")
    other.set_link("right", is_up=False)
    natlab.wait_until(lambda: not one.is_usable("left"), 5.0, "left is usable")


def test_however_many_are_built_at_once_each_link_is_up_when_it_is_given_out() -> None:
    """All wait for one thread of the kernel, which brings up the end of a cable whose other end came later."""
    programs = [start(BUILDER) for _ in range(PROGRAMS)]
    told = []
    for program in programs:
        assert program.stdin is not None
        program.stdin.write("\n")
        program.stdin.flush()
    for program in programs:
        said, _ = program.communicate()
        told += said.splitlines()
        assert program.returncode == 0
    assert told == []


def test_what_is_swept_is_never_a_laboratory_that_is_being_built() -> None:
    program = start(BEGINNER)
    assert program.stdout is not None
    pid, folder = program.stdout.readline().split()
    for _ in range(3):
        sweep()
    os.kill(int(pid), 0)
    assert Path(folder).is_dir()
    program.communicate("\n")
    assert program.returncode == 0 and not Path(folder).exists()


def test_programs_are_looked_for_while_the_networks_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel gives the number of a network that is closed to the next one, another laboratory's say, whose
    programs would be ended.
    """
    namespaces: list[Namespace] = []
    found: list[tuple[set[int], set[int]]] = []

    class Watched(Owner):
        def close(self, networks: Collection[int] = ()) -> None:
            # Raises where one is closed.
            found.append((set(networks), {namespace.inode for namespace in namespaces}))
            super().close(networks)

    monkeypatch.setattr("iceagent.lab.lab.Owner", Watched)
    with Lab() as lab:
        namespaces += [lab.internet.namespace, lab.machine().namespace]
        expected = {namespace.inode for namespace in namespaces}
    assert found == [(expected, expected)]
