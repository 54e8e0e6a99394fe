"""The rules of an audit. An id is stable: suppressions in code scanning, and scripts, go by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Rule:
    """A rule. `note`: worth knowing, and no finding; everything else makes an audit fail."""

    id: str
    severity: Severity
    title: str
    remedy: str

    @property
    def fails(self) -> bool:
        """Whether an audit that finds it has failed."""
        return self.severity != "note"


_ROTATE = (
    "revoke it now, wherever it is valid; build again with it as a secret mount (never COPY, ARG or ENV)"
)
_LEAVE_OUT = "leave it out with `exclude`, or name it in `allow_pickle` if you trust whoever wrote it"
_LOCKED = "build from models.lock again, and let nothing after the weights' stage write below /models"

_ALL = (
    Rule("secret-canary", "error", "a secret that was given to look for is in the image", _ROTATE),
    Rule("secret-huggingface", "error", "a Hugging Face token", _ROTATE),
    Rule("secret-aws", "error", "an AWS access key", _ROTATE),
    Rule("secret-gcp", "error", "a Google Cloud key or token", _ROTATE),
    Rule("secret-azure", "error", "an Azure key or client secret", _ROTATE),
    Rule("secret-github", "error", "a GitHub token", _ROTATE),
    Rule("secret-private-key", "error", "a private key", _ROTATE),
    Rule("secret-service", "error", "a token of another service, told by its prefix", _ROTATE),
    Rule("secret-bearer", "error", "an Authorization header's value, or a JSON web token", _ROTATE),
    Rule("secret-url", "error", "a URL with a password", _ROTATE),
    Rule(
        "secret-distribution",
        "note",
        "a private key in a library of the base's distribution: libgnutls has those of its self-tests",
        "nothing, if you trust the base image",
    ),
    Rule(
        "secret-name",
        "error",
        "a variable, label or build argument whose name promises a secret has a value",
        f"if it is one, {_ROTATE}; else give it another name",
    ),
    Rule("pickle-name", "error", "a weight file that is a pickle by its name", _LEAVE_OUT),
    Rule("pickle-content", "error", "a pickle, by its bytes, under whatever name", _LEAVE_OUT),
    Rule(
        "pickle-opinion",
        "error",
        "picklescan or fickling objects to a pickle that `allow_pickle` names (--strict)",
        "do not load it; ask its author for safetensors",
    ),
    Rule(
        "pickle-allowed",
        "note",
        "a pickle that `allow_pickle` names",
        "ask for safetensors; `audit --strict` has it looked at",
    ),
    Rule(
        "pickle-python",
        "note",
        "a pickle among Python's own modules, where any file is code anyway",
        "nothing, if you trust the packages",
    ),
    Rule(
        "model-code",
        "warning",
        "a program from the model's repository",
        'leave it out: `exclude: ["*.py"]`; no server of modelbake runs it',
    ),
    Rule("setuid", "error", "a program that runs with its owner's rights", "remove it, or `chmod a-s` it"),
    Rule(
        "setuid-distribution",
        "note",
        "a set-uid program of the base's distribution",
        "run with `--cap-drop ALL --security-opt no-new-privileges`, which takes its effect away",
    ),
    Rule("world-writable", "error", "a file or folder that everybody may write", "`chmod o-w` it"),
    Rule(
        "root-user",
        "error",
        "the image runs as root, or as a user it does not know",
        "`USER 65532:65532`, as modelbake's own images do",
    ),
    Rule("weights-extra", "error", "a file among the weights that the lock does not name", _LOCKED),
    Rule("weights-missing", "error", "a locked file that is not there", _LOCKED),
    Rule("weights-changed", "error", "a weight file with other bytes than the locked ones", _LOCKED),
    Rule("weights-link", "error", "a link or a special file among the weights", _LOCKED),
    Rule("weights-hidden", "error", "a layer hides or deletes something of the weights' folder", _LOCKED),
    Rule(
        "weights-writable",
        "error",
        "weights that the image's user may change",
        "let root own them, with modes 0444 and 0555",
    ),
    Rule(
        "weights-manifest",
        "error",
        "the manifest that the image compares its weights with is missing, or says something else",
        "build the image with modelbake, and put nothing over /modelbake",
    ),
    Rule(
        "hidden-files",
        "note",
        "a layer deletes files of a lower one: they are still in the image, and were read",
        "delete in the step that creates",
    ),
    Rule(
        "unreadable",
        "error",
        "something that could not be looked into to its end",
        "find out what it is: the audit says nothing of it",
    ),
)

RULES = {rule.id: rule for rule in _ALL}
