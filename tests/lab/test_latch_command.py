"""``iceagent relay`` on real machines, forwarding in its process and in the kernel: what it leaves behind, what it does
without privileges, and what its guide promises.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from iceagent.lab import Lab, Machine
from relay.backend import Backend
from relay.latch.channel import (
    Channel,
    ChannelOptions,
    SideKey,
)
from tests.lab.latching import Call, on_both_backends
from tests.lab.packets import rules_of, sysctls

LEFT, RIGHT = 5000, 5001
GUIDE = Path(__file__).parents[2] / "docs" / "latching.md"
UNPRIVILEGED = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "iceagent", "relay", f"{LEFT}:{RIGHT}", *words]


def start(machine: Machine, backend: Backend) -> tuple[subprocess.Popen[str], list[SideKey]]:
    """``iceagent relay`` on it; returns when it is ready, with the keys that it has drawn."""
    process = machine.popen(command("--backend", backend, "--json"), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    assert (ready["event"], ready["backend"]) == ("relay.ready", backend)
    assert "reason" not in ready
    (channel,) = ready["channels"]
    assert (channel["left"], channel["right"]) == (LEFT, RIGHT)
    texts = (channel[f"{side}_key"].partition(":") for side in ("left", "right"))
    return process, [SideKey(username=name, password=password) for name, _, password in texts]


@asynccontextmanager
async def calling(server: Machine, left: Machine, right: Machine, found: list[SideKey]) -> AsyncIterator[Call]:
    """Over the command's channel."""
    channel = Channel(1, (LEFT, RIGHT), ChannelOptions(left=found[0], right=found[1]), 0.0)
    async with Call(server, channel, left, right) as call:
        yield call


def state(machine: Machine) -> tuple[str, str]:
    """Rules and settings."""
    return rules_of(machine), sysctls(machine)


@on_both_backends
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130), (signal.SIGKILL, -9)], ids=["TERM", "INT", "KILL"]
)
async def test_nothing_is_left_after_the_end_and_a_start_after_it_works(
    lab: Lab, backend: Backend, number: signal.Signals, code: int
) -> None:
    server, alice, bob = lab.machine(), lab.machine(), lab.machine()
    before = state(server)
    for _ in range(2):
        process, found = start(server, backend)
        async with calling(server, alice, bob, found) as call:
            await call.passes()
            rules, settings = state(server)
            assert settings == before[1]
            assert (rules == before[0]) == (backend == "userspace")
            process.send_signal(number)
            assert process.wait(1.5) == code
        if number != signal.SIGKILL:
            assert process.stdout is not None
            told = [json.loads(line) for line in process.stdout.read().splitlines()]
            assert [each["event"] for each in told] == ["side.latched"] * 2 + ["channel.closed", "relay.stopped"]
            assert (told[2]["reason"], told[2]["left_packets"], told[2]["right_bytes"]) == ("closed", 1, 100)
            assert (told[3]["packets"], told[3]["in_kernel"]) == (2, 2 if backend == "nftables" else 0)
        lab.wait_until(lambda: state(server) == before, 2, "something is left")


async def test_without_privileges_this_process_forwards_and_says_what_root_would_bring(lab: Lab) -> None:
    server, alice, bob = lab.machine(), lab.machine(), lab.machine()
    words = [*UNPRIVILEGED, *command("--json", "--key", f"{LEFT}=l:{'l' * 22}", "--key", f"{RIGHT}=r:{'r' * 22}")]
    process = server.popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    assert (ready["backend"], ready["reason"]) == ("userspace", "it needs CAP_NET_ADMIN (root)")
    assert ready["channels"] == [{"channel": 1, "left": LEFT, "right": RIGHT}]
    async with calling(server, alice, bob, [SideKey(username=each, password=each * 22) for each in "lr"]) as call:
        await call.passes()
    process.send_signal(signal.SIGTERM)
    _, said = await asyncio.to_thread(process.communicate, timeout=2)
    assert process.returncode == 0
    assert said.count("\n") == 1 and "it needs CAP_NET_ADMIN (root)" in said


async def test_the_kernel_is_an_error_where_it_was_asked_for_without_privileges(lab: Lab, server: Machine) -> None:
    words = [*UNPRIVILEGED, *command("--backend", "nftables")]
    process = server.popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    shown, said = await asyncio.to_thread(process.communicate, timeout=10)
    assert (process.returncode, shown) == (2, "")
    assert said.count("\n") == 1 and "--backend nftables: it needs CAP_NET_ADMIN (root)" in said


async def test_the_programs_of_the_guide_relay(lab: Lab) -> None:
    """One relays, and tells its keys; the other latches, from two machines."""
    server, alice, bob = lab.machine(), lab.machine(), lab.machine()
    relay_text, client_text = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    process = server.popen([sys.executable, "-W", "error", "-c", relay_text], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    sides = [process.stdout.readline().split() for _ in range(2)]
    clients = []
    for machine, (port, name, password) in zip((alice, bob), sides, strict=True):
        words = [sys.executable, "-W", "error", "-c", client_text, server.address, port, name, password]
        client = machine.popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert client.stdout is not None
        assert client.stdout.readline().startswith(f"latched as {machine.address}:")
        clients.append(client)
    for client, data in zip(clients, ("from alice\n", "from bob\n"), strict=True):
        assert client.stdin is not None
        client.stdin.write(data)
        client.stdin.close()
    for client, data in zip(clients, ("from bob\n", "from alice\n"), strict=True):
        assert client.stdout is not None
        assert await asyncio.to_thread(client.stdout.readline) == data
        assert client.wait(2) == 0
    process.kill()
    process.wait(2)


async def test_the_commands_of_the_guide_relay_on_one_machine(lab: Lab) -> None:
    machine = lab.machine()
    guide = GUIDE.read_text("utf-8")
    (block,) = re.findall(r"^```sh\n(.*?)^```$", guide, re.DOTALL | re.MULTILINE)
    client = re.findall(r"^```python\n(.*?)^```$", guide, re.DOTALL | re.MULTILINE)[-1]
    (machine.folder / "client.py").write_text(client, "utf-8")
    programs = {"iceagent": [sys.executable, "-m", "iceagent"], "python": [sys.executable, "-W", "error"]}
    processes = []
    for line, first in zip(block.splitlines(), ("relay.ready", "latched as", "latched as"), strict=True):
        program, *words = line.split()
        words = [str(machine.folder / word) if word == "client.py" else word for word in words]
        process = machine.popen([*programs[program], *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert first in process.stdout.readline()
        processes.append(process)
    relay, left, right = processes
    for process, said in ((left, "hello\n"), (right, "hi\n")):
        assert process.stdin is not None
        process.stdin.write(said)
        process.stdin.close()
    for process, heard in ((left, "hi\n"), (right, "hello\n")):
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == heard
        assert process.wait(2) == 0
    relay.send_signal(signal.SIGTERM)
    assert relay.wait(2) == 0
