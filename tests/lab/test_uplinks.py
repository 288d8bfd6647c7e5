"""A machine with two uplinks: which one is used, and what of the other when a cable is pulled?"""

from __future__ import annotations

import pytest

from iceagent.lab import Lab, LabError, Machine


def way_to(machine: Machine, host: str, *options: str) -> list[str]:
    """The words of ip(8) about the route to an address."""
    return machine.run(["ip", "-4", "route", "get", host, *options]).split()


def test_the_first_uplink_is_used_and_the_second_for_its_own_address_and_when_the_first_is_down(natlab: Lab) -> None:
    home, carrier = natlab.router("port-restricted"), natlab.router("port-restricted", is_carrier=True)
    phone, server = natlab.machine(behind=home), natlab.machine()
    second = phone.add_uplink(carrier)
    assert second.host.startswith("100.64.0.")
    assert phone.device in way_to(phone, server.address)
    assert "eth1" in way_to(phone, server.address, "from", second.host)
    phone.set_link(is_up=False)
    assert "eth1" in way_to(phone, server.address)
    phone.set_link(is_up=True)
    assert phone.device in way_to(phone, server.address)


def test_two_uplinks_with_one_address_are_refused(natlab: Lab) -> None:
    """Every home has the same inside network."""
    phone = natlab.machine("phone", behind=natlab.router("port-restricted"))
    with pytest.raises(LabError, match=r"phone is in 192\.168\.1\.2/24's network already"):
        phone.add_uplink(natlab.router("full-cone"))
    assert "eth1" not in phone.run(["ip", "-brief", "link"])
    assert phone.device in way_to(phone, "20.0.1.1")
