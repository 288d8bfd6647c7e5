"""Which files does ``iceagent serve`` read, and what is wrong with one that it cannot use?

Accounts and the certificate of TLS: when it starts, and again at SIGHUP. What others may see in a list of processes is
so kept out of the command line. A file that cannot be used is refused with :class:`click.UsageError`, which quotes no
password; what was read before then stays in force.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from iceagent.net.address import quoted
from relay.server import server_ssl_context
from relay.stun import opaque_string
from relay.turn.server import Accounts

__all__ = ["AccountOptions", "Tls", "TlsOptions", "lines_of"]

# A line is a name and a password: ten thousand of them and more.
_MAX_ACCOUNTS = 1 << 20
# A certificate chain is a few kilobytes.
_MAX_PEM = 1 << 20
# RFC 7468, 5, 10 and 11, and what came before it: "BEGIN RSA PRIVATE KEY" with "Proc-Type: 4,ENCRYPTED" (RFC 1421).
_PEM_MARKS = {
    "CERTIFICATE": (b"-----BEGIN CERTIFICATE-----", b"-----BEGIN TRUSTED CERTIFICATE-----"),
    "KEY": (b"PRIVATE KEY-----",),
    "ENCRYPTED": (b"BEGIN ENCRYPTED PRIVATE KEY", b"Proc-Type: 4,ENCRYPTED"),
}


# --- accounts ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountOptions:
    """What the command line says of accounts.

    Attributes:
        realm: of all of them.
        users: ``NAME:PASSWORD`` each.
        secrets: of time-limited names.
        users_file: has more users, a line each; ``None``: there is none.
        secrets_file: the same for secrets; those of the command line count as the newer ones.
    """

    realm: str
    users: tuple[str, ...]
    secrets: tuple[str, ...]
    users_file: str | None
    secrets_file: str | None

    @property
    def are_given(self) -> bool:
        """Whether anybody may relay."""
        return bool(self.users or self.secrets) or self.have_files

    @property
    def have_files(self) -> bool:
        """Whether there may be others at SIGHUP."""
        return self.users_file is not None or self.secrets_file is not None

    def read(self, *, again: bool = False) -> Accounts:
        """What they are now.

        Raises:
            click.UsageError: a file cannot be read, or something is none.
        """
        if again:
            _refuse_pipe("--users-file", self.users_file)
            _refuse_pipe("--secrets-file", self.secrets_file)
        users: dict[str, str] = {}
        lines = [("--user", text) for text in self.users]
        lines += lines_of("--users-file", self.users_file)
        for where, text in lines:
            name, colon, password = text.partition(":")
            if not (name and colon and password):
                raise click.UsageError(f"{where}: NAME:PASSWORD is expected")
            name = _checked(where, name)
            _checked(f"{where}, {quoted(name)}", password)
            if name in users:
                raise click.UsageError(f"{where}: {quoted(name)} is given twice; drop one of them")
            users[name] = password
        secrets = [("--secret", text) for text in self.secrets]
        secrets += lines_of("--secrets-file", self.secrets_file)
        for where, text in secrets:
            _checked(where, text)
        return Accounts(realm=_checked("--realm", self.realm), users=users, secrets=tuple(text for _, text in secrets))


def _checked(where: str, text: str) -> str:
    try:
        return opaque_string(text)
    except ValueError as error:
        raise click.UsageError(f"{where}: {error}") from None


def lines_of(option: str, file: str | None) -> Iterator[tuple[str, str]]:
    """The lines of a file, each with where it stands; without those that are empty or begin with ``#``."""
    if file is None:
        return
    if not file:
        raise click.UsageError(f"{option}: a file name is expected")
    try:
        with Path(file).open(encoding="utf-8-sig") as stream:
            text = stream.read(_MAX_ACCOUNTS + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise click.UsageError(f"{option}: {file} cannot be read: {reason}") from None
    if len(text) > _MAX_ACCOUNTS:
        raise click.UsageError(f"{option}: {file} has more than {_MAX_ACCOUNTS:,} characters")
    found = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1)]
    found = [(number, line) for number, line in found if line and not line.startswith("#")]
    if not found:
        raise click.UsageError(f"{option}: {file} has no line that says anything")
    for number, line in found:
        yield f"{option} {file}, line {number}", line


def _refuse_pipe(option: str, file: str | None) -> None:
    if file is not None and Path(file).is_fifo():
        raise click.UsageError(f"{option}: {file} is a pipe, which reads only once")


# --- TLS ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsOptions:
    """Certificate and key of the command line, both PEM files.

    Attributes:
        certificate: with the chain.
        key: its key.
    """

    certificate: str
    key: str

    @classmethod
    def of(cls, certificate: str | None, key: str | None) -> TlsOptions | None:
        """Both or neither.

        Raises:
            click.UsageError: one alone.
        """
        if certificate is None and key is None:
            return None
        if certificate is None or key is None:
            raise click.UsageError("--tls-cert and --tls-key are given together or not at all")
        return cls(certificate=certificate, key=key)

    def read(self, *, again: bool = False) -> ssl.SSLContext:
        """A server's context.

        Raises:
            click.UsageError: they cannot be used; the text says which of them, and why.
        """
        if again:
            _refuse_pipe("--tls-cert", self.certificate)
            _refuse_pipe("--tls-key", self.key)
        try:
            return server_ssl_context(self.certificate, self.key)
        except OSError as error:
            raise click.UsageError(_why_no_tls(self.certificate, self.key, error)) from error


class Tls:
    """A context that can have another certificate while it is in use.

    Args:
        options: which files.

    Attributes:
        context: a server's.

    Raises:
        click.UsageError: they cannot be used.
    """

    def __init__(self, options: TlsOptions) -> None:
        self._options = options
        self.context = self._newest = options.read()
        # Called with every handshake. To load another chain into the same context would leave one of another kind of
        # key beside it.
        self.context.sni_callback = self._choose

    def renew(self) -> None:
        """Take what the files are now, for the connections that are yet to come.

        Raises:
            click.UsageError: they cannot be used; it stays as it was.
        """
        self._newest = self._options.read(again=True)

    def _choose(self, connection: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._newest


def _why_no_tls(certificate: str, key: str, error: OSError) -> str:
    """What is wrong with which file; of a certificate and a key that could not be used."""
    one, other = _pem_kinds(certificate, "--tls-cert"), _pem_kinds(key, "--tls-key")
    if one is None or other is None:
        return f"--tls-cert {certificate}, --tls-key {key}: {error.strerror or error}"
    if "CERTIFICATE" in other and "CERTIFICATE" not in one:
        return f"--tls-cert {certificate} has no certificate, but --tls-key {key} has: swap the two"
    if "CERTIFICATE" not in one:
        return f"--tls-cert {certificate}: no certificate (BEGIN CERTIFICATE) is in this file; PEM is expected"
    if "KEY" not in other:
        return f"--tls-key {key}: no private key (BEGIN PRIVATE KEY) is in this file; PEM is expected"
    if "ENCRYPTED" in other:
        return f"--tls-key {key}: the key is encrypted; decrypt it first (openssl pkey)"
    if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
        return f"--tls-key {key} is not the key of the certificate in --tls-cert {certificate}"
    if isinstance(error, ssl.SSLError) and error.reason:
        # The cause in OpenSSL's words, such as EE_KEY_TOO_SMALL.
        return f"--tls-cert {certificate}, --tls-key {key}: {error.reason.replace('_', ' ').lower()}"
    return f"--tls-key {key}: the key is damaged" if _is_sound(certificate) else f"--tls-cert {certificate}: damaged"


def _is_sound(certificate: str) -> bool:
    """Whether a file's certificates can be read."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(certificate)
    except OSError:
        return False
    return True


def _pem_kinds(file: str, option: str) -> frozenset[str] | None:
    """Which of ``CERTIFICATE``, ``KEY``, ``ENCRYPTED`` a file holds; ``None`` of a pipe, which reads only once.

    Raises:
        click.UsageError: it cannot be read.
    """
    path = Path(file)
    try:
        if path.is_fifo():
            return None
        with path.open("rb") as stream:
            text = stream.read(_MAX_PEM)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise click.UsageError(f"{option} {file} cannot be read: {reason}") from error
    return frozenset(kind for kind, marks in _PEM_MARKS.items() if any(mark in text for mark in marks))
