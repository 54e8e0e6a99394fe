"""The facts of an image and what is expected of it become findings. Pure.

A container sees the layers together: what the last one that says anything of a path says of it. An audit
judges that view where it is about what runs (owners, modes, missing files), and every layer by itself where
it is about what is shipped: whoever pulls the image gets the bytes of all of them.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelbake.audit.documents import ambiguous, config_findings, document_findings
from modelbake.audit.findings import Finding, finding
from modelbake.audit.images import ReadImage
from modelbake.audit.layer import GROUP, MANIFEST, PASSWD, Entry, LayerFacts
from modelbake.audit.rules import RULES
from modelbake.audit.tokens import Canaries
from modelbake.imagetar import is_below, is_hidden
from modelbake.pickles import is_pickle
from modelbake.stream.layers import ROOT

_PROGRAMS = (".py", ".pyc", ".so")
_PYTHON = re.compile(r"(?:.*/)?lib(?:64)?/python3(?:\.\d+)?/.*")
_DISTRIBUTION = re.compile(
    r"(?:usr/)?(?:s?bin/(?:su|mount|umount|passwd|chsh|chfn|chage|expiry|gpasswd|newgrp|ping[46]?|wall|write"
    r"|ssh-agent|crontab|fusermount3?|unix_chkpwd|pam_timestamp_check|bbsuid)"
    r"|lib(?:exec)?/(?:openssh/ssh-keysign|dbus-1(?:\.0)?/dbus-daemon-launch-helper|utempter/utempter))"
)
_LIBRARY = re.compile(r"(?:usr/)?lib(?:64)?/(?:[a-z0-9_]+-linux-gnu/)?lib[\w+.-]+\.so[\d.]*")
_MOST_LINKS = 40  # that are followed after each other, as Linux does
_MOST = 1000  # findings of one rule that are listed; a broken image may have a million


@dataclass(frozen=True)
class Expected:
    """What an image should hold: the locked files, by path, as (size, sha256); pickles that are allowed."""

    files: Mapping[str, tuple[int, str]]
    allow_pickle: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _User:
    """Who a container runs as; `uid` is None where the image does not know the name."""

    uid: int | None
    groups: frozenset[int] = frozenset()


def judge(image: ReadImage, expected: Expected | None, canaries: Canaries) -> list[Finding]:
    """Return what is wrong with an image, the worst first.

    `expected`: None compares the weights with the manifest in the image only.
    """
    found = config_findings("config", image.config, canaries)
    for name, document in image.documents.items():
        found += document_findings(name, document, canaries)
    found += ambiguous("config", image.config)
    kept = _kept(image.layers)
    user = _user(image.config, kept)
    found += _of_user(image.config, user)
    baked = _baked(kept.get(MANIFEST))
    wanted = expected.files if expected else baked
    allowed = expected.allow_pickle if expected else frozenset[str]()
    for number, layer in enumerate(image.layers, start=1):
        above = image.layers[number:]
        found += _of_layer(layer, number, above, allowed)
        found += _of_weights(layer, number, above, wanted)
    found += _through_links(image.layers)
    weights = _final(image.layers)
    found += _together(weights, wanted, baked, expected, user)
    return _limited(found)


# --- one layer --------------------------------------------------------------------------------------------


def _of_layer(
    layer: LayerFacts, number: int, above: Sequence[LayerFacts], allowed: frozenset[str]
) -> Iterator[Finding]:
    for seen in layer.seen:
        rule = seen.rule
        if rule == "pickle-content":
            if seen.path.startswith(f"{ROOT}/") and _weight(seen.path) in allowed:
                continue  # noted by its name
            of_python = _PYTHON.fullmatch(seen.path) and not seen.path.startswith(f"{ROOT}/")
            rule = "pickle-python" if of_python else rule
        if rule == "setuid" and layer.packages and _DISTRIBUTION.fullmatch(seen.path):
            rule = "setuid-distribution"
        if rule == "secret-private-key" and layer.packages and _LIBRARY.fullmatch(seen.path):
            rule = "secret-distribution"
        title = RULES[rule].title if rule.startswith("secret-") else ""
        message = ", ".join(part for part in (title, seen.message) if part)
        place = seen.path or f"(layer {number})"
        yield finding(rule, place, message + _gone(seen.path, above), number, seen.offset)
    over = sorted(path for path in layer.hidden if _hides_weights(path))
    for path in over:
        yield finding("weights-hidden", path, "a whiteout takes it away", number)
    if others := layer.hidden.difference(over):
        some = ", ".join(sorted(others)[:3]) + (", ..." if len(others) > 3 else "")
        count = f"{len(others)} path{'' if len(others) == 1 else 's'} of lower layers"
        yield finding("hidden-files", f"(layer {number})", f"takes away {count}: {some}", number)


def _of_weights(
    layer: LayerFacts,
    number: int,
    above: Sequence[LayerFacts],
    wanted: Mapping[str, tuple[int, str]] | None,
) -> Iterator[Finding]:
    for path, entry in sorted(layer.weights.items()):
        name = _weight(path)
        gone = _gone(path, above)
        if entry.kind not in ("file", "folder"):
            yield finding("weights-link", path, f"a {entry.kind}{gone}", number)
        elif path == ROOT and entry.kind == "file":
            yield finding("weights-link", path, f"a file, where the weights' folder should be{gone}", number)
        elif entry.kind == "file":
            if name.lower().endswith(_PROGRAMS):
                yield finding("model-code", path, f"a program among the weights{gone}", number)
            if wanted is not None and name not in wanted:
                yield finding("weights-extra", path, f"the lock does not name it{gone}", number)
            elif wanted is not None and (difference := _difference(entry, wanted[name])):
                yield finding("weights-changed", path, difference + gone, number)


def _difference(entry: Entry, wanted: tuple[int, str]) -> str:
    size, sha256 = wanted
    if entry.size != size:
        return f"{entry.size:,} bytes, and {size:,} are locked"
    if entry.sha256 != sha256:
        return f"sha256 {entry.sha256[:16]}..., and {sha256[:16]}... is locked"
    return ""


def _hides_weights(path: str) -> bool:
    return path == "/" or is_below(path.rstrip("/"), ROOT) or path.rstrip("/") == ROOT


def _gone(path: str, above: Sequence[LayerFacts]) -> str:
    hidden = any(is_hidden(path, layer.hidden) for layer in above) if path else False
    return "; a later layer deletes it, and it is in the image all the same" if hidden else ""


# --- all layers together ----------------------------------------------------------------------------------


def _final(layers: Sequence[LayerFacts]) -> dict[str, Entry]:
    """Return the weights' folder as a container sees it, by path."""
    seen: dict[str, Entry] = {}
    for layer in layers:
        gone = layer.hidden | {
            f"{path}/"
            for path, entry in layer.weights.items()
            if entry.kind != "folder" and seen.get(path, entry).kind == "folder"
        }
        seen = {path: entry for path, entry in seen.items() if not is_hidden(path, gone)}
        seen |= layer.weights
    return seen


def _through_links(layers: Sequence[LayerFacts]) -> Iterator[Finding]:
    """Find what is written through a symbolic link into the weights' folder: engines follow those."""
    links: dict[str, str] = {}
    for number, layer in enumerate(layers, start=1):
        links |= layer.links
        if not links:
            continue
        for folder in sorted(layer.folders):
            if folder and folder != ROOT and not folder.startswith(f"{ROOT}/"):
                led = _followed(folder, links)
                if led == ROOT or led.startswith(f"{ROOT}/"):
                    yield finding(
                        "weights-link", folder, f"files are written through a link to {led}", number
                    )


def _followed(path: str, links: Mapping[str, str]) -> str:
    """Return where a path leads; a circle leads nowhere."""
    for _ in range(_MOST_LINKS):
        parts = path.split("/")
        tops = ("/".join(parts[:depth]) for depth in range(1, len(parts) + 1))
        link = next((top for top in tops if top in links), None)
        if link is None:
            return path
        path = posixpath.normpath(f"{links[link]}/{path[len(link) :]}").lstrip("/")
    return ""


def _together(
    weights: Mapping[str, Entry],
    wanted: Mapping[str, tuple[int, str]] | None,
    baked: Mapping[str, tuple[int, str]] | None,
    expected: Expected | None,
    user: _User,
) -> Iterator[Finding]:
    there = {_weight(path) for path, entry in weights.items() if entry.kind == "file"}
    for name in sorted(set(wanted or ()) - there):
        yield finding("weights-missing", f"{ROOT}/{name}", "it is locked, and not in the image")
    if baked is None and (there or wanted):
        yield finding("weights-manifest", MANIFEST, "it is missing, or cannot be read")
    elif expected is not None and baked != expected.files and baked is not None:
        yield finding("weights-manifest", MANIFEST, "it lists other files than models.lock")
    allowed = expected.allow_pickle if expected else frozenset[str]()
    for name in sorted(there):
        if name in allowed:
            yield finding("pickle-allowed", f"{ROOT}/{name}", "a pickle that `allow_pickle` names")
        elif is_pickle(name):
            yield finding("pickle-name", f"{ROOT}/{name}", "a pickle by its name")
    if user.uid != 0:
        for path, entry in sorted(weights.items()):
            if why := _writable(entry, user):
                yield finding("weights-writable", path, f"mode {entry.mode & 0o7777:04o}: {why}")


def _writable(entry: Entry, user: _User) -> str:
    if entry.kind not in ("file", "folder"):
        return ""
    if user.uid is not None and entry.uid == user.uid:
        return f"the image's user owns it ({entry.uid}), and can change any mode"
    if entry.mode & 0o020 and entry.gid in user.groups:
        return f"a group of the image's user ({entry.gid}) may write it"
    return "everybody may write it" if entry.mode & 0o002 else ""


# --- who it runs as ---------------------------------------------------------------------------------------


def _of_user(config: Mapping[str, Any], user: _User) -> Iterator[Finding]:
    name = _settings(config).get("User") or ""
    if user.uid == 0:
        yield finding("root-user", "config: User", f"runs as root (User is {str(name)!r})")
    elif user.uid is None:
        yield finding("root-user", "config: User", f"the image does not say who {str(name)!r} is")


def _user(config: Mapping[str, Any], kept: Mapping[str, bytes]) -> _User:
    name, _, group = str(_settings(config).get("User") or "0").partition(":")
    accounts = _table(kept.get(PASSWD, b""))
    # A number is never the name of an account; of several accounts engines take the first.
    mine = next(
        (each for each in accounts if len(each) > 2 and name == each[0 if _number(name) is None else 2]), None
    )
    number = mine[2] if mine else name
    if name == "root":
        number = "0"
    groups: set[int | None] = {_number(mine[3]) if len(mine) > 3 else 0} if mine else {0}  # without: group 0
    if group:
        groups = {_number(group)}
    for parts in _table(kept.get(GROUP, b"")):
        if len(parts) > 3 and (group == parts[0] or (mine and not group and mine[0] in parts[3].split(","))):
            groups.add(_number(parts[2]))
    return _User(_number(number), frozenset(each for each in groups if each is not None))


def _table(raw: bytes) -> list[list[str]]:
    """Return the fields of the lines of passwd or group, as engines read them."""
    lines = (line.strip() for line in raw.decode(errors="replace").split("\n"))
    return [line.split(":") for line in lines if line]


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[+-]?[0-9]{1,10}", text, re.ASCII) else None


def _settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    settings = config.get("config")
    return settings if isinstance(settings, Mapping) else {}


# --- documents in the image -------------------------------------------------------------------------------


def _kept(layers: Sequence[LayerFacts]) -> dict[str, bytes]:
    kept: dict[str, bytes] = {}
    for layer in layers:
        kept = {
            path: content
            for path, content in kept.items()
            if not is_hidden(path, layer.hidden | layer.replaced)
        }
        kept |= layer.kept
    return kept


def _baked(raw: bytes | None) -> dict[str, tuple[int, str]] | None:
    """Return the files that the image's own manifest lists, None where it is none."""
    if raw is None:
        return None
    try:
        files = json.loads(raw)["files"]
        return {str(each["path"]): (int(each["size"]), str(each["sha256"])) for each in files}
    except (ValueError, OverflowError, RecursionError, KeyError, TypeError):
        return None


def _weight(path: str) -> str:
    """Return a path below the weights' folder as the lock writes it; another path as it is."""
    return path.removeprefix(f"{ROOT}/")


def _limited(found: Sequence[Finding]) -> list[Finding]:
    """Sort findings, and count those that nobody would read."""
    counts: dict[str, int] = {}
    kept = []
    for each in sorted(set(found), key=lambda one: one.key):
        counts[each.rule.id] = counts.get(each.rule.id, 0) + 1
        if counts[each.rule.id] <= _MOST:
            kept.append(each)
    more = {rule: count - _MOST for rule, count in counts.items() if count > _MOST}
    return kept + [finding(rule, "", f"and {count:,} more") for rule, count in more.items()]
