"""What readers take for different things: an audit must not be the one that is fooled."""

from __future__ import annotations

import io
import json
import lzma
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from modelbake.audit.content import Content
from modelbake.audit.sarif import as_sarif
from modelbake.audit.tokens import Canaries
from modelbake.errors import RegistryError
from modelbake.imagetar import is_below, is_hidden, unpacked
from modelbake.manifest import Manifest
from tests.unit.audit.building import MANIFEST, File, Made, rules_of
from tests.unit.audit.hostile import GLOBAL, zipped
from tests.unit.audit.secrets import SECRETS

SECRET = SECRETS["hugging face"][1]()
EVIL = b"what a container sees, and an audit would not"


def header(
    name: str, *, type: bytes = tarfile.REGTYPE, size: int = 0, change: Mapping[int, bytes] = {}
) -> bytes:
    """Return a header of POSIX's format; `change`: bytes by their place, with the sum made right."""
    info = tarfile.TarInfo(name)
    info.type, info.size = type, size
    raw = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    for at, value in change.items():
        raw[at : at + len(value)] = value
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


def block(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def pax(records: Mapping[str, str], type: bytes = tarfile.XHDTYPE) -> bytes:
    raw = b""
    for key, value in records.items():
        line = f" {key}={value}\n".encode()
        size = next(n for n in range(len(line), len(line) + 9) if n == len(line) + len(str(n)))
        raw += str(size).encode() + line
    return header("pax", type=type, size=len(raw)) + block(raw)


def long_name(name: str) -> bytes:
    raw = name.encode() + b"\0"
    return header("././@LongLink", type=tarfile.GNUTYPE_LONGNAME, size=len(raw)) + block(raw)


def entry(name: str, change: Mapping[int, bytes] = {}, content: bytes = EVIL) -> bytes:
    return header(name, size=len(content), change=change) + block(content)


AS_GNU = {257: b"ustar  \0"}
# Python reads another name, size or kind of each of these than Go, which unpacks layers.
DIFFERENT = {
    "a global header names it": pax({"path": "usr/x"}, tarfile.XGLTYPE) + entry("models/evil.bin"),
    "a name for a file with holes": pax({"GNU.sparse.name": "usr/x"}) + entry("models/evil.bin"),
    "a size for a file with holes": pax({"GNU.sparse.realsize": "1"}) + entry("models/evil.bin"),
    "an empty name": pax({"path": ""}) + entry("models/evil.bin"),
    "an empty size": pax({"size": ""}) + entry("usr/x"),
    "a size that is none": pax({"size": "x"}) + entry("usr/x"),
    "two names": pax({"path": "usr/x"}) + pax({"path": "models/evil.bin"}) + entry("y"),
    "two names of GNU": long_name("usr/x") + long_name("models/evil.bin") + entry("y"),
    "a name of POSIX's and one of GNU": pax({"path": "usr/x"}) + long_name("models/evil.bin") + entry("y"),
    "times where Python sees a folder, without magic": entry(
        "models/evil.bin", {257: bytes(8), 345: b"usr/x"}
    ),
    "the format of star": entry("evil.bin", {345: b"models", 508: b"tar\0"}),
    "a number after a NUL": entry("usr/x", {124: b"\x0000000001000"}),
    "no kind, and a long name": pax({"path": "a/"}) + entry("a", {156: b"\0"}),
    "a map of holes without an end": pax({"GNU.sparse.major": "1", "GNU.sparse.minor": "0"})
    + header("x", size=512)
    + b"9",
    "holes of the old format, cut off": header("x", type=tarfile.GNUTYPE_SPARSE, change={482: b"\1"}),
    "a name longer than any path": long_name("a/" * 3000) + entry("y"),
}


def lowest(raw: bytes) -> Made:
    made = Made.clean()
    made.raw = raw + bytes(1024)
    return made


@pytest.mark.promise("audit")
@pytest.mark.parametrize("what", DIFFERENT)
def test_a_tar_that_readers_understand_differently_is_not_passed(tmp_path: Path, what: str) -> None:
    try:
        findings = lowest(DIFFERENT[what]).audit(tmp_path)
    except RegistryError as error:
        assert "cannot be read" in str(error)
    else:
        assert "weights-extra" in rules_of(findings), "seen by the name that engines take"


@pytest.mark.control("audit")
def test_the_same_in_a_common_form_is_read_under_its_name(tmp_path: Path) -> None:
    for number, raw in enumerate(
        (
            entry("models/evil.bin"),
            long_name("models/evil.bin") + entry("y"),
            entry("models/evil.bin", AS_GNU),
        ),
    ):
        found = rules_of(lowest(raw).audit(tmp_path / str(number)))
        assert found["weights-extra"] == ["models/evil.bin"]


def test_what_common_writers_write_is_no_difference(tmp_path: Path) -> None:
    """`git archive` says its commit in a global header; GNU tar has times where others have a prefix."""
    comment = pax({"comment": "0" * 40}, tarfile.XGLTYPE)
    times = entry("app/x", {**AS_GNU, 345: b"14000000000\x0014000000000\0"})
    both = (
        header("././@LongLink", type=tarfile.GNUTYPE_LONGLINK, size=2) + block(b"t\0") + long_name("app/link")
    )
    found = lowest(comment + times + both + header("y", type=tarfile.SYMTYPE)).audit(tmp_path)
    assert "unreadable" not in rules_of(found)
    assert not {path for paths in rules_of(found).values() for path in paths if "14000" in path}


@pytest.mark.promise("audit")
@pytest.mark.parametrize(
    "raw",
    [
        header("usr/x", size=1) + block(b"x\n" + SECRET.encode()),
        header("usr/x", type=b"Z", size=40) + block(SECRET.encode()),
    ],
)
def test_bytes_that_belong_to_no_file_are_read(tmp_path: Path, raw: bytes) -> None:
    assert "secret-huggingface" in rules_of(lowest(raw).audit(tmp_path))


@pytest.mark.promise("audit")
def test_the_name_of_an_attribute_is_read(tmp_path: Path) -> None:
    made = Made.clean()
    made.layers[0]["app/x"] = File(b"x", pax={f"SCHILY.xattr.user.{SECRET}": "1"})
    assert "secret-huggingface" in rules_of(made.audit(tmp_path))


# --- names that lead elsewhere ----------------------------------------------------------------------------


@pytest.mark.promise("audit")
@pytest.mark.parametrize(
    "links", [{"m": "models"}, {"a/m": "/b", "b": "./models/../models"}, {"m": "models/sub"}]
)
def test_what_is_written_through_a_link_into_the_weights_is_found(
    tmp_path: Path, links: dict[str, str]
) -> None:
    made = Made.clean()
    made.layers[0] |= {path: File(type=tarfile.SYMTYPE, target=to) for path, to in links.items()}
    assert rules_of(made.audit(tmp_path / "link alone")) == {}
    made.layers[2][f"{next(iter(links))}/evil.bin"] = EVIL
    assert "weights-link" in rules_of(made.audit(tmp_path / "written through"))


def test_circles_of_links_lead_nowhere(tmp_path: Path) -> None:
    made = Made.clean()
    made.layers[0] |= {
        "a": File(type=tarfile.SYMTYPE, target="b/x"),
        "b": File(type=tarfile.SYMTYPE, target="a/y"),
    }
    made.layers[2]["a/z/file"] = b"x"
    assert rules_of(made.audit(tmp_path)) == {}


ROOT_LINE = b"app:x:0:0::/:/bin/sh\n"


@pytest.mark.promise("audit")
@pytest.mark.parametrize(
    "put",
    [
        {"etc/passwd": File(type=tarfile.SYMTYPE, target="../x/passwd")},
        {"etc/passwd": File(type=tarfile.LNKTYPE, target="x/passwd")},
        {"etc": File(type=tarfile.SYMTYPE, target="x")},
        {"etc/passwd": File(ROOT_LINE + b"#" * (2 << 20))},
        {"etc/passwd": File(b"app:x:0\napp:x:1000:1000::/:/bin/sh\n")},
        {"etc/passwd": File("#\u2028app:x:1000:1000::/:\n".encode() + ROOT_LINE)},
        {"etc/passwd": File(b"  " + ROOT_LINE + b"app:x:1000:1000::/:\n")},
    ],
)
def test_another_table_of_users_in_its_place_is_not_overlooked(tmp_path: Path, put: dict[str, File]) -> None:
    made = Made.clean()
    made.config["User"] = "app"
    assert rules_of(made.audit(tmp_path / "control")) == {}
    made.layers.append({"x/passwd": ROOT_LINE, **put})
    assert "root-user" in rules_of(made.audit(tmp_path / "changed"))


@pytest.mark.promise("audit")
@pytest.mark.parametrize("user", ["0", "+0", "-0", "00"])
def test_a_number_is_never_an_accounts_name(tmp_path: Path, user: str) -> None:
    made = Made.clean()
    made.config["User"] = user
    made.layers[0]["etc/passwd"] = f"{user}:x:1000:1000::/:\n".encode()
    assert "root-user" in rules_of(made.audit(tmp_path))


def test_another_manifest_in_its_place_is_not_overlooked(tmp_path: Path) -> None:
    made = Made.clean()
    made.layers.append({"modelbake/manifest.json": File(type=tarfile.SYMTYPE, target="/x")})
    assert "weights-manifest" in rules_of(made.audit(tmp_path))


@pytest.mark.promise("pickles")
def test_a_folder_of_pythons_among_the_weights_excuses_no_pickle(tmp_path: Path) -> None:
    made = Made.clean()
    made.layers[1]["models/lib/python3.11/x"] = File(GLOBAL, 0o444)
    assert "pickle-content" in rules_of(made.audit(tmp_path))


# --- documents --------------------------------------------------------------------------------------------


@pytest.mark.promise("audit")
@pytest.mark.parametrize("key", ["user", "USER", "u\u017fer", "ENV"])
def test_another_spelling_of_a_key_is_not_overlooked(tmp_path: Path, key: str) -> None:
    made = Made.clean()
    made.config[key] = "0"
    assert "unreadable" in rules_of(made.audit(tmp_path))


def test_labels_have_any_spelling(tmp_path: Path) -> None:
    made = Made.clean()
    made.config["Labels"] |= {"user": "x", "env": "prod", "User": "y"}
    assert rules_of(made.audit(tmp_path)) == {}


@pytest.mark.promise("audit")
@pytest.mark.parametrize("more", ['"layers": []', '"Layers": []', '"LAYERS": []'])
def test_a_manifest_that_says_something_twice_is_refused(more: str) -> None:
    with pytest.raises(RegistryError, match="readers take differently"):
        Manifest.of(MANIFEST, f'{{"layers": [], {more}}}'.encode())


@pytest.mark.parametrize("size", ["Infinity", "1e999", "NaN", '"x"', "[]"])
def test_a_manifest_of_weights_with_any_size_is_no_traceback(tmp_path: Path, size: str) -> None:
    made = Made.clean()
    raw = f'{{"files": [{{"path": "a", "size": {size}, "sha256": "b"}}]}}'
    made.layers[2]["modelbake/manifest.json"] = raw.encode()
    assert "weights-manifest" in rules_of(made.audit(tmp_path))


def test_a_name_that_is_no_text_goes_into_sarif(tmp_path: Path) -> None:
    made = Made.clean()
    made.layers[0]["app/\udcff"] = File(b"x", 0o666)
    json.dumps(as_sarif(made.audit(tmp_path)), ensure_ascii=False).encode()


# --- time and memory --------------------------------------------------------------------------------------


def content_rules(data: bytes) -> set[str]:
    content = Content(Canaries())
    content.feed(data)
    return {hit.rule for hit in content.close()}


def test_xz_that_would_fill_the_memory_is_not_unpacked() -> None:
    big = lzma.compress(b"x", filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}])
    assert content_rules(big) == {"unreadable"}
    assert content_rules(lzma.compress(b"x", preset=9)) == set()
    with pytest.raises(lzma.LZMAError):
        unpacked(io.BufferedReader(io.BytesIO(big))).read()


def test_layers_of_xz_are_read_part_by_part() -> None:
    parts = lzma.compress(b"a" * 3_000_000) + bytes(8) + lzma.compress(b"b")
    assert unpacked(io.BufferedReader(io.BytesIO(parts))).read() == b"a" * 3_000_000 + b"b"
    with pytest.raises(EOFError):
        unpacked(io.BufferedReader(io.BytesIO(parts[:-9]))).read()


def test_many_whiteouts_are_asked_as_each_of_them_would_be() -> None:
    tops = ("a", "b/", "c/d", "/")
    for path in ("a", "a/x", "ab", "b", "b/x/y", "c", "c/d", "c/d/e/f", "c/de"):
        for some in ((), tops[:1], tops[1:2], tops[2:3], tops[:3], tops):
            assert is_hidden(path, frozenset(some)) == any(is_below(path, top) for top in some)


def test_no_secret_is_repeated_as_the_name_of_what_is_packed(tmp_path: Path) -> None:
    made = Made.clean()
    secret = SECRET
    made.layers[0]["app/x.zip"] = zipped(f"{secret}.pkl", GLOBAL)
    assert not any(secret in each.message for each in made.audit(tmp_path).found)
