"""What to do where a server cannot be reached, by the TLS error at the bottom of it. Pure."""

from __future__ import annotations

import ssl

from modelbake.registryauth import INSECURE

_IS_IT_UP = "is it up, and reachable from here (DNS, firewall, HTTPS_PROXY)?"
_HINTS = {
    "untrusted": "if its authority is your own, name a PEM file with it in MODELBAKE_CA_BUNDLE, or put it as"
    " ca.crt into /etc/docker/certs.d/{host}",
    "unknown": "it wants a client certificate: client.cert and client.key in /etc/docker/certs.d/{host}",
    "clear": f"it speaks no TLS; if nobody can listen on the way to it, name it: {INSECURE}={{host}}",
}


def hint_for(error: BaseException, host: str) -> str:
    """Return what helps against an error of a connection to `host[:port]`."""
    return _HINTS.get(tls_problem(error), _IS_IT_UP).format(host=host)


def tls_problem(error: BaseException | None) -> str:
    """Return which of _HINTS is about the TLS error behind an error, "" where there is none.

    Sending the request again cannot mend it.
    """
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return "untrusted"
        if isinstance(error, ssl.SSLError):
            reason = error.reason or ""
            if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
                return "clear"
            if "ALERT" in reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason):
                return "unknown"
        error = error.__cause__ or error.__context__
    return ""
