"""``iceagent punch`` on loopback: in this process, and as a process of its own."""

from __future__ import annotations

import asyncio
import errno
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from iceagent.cli.punch_lines import MAX_LINE
from iceagent.config import Config
from iceagent.nat.punch_report import Answered, DataReceived, Lost, PunchOptions
from iceagent.net.address import TransportAddress
from iceagent.net.core import Event
from iceagent.net.host import SocketOptions
from iceagent.net.local import LocalHost
from iceagent.punch.far_end import FarEndServer
from iceagent.punch.lifetime import measure_lifetime
from iceagent.punch.punch import Punch, PunchFailed
from relay.latch.channel import ChannelOptions, SideKey
from relay.latch.relay import LatchRelay
from relay.server import Server
from relay.stun import short_term_key
from tests.loopback.loops import Inbox, LoopFactory, on_both_loops, run

HOST = "127.86.8.1"
GUIDE = Path(__file__).parents[2] / "docs" / "punch.md"
KEY = short_term_key("a secret of both")
ON_LOOPBACK = Config(loopback=True, bind_hosts=(HOST,))
# The longest a test waits for a process, in seconds.
PATIENCE_S = 20


def far_end(**options: Any) -> FarEndServer:
    return FarEndServer(LocalHost(), config=ON_LOOPBACK, **options)


def end(on_event: Callable[[Event], None] = lambda event: None, **options: Any) -> Punch:
    return Punch(LocalHost(), PunchOptions(**options), config=ON_LOOPBACK, on_event=on_event)


# --- in this process -------------------------------------------------------------------------------------------------


@on_both_loops
def test_a_far_end_answers_and_is_measured(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        async with far_end() as server, end() as punch:
            answered = await punch.meet(server.bases)
            assert answered.path == (punch.bases[0], server.bases[0])
            assert answered.mapped == punch.bases[0]
            await punch.settled()
            assert punch.core.round_trips.count == server.core.counters["requests"] == 4
            assert 0 < answered.rtt_s < 1.0

    run(loop_factory, main())


@on_both_loops
def test_so_does_any_stun_server(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        async with Server(LocalHost(), [TransportAddress("::1", 0)]) as server:
            config = Config(loopback=True)
            async with Punch(LocalHost(), config=config) as punch:
                answered = await punch.meet([server.listeners[0].address])
                assert answered.mapped == punch.bases[0]

    run(loop_factory, main())


@on_both_loops
def test_two_meet_and_talk_both_ways(loop_factory: LoopFactory) -> None:
    """Both know the other's address; what one sends before the other was answered is not lost."""

    async def main() -> None:
        heard: list[list[bytes]] = [[], []]
        done = asyncio.Event()

        def hear(number: int) -> Callable[[Event], None]:
            def on_event(event: Event) -> None:
                if isinstance(event, DataReceived):
                    heard[number].append(event.data)
                    if all(len(each) == 3 for each in heard):
                        done.set()

            return on_event

        async with end(hear(0), key=KEY) as one, end(hear(1), key=KEY) as other:
            addresses = await one.open(version=4), await other.open(version=4)

            async def play(punch: Punch, remote: TransportAddress) -> None:
                await punch.meet([remote])
                for number in range(3):
                    assert punch.send(b"%d" % number) == 0

            await asyncio.gather(play(one, addresses[1]), play(other, addresses[0]))
            async with asyncio.timeout(5.0):
                await done.wait()
            assert heard == [[b"0", b"1", b"2"]] * 2

    run(loop_factory, main())


@on_both_loops
def test_the_same_socket_asks_for_its_address_and_punches(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        async with far_end() as server, far_end() as other, end() as punch:
            seen = await punch.ask(server.bases[0])
            assert seen.mapped == seen.base == punch.bases[0]
            answered = await punch.meet(other.bases)
            assert answered.path.base == seen.base and len(punch.bases) == 1

    run(loop_factory, main())


@on_both_loops
def test_a_server_that_was_asked_can_be_punched_to(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        async with far_end() as server, end() as punch:
            await punch.ask(server.bases[0])
            assert (await punch.meet(server.bases)).path.remote == server.bases[0]

    run(loop_factory, main())


async def test_a_latching_relay_stands_in_between() -> None:
    """Each end punches to its side of a channel; what they send goes to the other."""
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    def hear(event: Event) -> None:
        if isinstance(event, DataReceived):
            heard.put_nowait(event.data)

    sides = [SideKey(username=name, password=f"the secret of the {name} side") for name in ("left", "right")]
    async with LatchRelay(LocalHost(), backend="userspace", bind=("127.0.0.1",)) as relay:
        channel = relay.open(options=ChannelOptions(left=sides[0], right=sides[1]))
        keys = [short_term_key(side.password) for side in sides]
        async with (
            end(hear, key=keys[0], username=sides[0].username) as one,
            end(hear, key=keys[1], username=sides[1].username) as other,
        ):
            for punch, port in ((one, channel.left.port), (other, channel.right.port)):
                answered = await punch.meet([TransportAddress("127.0.0.1", port)])
                assert answered.mapped == punch.bases[0]
            for punch, data in ((one, b"from the left"), (other, b"from the right")):
                assert punch.send(data) == 0
                async with asyncio.timeout(5.0):
                    assert await heard.get() == data


@on_both_loops
def test_a_reflector_answers(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        inbox = Inbox()
        host = LocalHost()
        mirror = host.socket(TransportAddress(HOST, 0), inbox, SocketOptions())
        inbox.datagram_received = lambda sock, data, source: sock.send(data, source)  # type: ignore[method-assign, assignment]
        async with end() as punch:
            answered = await punch.meet([mirror.address])
            assert answered.mapped is None
        mirror.close()

    run(loop_factory, main())


@on_both_loops
def test_nobody_there_is_an_error_after_its_time_with_the_reason(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind((HOST, 0))
            nobody, mute = TransportAddress(HOST, 1), TransportAddress(*silent.getsockname())
            async with end(timeout_s=0.5) as punch:
                started = time.monotonic()
                with pytest.raises(PunchFailed, match=rf"^{nobody}: Connection refused; {mute}: no answer$"):
                    await punch.meet([nobody, mute])
                assert 0.4 < time.monotonic() - started < 2.0
            with pytest.raises(RuntimeError, match="nobody was met yet"):
                punch.send(b"x")

    run(loop_factory, main())


@on_both_loops
def test_a_far_end_that_comes_late_is_met(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind((HOST, 0))
            port = free.getsockname()[1]
        async with end() as punch:
            meeting = asyncio.create_task(punch.meet([TransportAddress(HOST, port)]))
            await asyncio.sleep(0.3)
            config = Config(loopback=True, bind_hosts=(HOST,), port_range=(port, port))
            async with FarEndServer(LocalHost(), config=config):
                assert (await meeting).path.remote.port == port

    run(loop_factory, main())


async def test_a_loss_is_told_and_the_way_back_as_well() -> None:
    events: list[Event] = []
    news = asyncio.Event()

    def on_event(event: Event) -> None:
        events.append(event)
        news.set()

    async def until(kind: type[Event], count: int) -> None:
        async with asyncio.timeout(10.0):
            while sum(isinstance(event, kind) for event in events) < count:
                news.clear()
                await news.wait()

    async with end(on_event, keepalive_s=0.2) as punch:
        async with far_end() as server:
            port = server.bases[0].port
            await punch.meet(server.bases)
            await punch.settled()
        await until(Lost, 1)
        (lost,) = [event for event in events if isinstance(event, Lost)]
        assert lost.reason == "Connection refused" and punch.core.is_lost
        async with FarEndServer(LocalHost(), config=Config(loopback=True, bind_hosts=(HOST,), port_range=(port, port))):
            await until(Answered, 2)
            assert not punch.core.is_lost


async def test_a_lifetime_that_has_no_end() -> None:
    events: list[Event] = []
    async with far_end(key=KEY) as server:
        report = await measure_lifetime(
            LocalHost(), server.bases[0], config=ON_LOOPBACK, key=KEY, max_s=1.0, on_event=events.append
        )
    assert report.answered.lifetime_s is None and report.answered.alive_s == pytest.approx(1.0, abs=0.1)
    assert report.unanswered.lifetime_s is None and report.one_way_refresh is None
    assert events


@on_both_loops
def test_a_plain_stun_server_measures_no_lifetime(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        async with Server(LocalHost(), [TransportAddress(HOST, 0)]) as server:
            address = server.listeners[0].address
            with pytest.raises(PunchFailed, match=f"{address}: it answers 420 Unknown Attribute to RESPONSE-PORT"):
                await measure_lifetime(LocalHost(), address, config=ON_LOOPBACK)

    run(loop_factory, main())


@on_both_loops
def test_an_address_without_a_way_there_is_told(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        async with end() as punch:
            with pytest.raises(PunchFailed, match="no address of this host that may be used leads to ::1"):
                await punch.meet([TransportAddress("::1", 9)])
            with pytest.raises(PunchFailed, match="no address of another host"):
                await punch.meet([await punch.open(version=4)])
            with pytest.raises(PunchFailed, match="no address of this host that may be used leads to others"):
                await punch.open(version=6)
        with pytest.raises(PunchFailed, match="no address of this host that may be used leads to ::1"):
            await measure_lifetime(LocalHost(), TransportAddress("::1", 9), config=ON_LOOPBACK)

    run(loop_factory, main())


@on_both_loops
def test_a_port_that_is_taken(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        async with far_end() as server:
            port = server.bases[0].port
            config = Config(loopback=True, bind_hosts=(HOST,), port_range=(port, port))
            with pytest.raises(OSError, match=f"cannot listen on {HOST}:{port}") as caught:
                await FarEndServer(LocalHost(), config=config).__aenter__()
            assert caught.value.errno == errno.EADDRINUSE

    run(loop_factory, main())


async def test_the_example_of_the_guide(capsys: pytest.CaptureFixture[str]) -> None:
    """As it stands in docs/punch.md, but for the addresses and for how long it stays."""
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    async with far_end() as server, far_end() as other:
        for address, ours in (("198.51.100.1", server), ("203.0.113.9", other)):
            code, count = re.subn(rf'TransportAddress\("{address}", \d+\)', repr(ours.bases[0]), code)
            assert count == 1
        code = code.replace("asyncio.sleep(60)", "asyncio.sleep(0)").replace("asyncio.run(main())", "")
        namespace: dict[str, Any] = {}
        exec(compile(code, str(GUIDE), "exec"), namespace)
        await namespace["main"]()
        assert other.core.counters["requests"] >= 1
    assert capsys.readouterr().out.startswith("tell the other end: 127.")


# --- the command -----------------------------------------------------------------------------------------------------


@contextmanager
def punching(*words: str) -> Iterator[subprocess.Popen[str]]:
    """``iceagent punch`` as a process; it is ended at the latest when the block ends."""
    command = [sys.executable, "-m", "iceagent", "punch", *words]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def next_event(process: subprocess.Popen[str], name: str) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate(timeout=PATIENCE_S)
    event: dict[str, Any] = json.loads(line)
    assert event["event"] == name, event
    return event


@contextmanager
def serving(*words: str) -> Iterator[str]:
    """A far end; its address."""
    with punching("--serve", "--bind", HOST, "--port", "0", "--json", *words) as process:
        yield next_event(process, "punch.ready")["local"][0]
        process.send_signal(signal.SIGTERM)
        assert next_event(process, "punch.stopped")["requests"] > 0
        assert process.wait(PATIENCE_S) == 0
        assert process.communicate() == ("", "")


def test_the_command_tells_the_round_trip_and_our_address() -> None:
    with serving() as address, punching(address, "--json") as process:
        answered = next_event(process, "punch.answered")
        assert answered["address"] == address and answered["mapped"] == answered["local"]
        assert 0 < answered["rtt_ms"] < 1_000
        summary = next_event(process, "summary")
        assert (summary["requests"], summary["answers"], summary["losses"], summary["lost"]) == (4, 4, 0, False)
        assert summary["rtt_ms"]["min"] <= summary["rtt_ms"]["mean"] <= summary["rtt_ms"]["max"]
        assert process.wait(PATIENCE_S) == 0
        assert process.communicate() == ("", "")


def test_the_command_speaks_plain_text_too() -> None:
    with serving() as address, punching(address) as process:
        out, err = process.communicate(timeout=PATIENCE_S)
        assert f"punch.answered  {address} answers in " in out and "sees us at 127." in out
        assert (process.returncode, err) == (0, "")


def test_nobody_there_is_exit_code_4_after_the_timeout() -> None:
    started = time.monotonic()
    with punching(f"{HOST}:1", "--timeout", "1", "--json") as process:
        assert next_event(process, "punch.failed")["reason"] == f"{HOST}:1: Connection refused"
        assert next_event(process, "summary")["address"] is None
        assert process.wait(PATIENCE_S) == 4
    assert time.monotonic() - started < 10.0


def test_a_name_that_nobody_has_is_exit_code_4() -> None:
    with punching("no-such-name.invalid:1", "--timeout", "5", "--json") as process:
        assert "event" in next_event(process, "punch.failed")
        assert process.wait(PATIENCE_S) == 4


def test_names_are_resolved_and_the_first_way_that_answers_is_taken() -> None:
    """localhost may have two addresses, and the far end is at one of them."""
    with punching("--serve", "--bind", "127.0.0.1", "--port", "0", "--json", "--duration", "20") as server:
        port = next_event(server, "punch.ready")["local"][0].rpartition(":")[2]
        with punching(f"localhost:{port}", "--json") as process:
            assert next_event(process, "punch.answered")["address"] == f"127.0.0.1:{port}"
            assert process.wait(PATIENCE_S) == 0


def test_a_name_that_does_not_exist_is_named() -> None:
    """Nobody is asked for this one: it cannot be a host's."""
    with punching("!!:1", "--json") as process:
        assert next_event(process, "punch.failed")["reason"].startswith("!!: ")
        assert process.wait(PATIENCE_S) == 4


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"])
def test_a_held_path_ends_within_a_second_when_told(number: signal.Signals, code: int) -> None:
    with serving() as address, punching(address, "--keepalive", "0.5", "--json") as process:
        next_event(process, "punch.answered")
        process.send_signal(number)
        started = time.monotonic()
        assert next_event(process, "summary")["address"] == address
        assert process.wait(PATIENCE_S) == code
        assert time.monotonic() - started < 1.0


@pytest.mark.parametrize("words", [(), ("--keepalive", "1"), ("--stdio",), ("--lifetime", "--keepalive", "1")])
def test_sigterm_before_anybody_was_met_is_an_interruption(words: tuple[str, ...]) -> None:
    with punching(f"{HOST}:1", "--timeout", "600", "--bind", HOST, *words) as process:
        time.sleep(1.0)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 130


def test_sigterm_while_a_lifetime_is_measured_is_one_too() -> None:
    words = ("--bind", HOST, "--lifetime", "--keepalive", "1", "--json")
    with serving() as address, punching(address, *words) as process:
        next_event(process, "punch.answered")
        next_event(process, "punch.probed")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 130


def test_sigterm_on_a_path_that_is_lost_says_so() -> None:
    """As when --duration ends it."""
    with punching("--serve", "--bind", HOST, "--port", "0", "--json") as far:
        address = next_event(far, "punch.ready")["local"][0]
        with punching(address, "--keepalive", "0.5", "--json") as process:
            next_event(process, "punch.answered")
            far.kill()
            assert next_event(process, "punch.lost")["reason"] == "Connection refused"
            process.send_signal(signal.SIGTERM)
            assert next_event(process, "summary")["lost"] is True
            assert process.wait(PATIENCE_S) == 4


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"])
def test_a_far_end_that_waits_for_one_ends_as_a_server_does(number: signal.Signals, code: int) -> None:
    with punching("--serve", "--stdio", "--bind", HOST, "--port", "0", "--json") as far:
        next_event(far, "punch.ready")
        far.send_signal(number)
        assert next_event(far, "summary")["address"] is None
        assert far.wait(PATIENCE_S) == code


@pytest.mark.parametrize("words", [(f"{HOST}:1",), (f"{HOST}:1", "--lifetime"), ("-",)])
def test_so_does_one_that_waits(words: tuple[str, ...]) -> None:
    with punching(*words, "--timeout", "600", "--bind", HOST) as process:
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        assert process.wait(PATIENCE_S) == 130
        assert time.monotonic() - started < 1.2


def test_a_duration_ends_it() -> None:
    with serving() as address, punching(address, "--keepalive", "0.5", "--duration", "1.2", "--json") as process:
        next_event(process, "punch.answered")
        assert next_event(process, "summary")["answers"] >= 5
        assert process.wait(PATIENCE_S) == 0


def test_lines_go_both_ways() -> None:
    """A far end with --stdio: who asks first, with the key, is the other end; both speak plain lines on stdout."""
    words = ("--bind", HOST, "--stdio", "--key", "a secret of both")
    with punching("--serve", "--port", "0", *words) as far:
        assert far.stderr is not None and far.stdin is not None and far.stdout is not None
        ready = far.stderr.readline()
        address = ready.partition("local=[")[2].strip().rstrip("]")
        with punching(address, *words) as near:
            assert near.stdin is not None
            near.stdin.write("one\ntwo\n\nöäü\n")
            near.stdin.flush()
            assert [far.stdout.readline() for _ in range(4)] == ["one\n", "two\n", "\n", "öäü\n"]
            far.stdin.write("three")
            far.stdin.close()
            out, err = near.communicate(timeout=PATIENCE_S)
            assert out == "three\n" and "punch.answered" in err and near.returncode == 0
        far.wait(PATIENCE_S)
        assert far.stdout.read() == "" and far.returncode == 0


def test_what_came_is_an_event_where_results_are_json() -> None:
    words = ("--bind", HOST, "--stdio", "--json")
    with punching("--serve", "--port", "0", *words) as far:
        address = next_event(far, "punch.ready")["local"][0]
        with punching(address, *words) as near:
            long = "x" * (MAX_LINE + 10)
            near.communicate(f"short\n{long}\n", timeout=PATIENCE_S)
            assert near.returncode == 0
        next_event(far, "punch.answered")
        assert next_event(far, "punch.received")["data"] == "short"
        received = next_event(far, "punch.received")
        assert received["size"] == len(received["data"]) == MAX_LINE
        far.send_signal(signal.SIGTERM)
        summary = next_event(far, "summary")
        assert (summary["data_sent"], summary["data_received"]) == (0, 2)
        assert far.wait(PATIENCE_S) == 0


def test_the_address_is_told_first_and_the_other_ends_is_read() -> None:
    with serving() as server, serving() as far:
        words = ("-", "--bind", HOST, "--server", f"stun:{server}", "--json", "--lead", "0")
        with punching(*words) as process:
            mapped = next_event(process, "punch.mapped")
            assert mapped["mapped"] == mapped["local"] and mapped["server"] == server
            assert process.stdin is not None
            process.stdin.write(f"\nnonsense\n224.0.0.1:5\n{far}\n")
            process.stdin.flush()
            answered = next_event(process, "punch.answered")
            assert (answered["address"], answered["mapped"]) == (far, mapped["mapped"])
            assert process.wait(PATIENCE_S) == 0
            assert process.stderr is not None
            complaints = process.stderr.read()
            assert "nonsense" in complaints and "224.0.0.1:5 is no address of another host" in complaints


def test_our_own_address_is_nobodys() -> None:
    with punching("-", "--bind", HOST, "--timeout", "1", "--json") as process:
        (local,) = next_event(process, "punch.ready")["local"]
        assert process.stdin is not None
        process.stdin.write(f"{local}\n")
        process.stdin.flush()
        assert next_event(process, "punch.failed")["reason"] == f"{local} is no address of another host"
        assert process.wait(PATIENCE_S) == 4


def test_stdin_without_an_address_is_wrong_usage() -> None:
    with punching("-", "--bind", HOST, "--json") as process:
        _, err = process.communicate("\n", timeout=PATIENCE_S)
        assert process.returncode == 2
        assert "stdin ended, and had no HOST:PORT of the other end" in err


def test_a_server_that_does_not_answer_is_told() -> None:
    with punching("-", "--bind", HOST, "--server", f"stun:{HOST}:1", "--json") as process:
        reason = next_event(process, "punch.failed")["reason"]
        assert reason == f"{HOST}:1 has not told us our address: Connection refused"
        assert process.wait(PATIENCE_S) == 4


def test_a_key_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("a secret of both\nand nothing more\n")
    words = ("--bind", HOST, "--key-file", str(tmp_path / "key"), "--json")
    with punching("--serve", "--port", "0", *words) as far:
        address = next_event(far, "punch.ready")["local"][0]
        with punching(address, *words) as process:
            next_event(process, "punch.answered")
            assert process.wait(PATIENCE_S) == 0
        with punching(address, "--key", "another", "--timeout", "0.5", "--json") as process:
            assert next_event(process, "punch.failed")["reason"] == f"{address}: it answers 401 Unauthenticated"
            assert process.wait(PATIENCE_S) == 4
        far.send_signal(signal.SIGINT)
        stopped = next_event(far, "punch.stopped")
        assert stopped["requests"] == 4 and stopped["errors"] > 0
        assert far.wait(PATIENCE_S) == 130


def test_the_command_measures_a_lifetime() -> None:
    with serving() as address, punching(address, "--bind", HOST, "--lifetime", "--max", "1", "--json") as process:
        next_event(process, "punch.answered")
        for _ in range(100):
            assert process.stdout is not None
            event = json.loads(process.stdout.readline())
            if event["event"] == "punch.lifetime":
                break
            assert event["event"] == "punch.probed" and event["is_alive"] is True
        assert event["lifetime_s"] is None and event["alive_s"] == pytest.approx(1.0, abs=0.2)
        assert event["one_way_refresh"] is None and event["unanswered"]["lifetime_s"] is None
        next_event(process, "summary")
        assert process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ((), "to whom? Give HOST:PORT"),
        (("127.0.0.1",), "'127.0.0.1': the port is missing; HOST:PORT is expected"),
        (("far.example.org",), "'far.example.org': the port is missing; HOST:PORT is expected, a name or"),
        (("stun:127.0.0.1:5",), "HOST:PORT is expected"),
        (("127.0.0.1:0",), "port 0 cannot be sent to"),
        (("224.0.0.1:5",), "224.0.0.1:5 is no address of another host"),
        (("255.255.255.255:5",), "is no address of another host"),
        (("0.0.0.0:5",), "is no address of another host"),
        (("[ff02::1]:5",), "is no address of another host"),
        (("[::]:5", "--stdio"), "is no address of another host"),
        (("127.0.0.1:99999",), "is not a port"),
        (("::1:5",), "HOST:PORT is expected"),
        (("127.0.0.1:1", "--serve"), "--serve waits for who asks: drop HOST:PORT"),
        (("--serve", "--server", "stun:127.0.0.1"), "--server does not go with --serve"),
        (("--serve", "--lifetime"), "--lifetime does not go with --serve"),
        (("--serve", "--keepalive", "5"), "--keepalive holds one path"),
        (("127.0.0.1:1", "--max", "5"), "--max is about --lifetime"),
        (("127.0.0.1:1", "--duration", "5"), "add --keepalive or --stdio"),
        (("127.0.0.1:1", "--no-ipv4", "--no-ipv6"), "leave no address to use"),
        (("127.0.0.1:1", "--server", "stuns:127.0.0.1"), "a server over UDP is needed"),
        (("127.0.0.1:1", "--server", "127.0.0.1"), "a server begins with stun:"),
        (("127.0.0.1:1", "--key", ""), "--key: an empty string"),
        (("127.0.0.1:1", "--key", "x", "--key-file", "y"), "--key and --key-file"),
        (("127.0.0.1:1", "--key-file", "/nonexistent"), "cannot be read: No such file"),
        (("127.0.0.1:1", "--username", "me"), "--username goes with --key"),
        (("127.0.0.1:1", "--key", "x", "--username", ""), "--username: an empty string"),
        (("127.0.0.1:1", "--key", "x", "--username", "x" * 509), "--username: 509 bytes, allowed are 508"),
        (("127.0.0.1:1", "--interface", "nope0"), "there is none of this name"),
        (("127.0.0.1:1", "--bind", "192.0.2.77"), "no interface has this address"),
        (("127.0.0.1:1", "--bind", "localhost"), "an IPv4 or IPv6 address is expected"),
        (("127.0.0.1:1", "--bind", "::1", "--no-ipv6"), "its IP version is the one that was excluded"),
        (("--serve", "--bind", "192.0.2.77"), "no interface has this address"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    words: tuple[str, ...], complaint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    from iceagent import cli

    assert cli.main(["punch", *words]) == 2
    err = capfd.readouterr().err
    assert complaint in err and err.count("\n") == 1


def test_a_taken_port_is_wrong_usage() -> None:
    with serving() as address:
        port = address.rpartition(":")[2]
        for words in ((), ("--stdio",)):
            with punching("--serve", "--bind", HOST, "--port", port, *words) as process:
                _, err = process.communicate(timeout=PATIENCE_S)
                assert process.returncode == 2
                reason = f"cannot listen on {HOST}:{port} (udp): the port is in use"
                assert f"{reason}; choose another with --port or --bind" in err
        with punching(address, "--json") as process:
            assert process.wait(PATIENCE_S) == 0
