"""What can go wrong with a laboratory?"""

from __future__ import annotations

__all__ = ["PACKAGES", "LabError", "MissingProgram"]

PACKAGES = {
    "conntrack": "conntrack",
    "miniupnpd": "miniupnpd-nftables",
    "nft": "nftables",
    "redis-cli": "redis-tools",
    "redis-server": "redis-server",
    "tayga": "tayga",
    "tinyproxy": "tinyproxy-bin",
    "turnserver": "coturn",
    "unbound": "unbound",
}
"""Debian's package of each program that a laboratory may need."""


class LabError(Exception):
    """The laboratory cannot be built, or a part of it failed; the message says which, and how to mend it."""


class MissingProgram(LabError):
    """A part of the laboratory needs a program that is not installed.

    Attributes:
        program: its name.
    """

    def __init__(self, program: str) -> None:
        package = PACKAGES.get(program)
        hint = f": install Debian's package {package}, or your system's" if package else ", or not on the PATH"
        super().__init__(f"{program} is not installed{hint}")
        self.program = program
