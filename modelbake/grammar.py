"""What every name may look like that reaches a Dockerfile, a tag, a path, a URL or an environment.

A grammar matches the whole text or nothing, in ASCII where the other side's grammar is ASCII. Each one
says what it expects in words, so that errors and the JSON Schema say the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from modelbake.scalars import quoted


def _no_advice(_text: str) -> str:
    return ""


@dataclass(frozen=True)
class Grammar:
    """A full-match pattern that JavaScript reads alike, in words, with a longest length in characters.

    `advise` turns a text that does not match into what to write instead, or "".
    `secretive` texts may hold a password: they are never repeated in a message.
    """

    expected: str
    pattern: str
    longest: int
    examples: tuple[str, ...]
    advise: Callable[[str], str] = _no_advice
    secretive: bool = False
    _compiled: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_compiled", re.compile(self.pattern, re.ASCII))

    def matches(self, text: str) -> bool:
        """Tell whether the whole text is of this grammar."""
        return len(text) <= self.longest and self._compiled.fullmatch(text) is not None


# --- patterns that others are made of --------------------------------------------------------------

COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"  # https://github.com/distribution/reference
LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
PORT = r"(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_IPV6 = r"\[[0-9A-Fa-f:.]{2,45}\]"
# Docker takes a first component without a dot or a port for a namespace of docker.io, not for a host.
REGISTRY_HOST = rf"(?:localhost|{LABEL}(?:\.{LABEL})+|{_IPV6}|{LABEL}(?:\.{LABEL})*(?=:))(?::{PORT})?"
_NUMBER = r"(?:0|[1-9][0-9]*)"
_PRERELEASE = r"(?:0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
# One line of text: no control characters, no line breaks of any kind, no half of a surrogate pair.
LINE_CHARACTER = r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]"

_URL_CREDENTIALS = re.compile(r"://[^/\s@]*@|^[^/\s@:]*:[^/\s@]*@(?!sha256:)")
_HUB_TOKEN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{30,}|(?:AKIA|ASIA)[A-Z0-9]{16}\b|sk-[A-Za-z0-9_-]{20,})"
)
_SEARCHED = 8192  # characters of a text that are searched for a secret; no value that may hold one is longer
_SECRET_NAME = re.compile(
    r"TOKEN(?!S|I[SZ])|SECRET|PASSW(?:OR)?D|PASSPHRASE|CREDENTIAL|API_?KEY|KEYS?$|.PWD$", re.IGNORECASE
)
_SECRET_TOKENS = re.compile(r"(?:API|AUTH|ACCESS|HF|HUB|BEARER|REFRESH)_?TOKENS", re.IGNORECASE)


def names_a_secret(name: str) -> bool:
    """Tell whether a name promises a secret: HF_TOKEN does, MAX_TOKENS and TOKENIZERS_PARALLELISM do not."""
    return bool(_SECRET_NAME.search(name) or _SECRET_TOKENS.search(name))


def holds_a_secret(text: str) -> bool:
    """Tell whether a text looks like a hub token or a URL with credentials."""
    text = text[:_SEARCHED]
    return bool(_HUB_TOKEN.search(text) or _URL_CREDENTIALS.search(text))


def holds_a_token(text: str) -> bool:
    """Tell whether a text has something of a token's shape in it; URLs and addresses are fine."""
    return bool(_HUB_TOKEN.search(text))


# --- what to write instead -------------------------------------------------------------------------


def _advise_lower_case(text: str) -> str:
    lower = text.lower().replace(" ", "-")
    return f"did you mean {quoted(lower)}?" if NAME.matches(lower) else ""


def _advise_runtime(text: str) -> str:
    path = text.removeprefix("./").rstrip("/")
    if "/" in text and RUNTIME.matches(f"./{path}"):
        return f"did you mean {quoted('./' + path)}?"
    return _advise_lower_case(text)


def _advise_version(text: str) -> str:
    if date := re.fullmatch(r"([0-9]{4})-([0-9]{1,2})-([0-9]{1,2})", text):
        return f"write {quoted('.'.join(str(int(part)) for part in date.groups()))} in quotes"
    if found := re.fullmatch(r"[vV]?([0-9]{1,9})(?:\.([0-9]{1,9}))?(?:\.([0-9]{1,9}))?", text):
        return f"write {quoted('.'.join(str(int(part or 0)) for part in found.groups()))} in quotes"
    if "+" in text:
        return "'+build' cannot stand in an image tag; use '-build'"
    return ""


def _advise_pattern(text: str) -> str:
    if "\\" in text:
        return "directories are separated by '/'"
    if text.startswith(("/", "./")):
        return "patterns are relative to the repository: leave the first '/' or './' out"
    return ""


def _advise_registry(text: str) -> str:
    bare = re.sub(r"^(?:https?|docker|oci)://", "", text).rstrip("/")
    if "@" in text:
        return "credentials come from the Docker config (`docker login`)"
    if bare != text and REGISTRY.matches(bare):
        return f"a registry is written without scheme and last '/': did you mean {quoted(bare)}?"
    if REGISTRY.matches(bare.lower()):
        return f"namespaces are lower-case: did you mean {quoted(bare.lower())}?"
    if re.fullmatch(rf"{COMPONENT}(?:/{COMPONENT})*", text):
        return f"the host comes first (with a dot or a port): did you mean {quoted('docker.io/' + text)}?"
    return ""


def _advise_base(text: str) -> str:
    if "@" in text or not re.fullmatch(r"[\w./:-]+", text, re.ASCII):
        return ""
    shown = text if len(text) <= 60 else "NAME:TAG"
    return f"`docker buildx imagetools inspect {shown}` shows the digest: write {shown}@sha256:..."


def _advise_hub(text: str) -> str:
    if _URL_CREDENTIALS.search(text):
        return "credentials do not belong in the file: the token comes from HF_TOKEN"
    if "?" in text or "#" in text:
        return "leave the query and the fragment out"
    if text.endswith("/"):
        return "leave the last '/' out"
    if "://" not in text:
        return "did you forget https:// ?"
    return ""


def _advise_path(text: str) -> str:
    return f"did you mean {quoted('/' + text)}?" if PATH.matches(f"/{text}") else ""


def _advise_channel(text: str) -> str:
    lower = re.sub(r"[ ._]+", "-", text.lower())
    return f"did you mean {quoted(lower)}?" if lower != text and CHANNEL.matches(lower) else ""


def _advise_package(text: str) -> str:
    better = re.sub(r"[-_.]+", "-", text).lower()
    return f"did you mean {quoted(better)}?" if PACKAGE.matches(better) else ""


# --- the grammars ----------------------------------------------------------------------------------

NAME = Grammar(
    "a name of lower-case letters and digits, with single '.', '_' or '-' between (at most 64 characters)",
    r"[a-z0-9]+(?:[._-][a-z0-9]+)*",
    64,
    ("minilm", "llama-3.2-1b"),
    _advise_lower_case,
)
_FOLDER = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
RUNTIME = Grammar(
    "a runtime's name, or ./ and the path of a folder beside models.yaml whose last part is a name",
    rf"(?:\./(?:{_FOLDER}/)*)?{NAME.pattern}",
    250,
    ("embeddings", "./services/chat"),
    _advise_runtime,
)
VERSION = Grammar(
    'a semantic version in quotes, such as "1.4.0"',
    # https://semver.org without '+build', which no image tag can hold; a tag has 128 characters at most
    rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(?:-{_PRERELEASE}(?:\.{_PRERELEASE})*)?",
    128,
    ("1.0.0", "2.1.0-rc.1"),
    _advise_version,
)
REVISION = Grammar(
    "a branch, tag or commit of the repository",
    # git check-ref-format, restricted to the characters that hubs let people use
    r"(?!.*(?:\.\.|//|@\{|/\.|\.lock(?:/|$)))[A-Za-z0-9_](?:[A-Za-z0-9_./@+=-]*[A-Za-z0-9_@+=-])?",
    250,
    ("main", "v1.5", "refs/pr/3", "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"),
)
PATTERN = Grammar(
    "a relative file name pattern such as *.safetensors",
    rf"(?![/\s])(?!(?:.*/)?\.\.?(?:/|$))(?!.*//)(?:(?![\\]){LINE_CHARACTER})+(?<!\s)",
    1024,
    ("*.safetensors", "onnx/*"),
    _advise_pattern,
)
# `.bin` is PyTorch's usual name for a pickle; other formats use it too, and no name tells them apart.
PICKLE_SUFFIXES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
_PICKLE_ENDING = "|".join(
    "".join(f"[{letter}{letter.upper()}]" for letter in suffix[1:]) for suffix in PICKLE_SUFFIXES
)
PICKLE = Grammar(
    f"a pickle's whole file name, which ends in {', '.join(PICKLE_SUFFIXES[:-1])} or {PICKLE_SUFFIXES[-1]}",
    rf"(?!.*[*?])(?=.*\.(?:{_PICKLE_ENDING})$){PATTERN.pattern}",
    PATTERN.longest,
    ("pytorch_model.bin",),
    _advise_pattern,
)
REGISTRY = Grammar(
    "a registry such as registry.example.com:5000/team, without a scheme",
    rf"{REGISTRY_HOST}(?:/{COMPONENT})*",
    190,  # the whole repository name has 255 characters at most, the model's name 64 of them
    ("registry.example.com/ml", "localhost:5000"),
    _advise_registry,
)
BASE = Grammar(
    "an image pinned by its digest: name:tag@sha256: and 64 hexadecimal digits",
    rf"(?:{REGISTRY_HOST}/)?{COMPONENT}(?:/{COMPONENT})*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?@sha256:[0-9a-f]{{64}}",
    500,
    (f"docker.io/library/python:3.11-slim-bookworm@sha256:{'0123456789abcdef' * 4}",),
    _advise_base,
)
HUB = Grammar(
    "the URL of a hub such as https://huggingface.co",
    rf"https?://(?:{LABEL}(?:\.{LABEL})*|{_IPV6})(?::{PORT})?(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*",
    1024,
    ("https://huggingface.co", "https://hub.example.com"),
    _advise_hub,
)
ENV_NAME = Grammar(
    "an environment variable's name (letters, digits and '_')",
    r"[A-Za-z_][A-Za-z0-9_]*",
    256,
    ("OMP_NUM_THREADS",),
)
LINE = Grammar("text on one line, without control characters", rf"{LINE_CHARACTER}*", 4096, ("search",))
ENV_VALUE = Grammar(LINE.expected, LINE.pattern, LINE.longest, ("4",), secretive=True)
LABEL_NAME = Grammar(
    "a label's name: lower-case letters and digits, with single '.', '_' or '-' between",
    # https://docs.docker.com/engine/manage-resources/labels/
    r"[a-z][a-z0-9]*(?:[._-][a-z0-9]+)*",
    256,
    ("org.example.team",),
    _advise_lower_case,
)
PATH = Grammar(
    "a URL path that begins with '/'",
    r"/(?!/)[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*",
    2048,
    ("/v1/embeddings",),
    _advise_path,
)
CHECK_NAME = Grammar(
    "a check's name: 1 to 100 characters on one line", rf"(?!\s){LINE_CHARACTER}+(?<!\s)", 100, ("dimension",)
)
PERCENT = Grammar(
    'a percentage above 0 in quotes, such as "20%"',
    r"(?!0+(?:\.0+)?%)(?:0|[1-9][0-9]{0,3})(?:\.[0-9]{1,3})?%",
    12,
    ("20%", "2.5%"),
)
SHARE = Grammar(
    'a percentage above 0 and below 100 in quotes, such as "20%"',
    r"(?!0+(?:\.0+)?%)(?:0|[1-9][0-9]?)(?:\.[0-9]{1,3})?%",
    8,
    ("20%", "2.5%"),
)
FILE = Grammar(
    "a relative file name such as server.py",
    r"[A-Za-z0-9_][A-Za-z0-9._-]*(?:/[A-Za-z0-9_][A-Za-z0-9._-]*)*",
    255,
    ("server.py",),
)
NEED = Grammar(
    "what a runtime needs, in lower-case words such as tokenizer", r"[a-z]+(?: [a-z]+)*", 40, ("tokenizer",)
)
CLASS = Grammar(
    "a class name or its pattern, such as *ForCausalLM", r"[A-Za-z0-9_*]+", 100, ("*ForCausalLM",)
)
PACKAGE = Grammar(
    "a package's name, in lower case with '-', or a pattern of names such as nvidia-*",
    r"[a-z0-9*](?:[a-z0-9*]|-(?!-))*(?<!-)",
    100,
    ("torch", "nvidia-*"),
    _advise_package,
)
INSTALLED = Grammar(
    "a path of installed files, relative to site-packages, or a pattern such as triton/**",
    PATTERN.pattern,
    1024,
    ("triton/**", "nvidia/nccl/lib/libnccl.so.2"),
)
FOLDER = Grammar(
    "a folder below /models, such as adapter",
    rf"(?=.{{1,200}}$){_FOLDER}(?:/{_FOLDER}){{0,7}}",
    200,
    ("adapter",),
)
STORE_VERSION = Grammar(
    "what a store calls a version of an object",
    r"[A-Za-z0-9\"%/_.:+=!~-]+",
    1024,
    ("3HL4kqtJlcpXroDTDmJ-rmSpXd3dIbrHY",),
)
SHA256 = Grammar("a sha256: 64 lower-case hexadecimal digits", r"[0-9a-f]{64}", 64, ("ab" * 32,))
REASON = Grammar(
    "a reason: text on one line", rf"(?!\s){LINE_CHARACTER}+(?<!\s)", 200, ("no compiler is there",)
)
CHANNEL = Grammar(
    "a channel's name: lower-case letters, digits and '-' after a letter (at most 32 characters)",
    # Its moves are the tags NAME-0001, NAME-0002, ...; `candidate-` and `sha256-` begin tags of other kinds.
    r"(?!(?:candidate|latest|sha256)(?:-|$))[a-z](?:-?[a-z0-9]){0,31}(?<!-[0-9]{4})",
    32,
    ("staging", "production"),
    _advise_channel,
)
KEY = Grammar(
    "a PEM file relative to models.yaml, or a KMS URI such as awskms:///alias/name",
    r"(?:(?:awskms|gcpkms|azurekms|hashivault|k8s)://[A-Za-z0-9/_.:@-]{1,500}"
    r"|(?!/)(?!(?:.*/)?\.\.(?:/|$))[A-Za-z0-9_.][A-Za-z0-9_./-]*)",
    512,
    ("cosign.pub", "awskms:///alias/modelbake"),
)
ARGUMENT = Grammar("a word of a command: text on one line", rf"{LINE_CHARACTER}+", 1024, ("/app/server.py",))
