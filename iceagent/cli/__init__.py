"""The command ``iceagent``: finds the subcommand, and turns its end into an exit code.

Every subcommand is a click command that returns its exit code; its module is imported when it is asked for, so that
``iceagent probe`` does not wait for what ``iceagent serve`` needs. How it can end, whatever the subcommand:

====  ===========================================================================
code  meaning
====  ===========================================================================
0     it worked, on a direct path where there is a path
1     our bug; the traceback is on stderr
2     wrong usage; one line on stderr says what, and how to mend it
3     it works, but only through a relay
4     no path
130   interrupted (Ctrl-C, SIGTERM, or our output cannot be written any more)
====  ===========================================================================
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module

import click

from iceagent import __version__
from iceagent.cli.text import escaped, escaped_lines, tolerate
from iceagent.errors import UnsupportedPlatform, UsageError

__all__ = [
    "EXIT_BUG",
    "EXIT_DIRECT",
    "EXIT_INTERRUPTED",
    "EXIT_NO_PATH",
    "EXIT_RELAY",
    "EXIT_USAGE",
    "cli",
    "main",
]

EXIT_DIRECT = 0
EXIT_BUG = 1
EXIT_USAGE = 2
EXIT_RELAY = 3
EXIT_NO_PATH = 4
EXIT_INTERRUPTED = 130

# Of a refusal this much is shown: what a command line is refused with may quote all of it.
_MAX_REFUSAL = 600

# Subcommand → where its click command lives, and its line in the list of commands (which must not import it).
COMMANDS: Mapping[str, tuple[str, str]] = {
    "connect": ("iceagent.cli.connect:connect", "Connect two hosts, and keep them connected."),
    "lab": ("iceagent.cli.lab:lab", "Real NATs, to test what runs behind them."),
    "map": ("iceagent.cli.map:map_command", "Have a router map a port of this host."),
    "probe": ("iceagent.cli.probe:probe", "What can reach this host, and what can it reach?"),
    "punch": ("iceagent.cli.punch:punch", "Get through to a known host, through firewalls and NATs."),
    "reflect": ("iceagent.cli.reflect:reflect", "Send back what comes to a UDP port, so that NATs keep bindings."),
    "relay": ("iceagent.cli.relay:relay", "Forward between pairs of ports, to whoever has latched there."),
    "serve": ("iceagent.cli.serve:serve", "Run a STUN and TURN server."),
}


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are called for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}:{attribute} is no click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    invoke_without_command=False,
    no_args_is_help=True,
)
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Find the best working path to a peer, keep it alive, and go on looking.

    Exit codes: 0 it worked, on a direct path where there is a path; 3 it works, but only through a relay; 4 no path;
    2 wrong usage; 1 our bug; 130 interrupted.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the console script.

    Args:
        arguments: without the program's name; ``None``: this process's.

    Returns:
        The exit code. Does not return where a thread is stuck, in a name server's silence for instance: the process
        ends at once instead of waiting for it.
    """
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        tolerate(stream)
    code = _run(arguments)
    for stream in (sys.stdout, sys.stderr):
        _flush(stream)
    if arguments is None and any(not thread.daemon for thread in threading.enumerate() if _is_other(thread)):
        os._exit(code)
    return code


def _open_closed_streams() -> None:
    """Where we were started without one (``>&-``), what is written to it goes nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def _run(arguments: Sequence[str] | None) -> int:
    try:
        code = cli.main(args=arguments, prog_name="iceagent", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        return _refuse(f"no command given; one of {', '.join(_commands(error.ctx))}", error.ctx)
    except click.UsageError as error:
        return _refuse(error.format_message(), error.ctx)
    except click.ClickException as error:
        return _refuse(error.format_message(), None)
    except (UsageError, UnsupportedPlatform) as error:
        return _refuse(str(error), None)
    except (KeyboardInterrupt, click.Abort, BrokenPipeError):
        return EXIT_INTERRUPTED
    except Exception:
        # The last resort of a process: whatever comes here is a bug, and the exit code has to say so.
        print(escaped_lines(traceback.format_exc()), end="", file=sys.stderr)
        return EXIT_BUG
    return code if isinstance(code, int) else EXIT_DIRECT


def _commands(ctx: click.Context | None) -> list[str]:
    """Those of the group that was called without one."""
    assert ctx is not None and isinstance(ctx.command, click.Group)
    return sorted(ctx.command.list_commands(ctx))


def _refuse(message: str, ctx: click.Context | None) -> int:
    """One line: what is wrong, and where to read how to mend it."""
    path = ctx.command_path if ctx is not None else "iceagent"
    line = escaped(" ".join(message.split())).rstrip(".")
    if len(line) > _MAX_REFUSAL:
        # What is wrong stands at the front, how to mend it at the end.
        line = f"{line[: _MAX_REFUSAL // 2]} … {line[-_MAX_REFUSAL // 2 :]}"
    hint = f" (see {path} --help)" if ctx is not None else ""
    click.echo(f"{path}: {line}{hint}", err=True)
    return EXIT_USAGE


def _flush(stream: object) -> None:
    """Write out what is buffered; a reader that went away is no error."""
    try:
        stream.flush()  # type: ignore[attr-defined]
    except (OSError, ValueError):
        # The interpreter flushes once more at its end; let it find a stream that takes everything.
        if stream is sys.stdout:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _is_other(thread: threading.Thread) -> bool:
    return thread is not threading.main_thread()
