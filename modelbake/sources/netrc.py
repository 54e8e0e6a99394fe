"""Credentials of a host from netrc, as curl and pip take them: `$NETRC`, else ~/.netrc.

They are shown to that host alone; an entry `default`, which is for any, is not used.
Source: https://docs.python.org/3/library/netrc.html
"""

from __future__ import annotations

import base64
import netrc
from collections.abc import Mapping
from pathlib import Path

from modelbake.credentials import Secret
from modelbake.errors import SourceAuthError


def netrc_file(environ: Mapping[str, str]) -> Path:
    """Return where the file is, if there is one."""
    named = environ.get("NETRC", "")
    return Path(named) if named else Path(environ.get("HOME") or Path.home(), ".netrc")


def authorization_for(host: str, environ: Mapping[str, str], subject: str) -> dict[str, str]:
    """Return the header Authorization for a host, none where the file knows nothing of it.

    Raises SourceAuthError where the file cannot be read; it is never quoted.
    """
    path = netrc_file(environ)
    try:
        # Not `authenticators`: that gives the login of `default` to any host.
        found = netrc.netrc(str(path)).hosts.get(host)
    except FileNotFoundError:
        return {}
    except netrc.NetrcParseError as error:
        raise SourceAuthError(f"{path} is no netrc file: line {error.lineno}", subject=subject) from None
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise SourceAuthError(f"{path} cannot be read ({reason})", subject=subject) from error
    if found is None:
        return {}
    return basic(found[0] or "", Secret(found[2] or ""))


def basic(user: str, password: Secret) -> dict[str, str]:
    """Return the header Authorization for a user and a password. Source: RFC 7617."""
    pair = Secret(f"{user}:{password.reveal()}")
    return {"authorization": f"Basic {base64.b64encode(pair.reveal_bytes()).decode()}"}
