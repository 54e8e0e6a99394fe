"""What modelbake promises, by key; `make faults` tries to break each of them and says what got through.

A test that injects a fault says which promise it attacks: ``@pytest.mark.promise("wrong-bytes")``. A test
that shows that such a test can fail at all, because a fault let through on purpose is found, says
``@pytest.mark.control("wrong-bytes")``. One case is one fault, unless the test counts them itself with the
fixture ``tally``.
"""

from __future__ import annotations

import os

PROMISES = {
    "dockerfile": "no text of a user's file becomes an instruction of the Dockerfile",
    "parsers": "no file makes a parser hang, fill the memory, or end in a traceback",
    "lock": "a lock that was edited by hand is refused, or fails the build",
    "hub-names": "no file name of a hub leads outside the weights",
    "wrong-bytes": "no byte that differs from the lock gets into an image",
    "hub-hang": "no hub keeps a build waiting without an end",
    "hub-token": "no other host than the hub gets its token",
    "resume": "a download that was killed goes on, and all of it is right",
    "audit": "no secret, pickle or foreign file in an image escapes the audit",
    "pickles": "no pickle is accepted, under whatever name",
    "false-success": "no push or publish says it succeeded when it did not",
    "tags": "no version tag appears or moves on a failure",
    "crash": "a run that was killed leaves nothing behind, and the next one succeeds",
    "disk-full": "a full disk is named as such, and nothing hangs",
    "at-once": "runs of one model at the same time give one image",
    "interrupt": "Ctrl-C ends a run cleanly, with exit code 130",
    "token-leak": "no token is in an image, a log, an error, an argument or a child process",
    "commit": "no secret is committed",
    "channel": "a channel names a released version, the old or the new, whatever fails or happens at once",
    "quarantine": "whatever holds what an incident is about is found, and comes into no channel again",
    "access": "no registry credential goes to another host, or over plain HTTP unless named",
    "signature": "nothing counts as signed whose digest the owner of the key has not signed",
    "start": "no changed weights are served",
    "run-time": "a server needs no root, no writable root file system, no capability and no network",
}


def full() -> bool:
    """Tell whether all cases are tried: `make test` tries a few of each kind (see `tests.fault_matrix`)."""
    return os.environ.get("MODELBAKE_FAULTS") == "full"


def cases(quick: int, all_of_them: int) -> int:
    """Return how many random cases to try."""
    return all_of_them if full() else quick
