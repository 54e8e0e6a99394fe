"""Every rule finds what it is for, in a clean image to which one thing was done; the clean image has none."""

from __future__ import annotations

import base64
import gzip
import json
import pickle
import random
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from modelbake.audit.auditing import audit
from modelbake.audit.findings import as_document, in_words
from modelbake.audit.rules import RULES
from modelbake.errors import ReadBackMismatch, RegistryError, UsageError
from tests.conftest import Tally
from tests.servers.environment import ROOT
from tests.unit.audit.building import (
    FOLDER,
    WEIGHTS,
    File,
    Made,
    baked,
    facts,
    layer_tar,
    rules_of,
    zstd,
)
from tests.unit.audit.hostile import DISGUISED, GLOBAL, HOSTILE, STACK_GLOBAL, zipped
from tests.unit.audit.secrets import SECRETS

Change = Callable[[Made], None]


def put(path: str, file: File | bytes, layer: int = 0) -> Change:
    def change(made: Made) -> None:
        made.layers[layer][path] = file

    return change


def weight(path: str, file: File | bytes, *, locked: bool = True) -> Change:
    """Put a weight that is locked, and listed in the manifest, as what it is."""

    def change(made: Made) -> None:
        content = file if isinstance(file, bytes) else file.content
        made.layers[1][f"models/{path}"] = file if isinstance(file, File) else File(file, 0o444)
        if locked:
            weights = {**WEIGHTS, path: content}
            made.layers[2]["modelbake/manifest.json"] = baked(weights)
            made.expected = made.expected and type(made.expected)(facts(weights), made.expected.allow_pickle)

    return change


def allowed(path: str, content: bytes, *, strict: bool = False) -> Change:
    def change(made: Made) -> None:
        weight(path, content)(made)
        assert made.expected
        made.expected = type(made.expected)(made.expected.files, frozenset({path}))
        made.strict = strict

    return change


def setting(key: str, value: object) -> Change:
    def change(made: Made) -> None:
        made.config[key] = value

    return change


def env(entry: str) -> Change:
    return lambda made: made.config["Env"].append(entry)


def label(name: str, value: str) -> Change:
    return lambda made: made.config["Labels"].update({name: value})


def annotation(value: str) -> Change:
    return lambda made: made.annotations.update({"org.example.note": value})


def step(created_by: str) -> Change:
    return lambda made: made.history.append({"created_by": created_by, "empty_layer": True})


def above(entries: dict[str, File | bytes]) -> Change:
    return lambda made: made.layers.append(dict(entries))


def drop(layer: int, path: str) -> Change:
    def change(made: Made) -> None:
        del made.layers[layer][path]

    return change


def both(*changes: Change) -> Change:
    def change(made: Made) -> None:
        for each in changes:
            each(made)

    return change


def of(name: str) -> str:
    return SECRETS[name][1]()


LINK = File(mode=0o777, type=tarfile.SYMTYPE, target="/etc/passwd")
CANARY = Made().canary

FAULTS: dict[str, list[tuple[str, Change]]] = {
    "secret-canary": [
        ("in a file", put("app/x", b"a" * 999 + CANARY.encode())),
        ("in a label", label("note", CANARY)),
        ("in a file's name", put(f"app/{CANARY}", b"")),
        ("in base64 in the history", step("RUN echo " + base64.b64encode(b"ab" + CANARY.encode()).decode())),
    ],
    **{
        rule: [
            (f"{name} {where}", change)
            for name in [name for name, (of_rule, _) in SECRETS.items() if of_rule == rule][:1]
            for where, change in (
                ("in a file", put("root/.netrc", b"\0" + of(name).encode() + b"\n")),
                ("in the environment", env(f"NOTE={of(name)}")),
                ("in a label", label("note", of(name))),
                ("in the history", step(f"RUN echo {of(name)}")),
                ("in an annotation", annotation(of(name))),
                ("in the command", setting("Cmd", ["/app", f"--flag={of(name)}"])),
            )
        ]
        for rule in sorted({rule for rule, _ in SECRETS.values()})
    },
    "secret-distribution": [
        ("self-test", put("usr/lib/x86_64-linux-gnu/libgnutls.so.30.34.3", of("rsa key").encode()))
    ],
    "secret-name": [
        ("variable", env("HF_TOKEN=whatever")),
        ("label", label("com.example.api-key".replace("-", "_"), "whatever")),
        ("build argument", step("RUN |1 HF_TOKEN=whatever /bin/sh -c fetch")),
        ("ENV in the history", step("ENV DB_PASS" + 'WORD="whatever it is"')),
    ],
    "pickle-name": [
        ("locked", weight("pytorch_model.bin", b"not even one")),
        ("in a folder", weight("a/b.PKL", b"x")),
    ],
    "pickle-content": [
        *((name, weight(name, STACK_GLOBAL)) for name in DISGUISED),
        ("zipped torch as safetensors", weight("model2.safetensors", HOSTILE["torch, zipped"])),
        ("elsewhere", put("app/data.dat", GLOBAL)),
        ("at the root, called as one that is allowed", put("config.json", GLOBAL)),
    ],
    "pickle-opinion": [("os.system", allowed("pytorch_model.bin", STACK_GLOBAL, strict=True))],
    "pickle-allowed": [("named", allowed("pytorch_model.bin", pickle.dumps({"a": 1})))],
    "pickle-python": [
        ("grammar", put("usr/lib/python3.11/lib2to3/Grammar3.11.pickle", pickle.dumps({"a": [1, 2]})))
    ],
    "model-code": [
        ("modeling.py", weight("modeling_x.py", b"print()")),
        ("a library", weight("x.so", b"\x7fELF")),
    ],
    "setuid": [
        ("set-uid", put("usr/bin/env", File(b"\x7fELF", 0o4755))),
        ("set-gid", put("usr/bin/env", File(b"\x7fELF", 0o2755))),
        (
            "capabilities",
            put("usr/bin/env", File(b"\x7fELF", 0o755, pax={"SCHILY.xattr.security.capability": "x"})),
        ),
        ("a known name in another layer", above({"usr/bin/su": File(b"\x7fELF", 0o4755)})),
    ],
    "setuid-distribution": [("su", put("usr/bin/su", File(b"\x7fELF", 0o4755)))],
    "world-writable": [
        ("file", put("etc/cron", File(b"x", 0o666))),
        ("folder", put("opt", File(mode=0o777, type=tarfile.DIRTYPE))),
    ],
    "root-user": [
        *(
            (repr(user), setting("User", user))
            for user in ("", "0", "root", "root:root", "0:0", "nobody-knows")
        ),
        (
            "an account of uid 0",
            both(put("etc/passwd", b"toor:x:0:0::/:/bin/sh\n"), setting("User", "toor")),
        ),
    ],
    "weights-extra": [
        ("file", weight("extra.json", b"{}", locked=False)),
        ("in the lower layer", put("models/old.json", b"{}")),
    ],
    "weights-missing": [("gone", drop(1, "models/config.json"))],
    "weights-changed": [
        ("byte", put("models/config.json", File(WEIGHTS["config.json"].upper(), 0o444), 1)),
        ("size", put("models/config.json", File(b"{}", 0o444), 1)),
        ("in a lower layer", put("models/config.json", File(b"{}", 0o444))),
        ("above", above({"models/config.json": File(b"{ }", 0o444)})),
    ],
    "weights-link": [
        ("symbolic", put("models/link", LINK, 1)),
        ("hard", put("models/link", File(type=tarfile.LNKTYPE, target="etc/passwd"), 1)),
        ("hard from elsewhere", put("app/link", File(type=tarfile.LNKTYPE, target="models/config.json"), 2)),
        ("pipe", put("models/pipe", File(type=tarfile.FIFOTYPE), 1)),
        ("the folder itself", lambda made: made.layers.insert(0, {"models": LINK})),
    ],
    "weights-hidden": [
        ("a file", above({"models/.wh.config.json": b""})),
        ("the folder", above({".wh.models": b""})),
        ("all of the folder", above({"models/.wh..wh..opq": b""})),
        ("all of the image", above({".wh..wh..opq": b""})),
    ],
    "weights-writable": [
        ("owner", put("models/config.json", File(WEIGHTS["config.json"], 0o444, 65532), 1)),
        ("group", put("models/config.json", File(WEIGHTS["config.json"], 0o464, 0, 65532), 1)),
        ("folder", put("models", File(mode=0o755, uid=65532, type=tarfile.DIRTYPE), 1)),
        (
            "a group of an account",
            both(
                put("models/config.json", File(WEIGHTS["config.json"], 0o464, 0, 50), 1),
                setting("User", "app"),
            ),
        ),
    ],
    "weights-manifest": [
        ("missing", drop(2, "modelbake/manifest.json")),
        ("broken", put("modelbake/manifest.json", b"[", 2)),
        ("another", put("modelbake/manifest.json", baked({"config.json": b"{}"}), 2)),
    ],
    "hidden-files": [("deleted", above({"etc/.wh.group": b""}))],
}
CASES = [(rule, name, change) for rule, faults in FAULTS.items() for name, change in faults]


@pytest.mark.control("audit")
@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd])
def test_a_clean_image_has_no_findings_and_no_notes(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    findings = Made.clean().audit(tmp_path / "oci", compress)
    assert findings.found == ()
    assert findings.passed
    assert (findings.layers, findings.files) == (3, 12)
    made = Made.clean()
    made.expected = None
    assert made.audit(tmp_path / "alone").passed, "its own manifest says the same"


def test_there_is_a_fault_for_every_rule() -> None:
    assert set(FAULTS) | {"unreadable"} == set(RULES)


@pytest.mark.promise("audit")
@pytest.mark.parametrize(
    ("rule", "name", "change"), CASES, ids=[f"{rule}: {name}" for rule, name, _ in CASES]
)
def test_every_rule_finds_what_it_is_for(tmp_path: Path, rule: str, name: str, change: Change) -> None:
    made = Made.clean()
    change(made)
    findings = made.audit(tmp_path / "oci")
    assert rule in rules_of(findings), rules_of(findings)
    assert findings.passed == (not RULES[rule].fails)
    said = json.dumps(as_document(findings)) + "\n".join(in_words(findings))
    assert CANARY not in said
    for secret_name, (_, make) in SECRETS.items():
        assert make() not in said, secret_name


@pytest.mark.promise("audit")
@pytest.mark.parametrize("rule", ["secret-huggingface", "pickle-content", "setuid", "weights-extra"])
def test_what_a_later_layer_deletes_is_still_found(tmp_path: Path, rule: str) -> None:
    made = Made.clean()
    path = {"weights-extra": "models/extra"}.get(rule, "app/old")
    bad: dict[str, File | bytes] = {
        "secret-huggingface": of("hugging face").encode(),
        "pickle-content": STACK_GLOBAL,
        "setuid": File(b"\x7fELF", 0o4755),
        "weights-extra": b"{}",
    }
    made.layers[0][path] = bad[rule]
    folder, _, name = path.rpartition("/")
    made.layers.append({f"{folder}/.wh.{name}": b""})
    findings = made.audit(tmp_path / "oci")
    (found,) = [each for each in findings.found if each.rule.id == rule]
    assert found.layer == 1
    assert "a later layer deletes it" in found.message


@pytest.mark.promise("audit")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_found_in_an_image_under_any_name(tmp_path: Path, name: str) -> None:
    made = Made.clean()
    weight("model-00002.safetensors", HOSTILE[name])(made)
    assert "pickle-content" in rules_of(made.audit(tmp_path / "oci"))


# --- what no tar of Python's has in it ----------------------------------------------------------------------


def stored(raw: bytes) -> Made:
    """Return a clean image whose lowest layer is made of these very bytes."""
    made = Made.clean()
    made.raw = raw
    return made


BASE = layer_tar(Made.clean().layers[0])


@pytest.mark.promise("audit")
def test_bytes_behind_the_end_of_a_layer_are_read(tmp_path: Path) -> None:
    secret = of("hugging face").encode()
    findings = stored(BASE + b"\n" + secret).audit(tmp_path)
    assert {"unreadable", "secret-huggingface"} <= set(rules_of(findings))


@pytest.mark.promise("audit")
def test_a_header_that_ends_pythons_reading_hides_nothing(tmp_path: Path) -> None:
    """Python takes a damaged header for the end of a tar, other readers do not."""
    damaged = bytearray(layer_tar({"a": b"1", "b": STACK_GLOBAL}))
    damaged[1024] ^= 0xFF
    findings = stored(bytes(damaged)).audit(tmp_path)
    assert {"unreadable", "pickle-content"} <= set(rules_of(findings))


def test_zeros_behind_the_end_are_none(tmp_path: Path) -> None:
    assert "unreadable" not in rules_of(stored(BASE + bytes(50_000)).audit(tmp_path))


def test_a_header_of_gigabytes_is_refused(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("x")
    entry.type, entry.size = tarfile.XHDTYPE, 6 << 20
    raw = entry.tobuf() + bytes(6 << 20) + bytes(1024)
    with pytest.raises(RegistryError, match="a tar header of 6,291,456 bytes"):
        stored(raw).audit(tmp_path)


def test_a_layer_that_is_no_tar_is_read_as_a_file(tmp_path: Path) -> None:
    findings = stored(b'{"predicate": "' + of("github").encode() + b'"}').audit(tmp_path)
    assert "secret-github" in rules_of(findings)


@pytest.mark.promise("audit")
@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd])
def test_a_layer_that_is_cut_off_is_not_passed_in_silence(
    tmp_path: Path, compress: Callable[[bytes], bytes], tally: Tally
) -> None:
    whole = compress(layer_tar({str(n): random.Random(n).randbytes(100_000) for n in range(3)})[:-10_000])
    control = compress(layer_tar({str(n): random.Random(n).randbytes(100_000) for n in range(3)}))
    assert "unreadable" not in rules_of(stored(control).audit(tmp_path / "control"))
    for number, end in enumerate((len(whole) // 9, len(whole) // 2, len(whole) - 1, len(whole))):
        tally.count()
        try:
            findings = stored(whole[:end]).audit(tmp_path / str(number))
        except RegistryError as error:
            assert "cannot be read" in str(error)
        else:
            assert "unreadable" in rules_of(findings), number


def test_a_blob_with_other_bytes_is_an_error(tmp_path: Path) -> None:
    image = Made.clean().store(tmp_path / "oci")
    blob = max((tmp_path / "oci/blobs/sha256").iterdir(), key=lambda each: each.stat().st_size)
    blob.chmod(0o644)
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    with pytest.raises(ReadBackMismatch):
        audit(image)


def test_paths_are_those_that_an_engine_unpacks(tmp_path: Path) -> None:
    made = Made.clean()
    made.layers[0] |= {"./models/../../models/./extra": b"x", "/app/x": File(b"x", 0o666)}
    found = rules_of(made.audit(tmp_path / "oci"))
    assert found["weights-extra"] == ["models/extra"]
    assert found["world-writable"] == ["app/x"]


def test_many_findings_are_counted_and_not_all_listed(tmp_path: Path) -> None:
    made = Made.clean()
    made.layers[0] |= {f"app/{number}": File(b"x", 0o666) for number in range(150)}
    found = [each for each in made.audit(tmp_path / "oci").found if each.rule.id == "world-writable"]
    assert len(found) == 101
    assert found[0].message == "and 50 more in this layer" or found[-1].message == "and 50 more in this layer"


# --- weights, users, second opinions ----------------------------------------------------------------------


def test_a_sound_copy_above_a_changed_one_is_not_missing(tmp_path: Path) -> None:
    made = Made.clean()
    made.layers.insert(0, {"models": FOLDER, "models/config.json": b"{}"})
    found = rules_of(made.audit(tmp_path / "oci"))
    assert found == {"weights-changed": ["models/config.json"]}


def test_an_image_without_weights_needs_no_manifest(tmp_path: Path) -> None:
    made = Made.clean()
    made.layers, made.expected = [made.layers[0]], None
    assert made.audit(tmp_path / "oci").found == ()


def test_root_may_write_everything_and_that_is_said_once(tmp_path: Path) -> None:
    made = Made.clean()
    made.config["User"] = "0"
    assert set(rules_of(made.audit(tmp_path / "oci"))) == {"root-user"}


CALL_NOTHING = {"without an import", "without an import, protocol 0", "in another pickle"}


def torch_file() -> bytes:
    """What torch.save writes of a tensor, but for the tensor."""
    return zipped("archive/data.pkl", pickle.dumps({"a": 1, "b": [1.0, 2.0]}, 2))


def test_second_opinions_agree_with_a_harmless_pickle(tmp_path: Path) -> None:
    for number, content in enumerate((pickle.dumps({"a": [1, 2.5, "x"]}, 4), torch_file())):
        made = Made.clean()
        allowed("pytorch_model.bin", content, strict=True)(made)
        assert set(rules_of(made.audit(tmp_path / str(number)))) == {"pickle-allowed"}


@pytest.mark.promise("pickles")
@pytest.mark.parametrize("name", sorted(set(HOSTILE) - CALL_NOTHING))
def test_second_opinions_object_to_hostile_pickles_that_are_allowed(tmp_path: Path, name: str) -> None:
    made = Made.clean()
    allowed("pytorch_model.bin", HOSTILE[name], strict=True)(made)
    findings = made.audit(tmp_path / "oci")
    assert "pickle-opinion" in rules_of(findings)


def test_strict_without_the_scanners_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "picklescan.scanner", None)
    monkeypatch.setitem(sys.modules, "fickling.analysis", None)
    made = Made.clean()
    made.strict = True
    with pytest.raises(UsageError, match=r"--strict asks picklescan and fickling") as caught:
        made.audit(tmp_path / "oci")
    assert "'.[audit]'" in caught.value.hint


def test_the_manual_lists_every_rule_as_it_is() -> None:
    manual = (ROOT / "docs" / "audit.md").read_text()
    for rule in RULES.values():
        assert f"| `{rule.id}` | {rule.severity} | {rule.title} | {rule.remedy} |" in manual
