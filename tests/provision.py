"""Installs the system packages that a part of the tests needs.

As root on Debian it installs what is missing. Elsewhere it prints what is missing and how to get it, and exits with 1:
a run that promises these tests must not pass without them.

Run as ``python tests/provision.py interop``, or ``lab``, or ``browser``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

PACKAGES = {
    # ICE agents of other makes.
    "interop": ("gcc", "pkg-config", "libnice-dev", "libglib2.0-dev", "iproute2", "nftables", "openssl"),
    # Real NATs, and what stands beside them.
    "lab": (
        *("nftables", "conntrack", "iproute2", "iputils-ping"),
        *("coturn", "miniupnpd-nftables", "miniupnpc", "natpmpc", "tayga", "unbound", "tinyproxy-bin", "redis-server"),
    ),
    # A browser behind real NATs.
    "browser": ("chromium", "coturn", "nftables"),
}

APT_TIMEOUT_S = 900
QUERY_TIMEOUT_S = 30
INSTALLED = "install ok installed"


def main(arguments: list[str]) -> int:
    """Bring the packages of one part here; returns the exit code."""
    if len(arguments) != 1 or arguments[0] not in PACKAGES:
        print(f"usage: python tests/provision.py {' | '.join(PACKAGES)}")
        return 2
    wanted = PACKAGES[arguments[0]]
    if shutil.which("dpkg-query") is None or shutil.which("apt-get") is None:
        print(f"This is not Debian. Needed, under whatever names your system gives them: {' '.join(wanted)}")
        return 1
    missing = [package for package in wanted if not is_installed(package)]
    if not missing:
        return 0
    if os.geteuid() != 0:
        print(f"Missing system packages: {' '.join(missing)}")
        print(f"Install them with: sudo apt-get update && sudo apt-get install -y {' '.join(missing)}")
        return 1
    return install(missing)


def is_installed(package: str) -> bool:
    """Whether dpkg knows ``package`` as completely installed."""
    query = ["dpkg-query", "--show", "--showformat=${Status}", package]
    answer = subprocess.run(query, capture_output=True, text=True, check=False, timeout=QUERY_TIMEOUT_S)
    return answer.returncode == 0 and answer.stdout.strip() == INSTALLED


def install(packages: list[str]) -> int:
    """Install ``packages`` with apt, asking nothing; returns the exit code."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["apt-get", "update"],
        ["apt-get", "install", "-y", "--no-install-recommends", *packages],
    ):
        print("+", " ".join(command), flush=True)
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=False, timeout=APT_TIMEOUT_S)
        if done.returncode != 0:
            print(f"{' '.join(command)} failed with exit code {done.returncode}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
