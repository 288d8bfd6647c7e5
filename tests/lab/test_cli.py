"""``iceagent lab``, from the outside."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from iceagent.lab import KINDS

ROOT = Path(__file__).parents[2]


def iceagent(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "iceagent", "lab", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_kinds() -> None:
    lines = [json.loads(line) for line in iceagent("kinds", "--json").stdout.splitlines()]
    assert [line["name"] for line in lines] == list(KINDS)
    assert lines[0] == {
        "t": lines[0]["t"],
        "event": "lab.kind",
        "name": "open",
        "mapping": "EIM",
        "filtering": "EIF",
        "keeps_port": True,
        "hairpin": False,
        "early_packet_trap": False,
        "summary": KINDS["open"].summary,
    }
    assert iceagent("kinds").stdout.count("\n") == len(KINDS) + 1


def test_a_story_with_a_direct_path() -> None:
    done = iceagent("run", "--a", "symmetric", "--b", "full-cone", "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, done.stderr) == (0, "")
    machines = [event for event in events if event["event"] == "lab.machine"]
    assert [(event["who"], event["router"]) for event in machines] == [("a", "symmetric"), ("b", "full-cone")]
    paths = {event["who"]: event for event in events if event["event"] == "path.selected"}
    assert paths["a"]["local"]["type"] == "prflx" and paths["b"]["remote"]["type"] == "prflx"
    result = events[-1]
    assert result["event"] == "lab.result" and result["connected"] and result["kind"] == "direct"
    assert result["remotes"] == ["srflx", "prflx"] and result["elapsed_ms"] > 0


def test_a_side_that_is_told_late_has_its_time_from_then_on() -> None:
    done = iceagent("run", "--a", "full-cone", "--b", "full-cone", "--late", "2.5", "--json")
    assert done.returncode == 0 and json.loads(done.stdout.splitlines()[-1])["connected"], done.stdout


def test_a_story_without_a_path() -> None:
    done = iceagent("run", "--a", "symmetric", "--b", "symmetric", "--limit", "1")
    assert done.returncode == 4
    assert done.stdout.splitlines()[-1].endswith('reason="not connected within 1 s"')


def test_a_story_with_a_relayed_path() -> None:
    """CLI contract: 3, it works, but only through a relay."""
    done = iceagent("run", "--a", "symmetric", "--b", "no-udp", "--turn", "--json")
    assert done.returncode == 3
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["event"], result["kind"]) == ("lab.result", "relay")


@pytest.mark.parametrize("agent", ["iceagent", "aioice"])
def test_a_small_matrix(tmp_path: Path, agent: str) -> None:
    file, drawing = tmp_path / "m.json", tmp_path / "m.svg"
    arguments = ("--kinds", "full-cone,symmetric", "--limit", "1", "--agent", agent)
    done = iceagent("matrix", *arguments, "--json", str(file), "--svg", str(drawing))
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(file.read_text())
    assert (document["agent"], document["kinds"]) == (agent, ["full-cone", "symmetric"])
    connected = {(cell["a"], cell["b"]) for cell in document["cells"] if cell["connected"]}
    assert connected == {("full-cone", "full-cone"), ("full-cone", "symmetric"), ("symmetric", "full-cone")}
    rows = [line for line in done.stdout.splitlines() if line.startswith(" 2 symmetric")]
    assert len(rows) == 1 and "s/p" in rows[0] and rows[0].rstrip().endswith("–")
    assert len(ElementTree.parse(drawing).findall(".//{*}rect")) == 4
    last = done.stdout.splitlines()[-1]
    assert f"lab.matrix agent={agent} cells=4 possible=3 connected=3 missed=0" in last


def test_a_matrix_as_json_lines() -> None:
    done = iceagent("matrix", "--kinds", "full-cone", "--json")
    cell, summary = (json.loads(line) for line in done.stdout.splitlines())
    assert (cell["event"], cell["a"], cell["possible"]) == ("lab.cell", "full-cone", True)
    assert (summary["event"], summary["connected"]) == ("lab.matrix", 1)


def test_a_program_behind_a_nat() -> None:
    script = "echo $STUN_SERVER; echo $ICEAGENT_SERVERS; cat; exit 7"
    command = [sys.executable, "-m", "iceagent", "lab", "exec", "--nat", "symmetric", "--", "sh", "-c", script]
    done = subprocess.run(command, input="said", capture_output=True, text=True, check=False, cwd=ROOT)
    server, servers, said = done.stdout.splitlines()
    assert (done.returncode, said, json.loads(servers)) == (7, "said", [{"urls": [f"stun:{server}"]}])


@pytest.mark.parametrize("kind", ["full-cone", "addr-restricted", "port-restricted", "symmetric"])
def test_a_probe_behind_a_nat_finds_what_it_is(kind: str) -> None:
    """RFC 5780, by the program that users have, against the server that it is given."""
    done = iceagent("exec", "--nat", kind, "--", sys.executable, "-m", "iceagent", "probe", "--json")
    nat = json.loads(done.stdout)["nat"]
    assert (nat["mapping"], nat["filtering"]) == (KINDS[kind].mapping.value, KINDS[kind].filtering.value)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("run", "--a", "cone", "--b", "open"), "no kind of router called 'cone'; there are open, firewall"),
        (("matrix", "--kinds", "open,x"), "no kind of router called 'x'"),
        (("matrix", "--svg", "/nonexistent/m.svg"), "/nonexistent/m.svg cannot be written: No such file"),
        (("exec", "--nat", "open", "--", "nonesuch"), "nonesuch is not installed"),
        (("exec", "--nat", "open", "--hairpin", "--", "true"), "kind open knows no hairpin"),
        (("exec", "--nat", "open"), "Missing argument"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], complaint: str) -> None:
    done = iceagent(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert complaint in done.stderr and done.stderr.count("\n") == 1


def test_it_runs_in_a_user_namespace() -> None:
    """As it does for an ordinary user."""
    command = ["unshare", "-Urnm", sys.executable, "-m", "iceagent", "lab", "run", "--a", "open", "--b", "symmetric"]
    done = subprocess.run([*command, "--delay", "0.01"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_it_says_what_it_needs() -> None:
    """Root of a user namespace that does not own its network."""
    command = ["unshare", "-Ur", sys.executable, "-m", "iceagent", "lab", "exec", "--nat", "open", "--", "true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2 and "unshare -Urnm" in done.stderr and done.stderr.count("\n") == 1


EXEC = [sys.executable, "-m", "iceagent", "lab", "exec", "--nat", "open", "--"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("echo $$; exec sleep 1000", None),
        ("trap 'sleep 0.2; exit 5' INT TERM; echo $$; while :; do sleep 0.01; done", 5),
        ("trap '' INT TERM; echo $$; while :; do sleep 0.01; done", 128 + signal.SIGKILL),
    ],
    ids=["ends at once", "cleans up", "will not"],
)
def test_a_program_gets_our_signals(script: str, code: int | None, number: signal.Signals) -> None:
    """It may clean up, its exit code is ours, and after a second it is ended."""
    process = subprocess.Popen(
        [*EXEC, "sh", "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    )
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.send_signal(number)
    assert process.wait() == (128 + number if code is None else code)
    process.stdout.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_program_gets_no_copies_of_our_signals() -> None:
    """timeout(1) sends each to its child and then to the child's whole group, the program with it."""
    script = "trap 'echo heard' INT; echo $$; while :; do sleep 0.01; done"
    process = subprocess.Popen(
        [*EXEC, "sh", "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        # Two that wait for a process are one.
        time.sleep(0.05)
    assert process.communicate()[0].split() == ["heard"]


def test_on_a_terminal_ctrl_c_is_the_programs() -> None:
    """A REPL survives it."""
    script = (
        "trap 'echo interrupted' INT; echo ready; while read -r line; do echo \"got $line\"; done; echo end; exit 6"
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, [*EXEC, "bash", "-c", script])
    with open(terminal, "r+b", buffering=0) as keyboard:
        shown = b""

        def wait_for(word: bytes) -> None:
            nonlocal shown
            while word not in shown:
                shown += keyboard.read(1000)

        wait_for(b"ready")
        keyboard.write(b"\x03")
        wait_for(b"interrupted")
        keyboard.write(b"more\n")
        wait_for(b"got more")
        keyboard.write(b"\x04")
        wait_for(b"end")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 6


def test_a_program_finds_the_laboratorys_names_and_no_others() -> None:
    script = "getent ahostsv4 stun.lab | head -n 1; getent hosts elsewhere.example; echo $?; cat /etc/resolv.conf"
    done = subprocess.run([*EXEC, "sh", "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    found, failed, resolv_conf = done.stdout.splitlines()
    assert found.split()[-1] == "stun.lab" and failed == "2" and "nameserver" not in resolv_conf


def test_what_it_does_not_know_is_no_program() -> None:
    done = iceagent("exec", "--json", "--nat", "open", "--", "true")
    assert done.returncode == 2 and "--json" in done.stderr and "installed" not in done.stderr
    # Behind the program they are the program's.
    assert iceagent("exec", "--nat", "open", "sh", "-c", "exit 9").returncode == 9


def test_without_a_command_it_names_its_own() -> None:
    done = iceagent()
    assert done.returncode == 2 and "one of clean, exec, kinds, matrix, run" in done.stderr


def test_a_full_disk_and_a_closed_output() -> None:
    command = f"{sys.executable} -m iceagent lab kinds"
    full = subprocess.run(["sh", "-c", f"{command} >/dev/full"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (full.returncode, full.stderr.strip()) == (130, "standard output cannot be written: No space left on device")
    closed = subprocess.run(["sh", "-c", f"{command} >&-"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (closed.returncode, closed.stderr) == (0, "")


def test_clean() -> None:
    assert "lab.cleaned processes=0 folders=0" in iceagent("clean").stdout
