"""Files made to hurt a parser: it says what is wrong with them, in bounded time and memory.

Every case runs in a process of its own that is killed when it uses more than `limited` allows.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelbake import errors
from modelbake.errors import ModelbakeError
from modelbake.goldens import Golden, Goldens, encode_goldens
from modelbake.lockfile import MAX_FILE_BYTES
from modelbake.report import encode_report
from modelbake.yamlfile import LARGEST_FILE
from tests.conftest import Tally
from tests.promises import cases
from tests.unit import reporting
from tests.unit.limited import Limited, limited
from tests.unit.test_injection import MODELS, RUNTIME, Case
from tests.unit.whole_documents import as_yaml

ENDINGS = {
    error.exit_code
    for error in vars(errors).values()
    if isinstance(error, type) and issubclass(error, ModelbakeError) and error is not ModelbakeError
}
_FULL = LARGEST_FILE - 2000
_MODEL = 'registry: localhost:5000\nmodels:\n m:\n  version: "1.0.0"\n  source: hf://a/b\n'
_MODEL += "  runtime: embeddings\n"
_CHECKS = f"{_MODEL}  smoke:\n   checks:\n"
_EXPECT = f"{_CHECKS}    - get: /a\n      expect:\n"


def much(unit: str, size: int = _FULL) -> str:
    return (unit * (size // len(unit) + 1))[:size]


def many(line: str, size: int = _FULL) -> str:
    """Return numbered lines, all different."""
    lines, left = [], size
    for number in itertools.count():
        lines.append(line.replace("N", str(number)))
        left -= len(lines[-1])
        if left < 0:
            return "".join(lines[:-1])
    raise AssertionError


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"b{number}: &b{number} [{', '.join(['*' + (f'b{number - 1}' if number else 'a')] * 9)}]\n"
    for number in range(40)
)
# The first ones are tried always: each is of another kind.
YAML: dict[str, str | bytes] = {
    "aliases that double": LAUGHS,
    "an alias of itself": "a: &a [*a]\n",
    "deep lists": much("["),
    "deep mappings": much("{a: "),
    "checks with different names": _CHECKS + many("    - {get: /a, name: aN}\n"),
    "100,000 digits": f"registry: {'9' * 100_000}",
    "a number beyond all numbers": "registry: 1e999",
    "UTF-16": "registry: a\n".encode("utf-16"),
    "no UTF-8": b"registry: \xff\n",
    # The others only where all are tried.
    "goldens with different names": _EXPECT + many("       aN: {golden: gN}\n"),
    "twice the same key": much("a: 1\n"),
    "unknown keys of a model": _MODEL + many("  sourcN: 1\n"),
    "deep items": much("- "),
    "deep keys": much("? "),
    "deep blocks": "".join(f"{' ' * depth}a:\n" for depth in range(1400)),
    "anchors": many("aN: &aN 1\n"),
    "aliases": "x: &x 1\n" + many("aN: *x\n"),
    "empty lists": f"[{much('[],')}",
    "unknown keys": many("aN: 1\n"),
    "models without anything": "registry: localhost:5000\nmodels:\n" + many(" mN:\n"),
    "models with a wrong key": "registry: localhost:5000\nmodels:\n" + many(" mN: {a: 1}\n"),
    "models with a wrong name": "registry: localhost:5000\nmodels:\n" + many(" MN: {a: 1}\n"),
    "models of unknown runtimes": "registry: localhost:5000\nmodels:\n"
    + many(' mN: {version: "1.0.0", source: hf://a/b, runtime: rN}\n'),
    "wrong labels": f"{_MODEL}  labels:\n" + many("   aN: 1\n"),
    "labels": f"{_MODEL}  labels:\n" + many("   aN: x\n"),
    "patterns": f"{_MODEL}  include:\n" + many("   - aN\n"),
    "equal checks": _CHECKS + much("    - get: /a\n"),
    "expectations": _EXPECT + many("        aN: 1\n"),
    "a costly regular expression": f"{_CHECKS}    - get: /a\n      expect: {{a: {{matches: '"
    + "(?:" * 30 + "a{0,65535}" + "){0,9}" * 30 + "'}}\n",
    "words with two meanings": many("aN: yes\n"),
    "one long text": "a: " + much("x"),
    "escapes without an end": 'a: "' + much("\\u0041"),
    "tags": much("!!python/object/apply:os.system [x]\n"),
    "documents": much("---\n"),
    "directives": much("%A b\n"),
    "a line of colons": "a: " + much("a: "),
    "a sexagesimal number": f"registry: {'1:' * 50_000}",
    "a hexadecimal number": f"registry: 0x{'f' * 100_000}",
    "dots": f"registry: {much('a.')}",
    "dashes": f"registry: {much('a-')}",
    "slashes": f"registry: {much('a/')}",
    "a hub of schemes": f'defaults: {{hub: "{much("://")}"}}',
    "UTF-32": "registry: a\n".encode("utf-32"),
    "a byte order mark and nothing": b"\xef\xbb\xbf",
    "half a character": b"registry: \xed\xa0\x80\n",
    "zeros": bytes(LARGEST_FILE),
    "all bytes": bytes(range(256)) * 4000,
    "too large": b"#" * (LARGEST_FILE + 1),
}  # fmt: skip
QUICK_YAML = 9

_LOCK = '{"schema": 1, "models": {"minilm": {"source": "hf://a/b", "hub": "http://a", "revision": "a", '
_LOCK += f'"commit": "{"a" * 40}", "include": [], "exclude": [], "digest": "", "files": ['
JSON: dict[str, str | bytes] = {
    "deep lists": "[" * 1_000_000,
    "deep mappings": '{"a":' * 1_000_000,
    "twice the same key": "{" + ", ".join(f'"a{number % 9000}": 1' for number in range(100_000)) + "}",
    "100,000 digits": '{"schema": ' + "9" * 100_000 + "}",
    "a number beyond all numbers": '{"schema": 1e999}',
    "no number": '{"schema": NaN}',
    "UTF-16": '{"schema": 1}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"schema": 1}',
    "half a character": b'{"schema": "\xed\xa0\x80"}',
    "no UTF-8": b'{"schema": "\xff"}',
    "an escaped half character": '{"\\ud800": 1}',
    "no end": '{"a": "' + "\\" * 99_999,
    "zeros": bytes(100_000),
    "nothing": b"",
}  # fmt: skip
LOCKS: dict[str, str | bytes] = {
    "empty files": _LOCK + "{}, " * 20_000 + "{}]}}}",
    "files of one name": _LOCK
    + ", ".join([f'{{"path": "a", "size": 1, "sha256": "{"a" * 64}"}}'] * 100_000) + "]}}}",
    "files in files": _LOCK
    + ", ".join(
        f'{{"path": "{"a/" * 400}{number}", "size": 1, "sha256": "{"a" * 64}"}}' for number in range(20_000)
    ) + "]}}}",
    "models": '{"schema": 1, "models": {' + ", ".join(f'"m{number}": {{}}' for number in range(9_999)) + "}}",
    "as many empty objects as fit": "[" + "{}," * (MAX_FILE_BYTES // 3 - 1) + "{}]",
    "too large": b" " * (MAX_FILE_BYTES + 1),
}  # fmt: skip


@pytest.fixture(scope="module")
def forks() -> Iterator[Limited]:
    with limited() as started:
        yield started


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder in which everything is right, with a report and goldens."""
    case = Case(tmp_path / "case")
    case.folder.mkdir()
    case.write()
    (case.folder / "reports/minilm").mkdir(parents=True)
    (case.folder / "reports/minilm/1.0.0.json").write_bytes(encode_report(reporting.report()))
    (case.folder / "goldens").mkdir()
    goldens = Goldens({"hello": Golden([0.5, 1], f"sha256:{'a' * 64}")}, f"sha256:{'b' * 64}", "cpu")
    (case.folder / "goldens/minilm.json").write_bytes(encode_goldens("minilm", goldens))
    return case.folder


# A file, and the command that reads it.
READ: dict[str, tuple[str, ...]] = {
    "models.yaml": ("check", "--images", "images"),
    "images/embeddings/runtime.yaml": ("check", "--images", "images"),
    "images/embeddings/requirements.txt": ("check", "--images", "images"),
    "models.lock": ("lock", "--check", "--offline", "--images", "images"),
    "reports/minilm/1.0.0.json": ("report", "minilm", "1.0.0"),
    "goldens/minilm.json": ("goldens", "minilm"),
}


def judge(forks: Limited, folder: Path, name: str, content: str | bytes, what: str = "") -> int:
    """Put a file there, read it, and fail where that costs too much or is no proper error."""
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    done = forks.run(folder, *READ[name])
    assert done.status >= 0, f"{what or content[:2000]!r}: killed by signal {-done.status}, {done}"
    assert "Traceback" not in done.stderr
    assert done.status == 0 or done.status in ENDINGS, done
    assert len(done.stderr) < 8 * LARGEST_FILE
    return done.status


def test_the_good_files_are_read(forks: Limited, folder: Path) -> None:
    for name in READ:
        assert judge(forks, folder, name, (folder / name).read_bytes()) == 0, name


@pytest.mark.promise("parsers")
@pytest.mark.parametrize("name", ["models.yaml", "images/embeddings/runtime.yaml"])
def test_yaml_made_to_hurt(forks: Limited, folder: Path, tally: Tally, name: str) -> None:
    for what, content in list(YAML.items())[: cases(QUICK_YAML, len(YAML))]:
        tally.count()
        judge(forks, folder, name, content, what)


@pytest.mark.promise("parsers")
@pytest.mark.parametrize("name", ["models.lock", "reports/minilm/1.0.0.json", "goldens/minilm.json"])
def test_json_made_to_hurt(forks: Limited, folder: Path, tally: Tally, name: str) -> None:
    for what, content in JSON.items():
        tally.count()
        assert judge(forks, folder, name, content, what) in ENDINGS, what


@pytest.mark.promise("parsers")
def test_locks_made_to_hurt(forks: Limited, folder: Path, tally: Tally) -> None:
    for what, content in list(LOCKS.items())[: cases(1, len(LOCKS))]:
        tally.count()
        assert judge(forks, folder, "models.lock", content, what) == errors.LockError.exit_code, what


@pytest.mark.promise("parsers")
@pytest.mark.parametrize("name", READ)
def test_what_is_no_file_is_not_waited_for(forks: Limited, folder: Path, name: str, tally: Tally) -> None:
    def pipe(path: Path) -> None:
        os.mkfifo(path)

    def endless(path: Path) -> None:
        path.symlink_to("/dev/zero")

    def itself(path: Path) -> None:
        path.symlink_to(path)

    for make in (pipe, Path.mkdir, endless, itself):
        (folder / name).unlink(missing_ok=True)
        make(folder / name)
        tally.count()
        done = forks.run(folder, *READ[name])
        assert done.status in ENDINGS and "Traceback" not in done.stderr, done
        if (folder / name).is_dir():
            (folder / name).rmdir()


_TOKENS = (
    *(b"\n", b" ", b"\t", b"\r", b"\0", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xe2\x80\xa8"),
    *(b'"', b"'", b"\\", b"\\u", b"\\ud800", b"[", b"]", b"{", b"}", b",", b":", b": ", b"- ", b"? ", b"&a "),
    *(b"*a", b"!!x ", b"|", b"<<: ", b"#", b"%", b"@", b"---\n", b"...\n", b"~", b"null", b"true", b"yes"),
    *(b"1e999", b"-1", b"0x1", b"NaN", b"9" * 400, b"[" * 60, b"a" * 3000, b"1:30", b"2024-01-01", b"../"),
    *(b"<<<<<<< HEAD\n", b"/", b"\xc3\xa9"),
)


def mutated(content: bytes, random_: random.Random) -> bytes:
    """Return bytes that were changed in one to six places, as a slip of the hand or a bad merge does."""
    made = bytearray(content)
    for _ in range(random_.randint(1, 6)):
        at, to = sorted(random_.randrange(len(made) + 1) for _ in range(2))
        to = min(to, at + random_.choice([0, 1, 1, 4, 80, 2000]))
        match random_.randrange(5):
            case 0:
                made[at:to] = b""
            case 1:
                made[at:at] = made[at:to]
            case 2 if at < len(made):
                made[at] ^= 1 << random_.randrange(8)
            case 3:
                other = random_.randrange(len(made) + 1)
                made[at:to] = made[other : other + random_.randrange(60)]
            case _:
                made[at:to] = random_.choice(_TOKENS)
    return bytes(made)


@pytest.mark.promise("parsers")
@pytest.mark.parametrize("name", READ)
def test_changed_files(forks: Limited, folder: Path, name: str, tally: Tally) -> None:
    good = (folder / name).read_bytes()
    if name == "models.yaml":
        good = as_yaml(MODELS).replace(b', "', b',\n  "')
    if name.endswith("runtime.yaml"):
        good = as_yaml(RUNTIME).replace(b', "', b',\n  "')
    random_ = random.Random(name)
    for _ in range(cases(8, 100)):
        tally.count()
        judge(forks, folder, name, mutated(good, random_))


@pytest.mark.control("parsers")
@pytest.mark.parametrize(
    ("command", "ends"),
    [
        ("loop", lambda done: done.status == -24),  # SIGXCPU
        ("fill", lambda done: "MemoryError" in done.stderr and done.status not in ENDINGS),
        ("raise", lambda done: "Traceback" in done.stderr and done.status not in ENDINGS),
    ],
)
def test_what_costs_too_much_or_ends_in_a_traceback_is_found(
    forks: Limited, tmp_path: Path, command: str, ends: Callable[[object], bool]
) -> None:
    assert ends(forks.run(tmp_path, command, cpu_seconds=1))
