"""Passwords in the addresses of databases: used to connect, and never written or shown.

An address such as ``postgresql://user:password@host/database`` comes from a command line or from Python, and from there
would reach the files of a run, its messages, and the notes of a study. So the password is taken out where the address
comes in, and kept in this process alone, beside the address that is left. Whoever goes on with the run later, or joins
it from another process, gives the password again, or leaves it to the database's own client: PostgreSQL's takes it from
the environment (``PGPASSWORD``) or from ``~/.pgpass``.
"""

import re
import sys
import traceback
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_plus

# No scheme is longer; without that bound, the time for a long word would grow with its square.
_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]{0,40}://")
_IN_TEXT = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]{0,40}://[^\s'\"<>]+")
_ACCOUNT = re.compile(r"(?P<user>[^:/?#@]*):(?P<password>[^?]*)@")
_KEYS = frozenset({"password", "passwd", "pwd", "pass", "sslpassword"})
_SHORTEST = 4
"""A shorter password is hidden in addresses alone: taken out of any text, it would garble ordinary words."""
HIDDEN = "***"

_known: dict[str, dict[str, str]] = {}
"""By address without its passwords: the passwords, by the name that the database's driver gives them."""


def without_password(text: str) -> str:
    """Return a text such as an option's value with the password taken out of the address that it holds.

    The password is remembered, for :func:`passwords_for` in this process. Everything from the address's scheme on is
    taken for the address.

    Examples
    --------
    >>> without_password("postgresql://ada:secret@host/searches?sslmode=require")
    'postgresql://ada@host/searches?sslmode=require'
    >>> without_password("runs/half")
    'runs/half'
    """
    found = _ADDRESS.search(text)
    if found is None:
        return text
    address, secrets = _split(text[found.start() :], "")
    if not secrets:
        return text
    for name in {address, address.strip("'\"")}:
        _known[name] = secrets
    return text[: found.start()] + address


def passwords_for(address: str) -> dict[str, str]:
    """Return what was taken out of an address: passwords by the name that the database's driver gives them."""
    return dict(_known.get(address, {}))


def without_passwords(value: Any) -> Any:
    """Return nested plain values with :func:`without_password` applied to every text."""
    if isinstance(value, str):
        return without_password(value)
    if isinstance(value, Mapping):
        return {key: without_passwords(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(without_passwords(item) for item in value) if type(value) in (list, tuple) else value
    return value


def hidden(value: Any) -> Any:
    """Return nested plain values for a file, with the passwords of all addresses in their texts replaced by stars.

    What of a file's name is no Unicode becomes its escape: files hold Unicode alone.
    """
    if isinstance(value, str):
        text = value.encode("utf-8", "backslashreplace").decode()
        return _IN_TEXT.sub(lambda found: _split(found[0], HIDDEN)[0], text)
    if isinstance(value, Mapping):
        return {key: hidden(item) for key, item in value.items()}
    return [hidden(item) for item in value] if isinstance(value, list | tuple) else value


def hide_passwords(text: str) -> str:
    """Return a text to show, with every password that is known or looks like one replaced by stars.

    Examples
    --------
    >>> hide_passwords("cannot reach 'postgresql://ada:secret@host/searches?password=secret'")
    "cannot reach 'postgresql://ada:***@host/searches?password=***'"
    """
    text = hidden(text)
    for secrets in _known.values():
        for secret in secrets.values():
            if len(secret) >= _SHORTEST:
                text = text.replace(secret, HIDDEN)
    return text


def hide_in_argument(text: str) -> str:
    """Return an argument of a command line to show: all of it, from an address's scheme on, is that address."""
    found = _ADDRESS.search(text)
    if found is not None:
        text = text[: found.start()] + _split(text[found.start() :], HIDDEN)[0]
    return text


def print_traceback(error: BaseException) -> None:
    """Print where an error comes from on standard error, without passwords."""
    print(hide_passwords("".join(traceback.format_exception(error))), file=sys.stderr, end="")  # noqa: T201


def _split(address: str, instead: str) -> tuple[str, dict[str, str]]:
    """Return an address with `instead` in the place of each password, and the passwords; "" leaves out their place."""
    scheme, separator, rest = address.partition("://")
    place, mark, query = rest.partition("?")
    secrets: dict[str, str] = {}
    account = _ACCOUNT.match(place)
    if account is not None:
        secrets["password"] = _decoded(account["password"])
        place = account["user"] + (f":{instead}" if instead else "") + "@" + place[account.end() :]
    kept = []
    for part in query.split("&") if mark else ():
        key, sign, value = part.partition("=")
        name = unquote_plus(key).lower()
        if name in _KEYS and sign:
            secrets[name] = unquote_plus(value)
            part = f"{key}={instead}" if instead else ""
        if part:
            kept.append(part)
    if not secrets or set(secrets.values()) == {HIDDEN}:
        return address, {}
    return f"{scheme}{separator}{place}{'?' if kept else ''}{'&'.join(kept)}", secrets


def _decoded(password: str) -> str:
    """Return a password as it is outside of an address, where a plus stands for itself."""
    return unquote_plus(password.replace("+", "%2B"))
