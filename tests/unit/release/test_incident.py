"""What holds it, where channels go back to, what to do: over images in a registry in memory, and alone."""

from __future__ import annotations

import base64
import gzip
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from modelbake.cli import run
from modelbake.credentials import Secret
from modelbake.errors import PolicyRefused, UsageError
from modelbake.manifest import Manifest
from modelbake.output import Output
from modelbake.referrers import Document, attach
from modelbake.release.channels import Channel, read_channel
from modelbake.release.documents import SBOM_TYPE
from modelbake.release.entries import ChannelEntry
from modelbake.release.holdings import Holdings, gather, read_holdings
from modelbake.release.incident import Incident, as_document, as_table, next_version, steps, target_of
from modelbake.release.moving import Mover
from modelbake.release.quarantine import (
    QUARANTINE_TYPE,
    Quarantine,
    decode,
    encode,
    put_into_quarantine,
    quarantines,
)
from modelbake.release.questions import (
    CommitQuestion,
    FileQuestion,
    PackageQuestion,
    Question,
    TokenQuestion,
    parse_commit,
    parse_file,
    parse_package,
)
from modelbake.release.records import Kind, Record
from modelbake.release.searching import Answer, Searcher, together
from modelbake.stream.repository import RegistryRepository
from tests.servers.upload_registry import PASSWORD, USER, UploadRegistry
from tests.unit.release.conftest import Open
from tests.unit.release.made import BAKED, layer, put_image, put_index, usual_layers

COMMIT = str(BAKED["commit"])
TOKEN = "canary-" + "walnut-teapot-" * 2
LABELS = {"io.modelbake.commit": COMMIT}


def a(letter: str) -> str:
    return "sha256:" + letter * 64


def quiet() -> Output:
    return Output(stdout=io.StringIO(), stderr=io.StringIO())


def asked(repository: RegistryRepository, question: Question) -> dict[str, Answer]:
    """The answer about each image of a repository, by what the image is called."""
    held = read_holdings(repository, "minilm", ("staging", "production"), quiet())
    searcher = Searcher(question, quiet())
    return {image.name: searcher.answer(repository, held, image) for image in held.images}


# --- questions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_commit, "abc"),
        (parse_commit, "main"),
        (parse_commit, ""),
        (parse_file, "ab" * 31),
        (parse_file, "sha1:" + "ab" * 32),
        (parse_package, "torch>=2"),
        (parse_package, ""),
        (parse_package, "torch=="),
        (parse_package, "--json"),
    ],
)
def test_a_question_that_is_none_is_refused(parse: object, text: str) -> None:
    assert callable(parse)
    with pytest.raises(UsageError, match="expected"):
        parse(text)


def test_a_token_is_in_no_words() -> None:
    question = TokenQuestion(Secret(TOKEN.encode()), "leaked.txt")
    assert TOKEN not in question.words + repr(question)


def test_packages_are_compared_as_indexes_and_distributions_do() -> None:
    assert parse_package("My.Package").matches("pypi", "my-package", "1")
    assert parse_package("torch==2.0+cpu") == PackageQuestion("torch", "2.0+cpu")
    assert not parse_package("torch==2.0").matches("pypi", "torch", "2.0+cpu")
    assert not parse_package("My.Package").matches("deb", "my-package", "1")
    sbom = json.dumps({"components": [{"purl": "pkg:deb/debian/libc6@2.36-9%2Bdeb12u7?arch=amd64"}, {}]})
    assert parse_package("libc6").in_sbom(sbom.encode()) == ["libc6 2.36-9+deb12u7"]
    assert parse_package("libc").in_sbom(sbom.encode()) == []
    assert parse_package("libc6").in_sbom(b'{"components": 3}') is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "one of the arguments --commit --file-sha256 --package --token-file is required"),
        (["--commit", "abcdef0", "--package", "x"], "not allowed with"),
        (["--commit", "main"], "7 to 64 hexadecimal digits"),
        (["--token-file", "absent"], "cannot read absent (No such file or directory)"),
        (["--token-file", "short"], "holds no secret of 8 to 4096 bytes"),
        (["--token-file", "/dev/null"], "holds no secret"),
        (["--package", "x", "nobody"], "no model 'nobody'"),
    ],
)
def test_bad_input_is_said_before_anything_is_asked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short").write_text("abc\n")
    model = {"version": "1.0.0", "source": "hf://acme/minilm", "runtime": "weights"}
    document = {"registry": "127.0.0.1:1/ml", "models": {"minilm": model}}
    Path("models.yaml").write_text(json.dumps(document))
    assert run(["incident", *arguments]) == 2
    said = capsys.readouterr()
    assert words in said.err.replace('"nobody"', "'nobody'") and said.out == ""


# --- what holds it ----------------------------------------------------------------------------------------


@pytest.mark.promise("quarantine")
def test_a_commit_is_found_by_the_label(server: UploadRegistry, open_repository: Open) -> None:
    repository = open_repository(server, "ml/minilm")
    put_image(repository, "1.0.0", labels=LABELS)
    put_image(repository, "1.1.0", labels={"io.modelbake.commit": "f" * 40}, note="other")
    put_image(repository, "2.0.0", note="foreign")
    found = asked(repository, CommitQuestion(COMMIT[:12]))
    assert {name: answer.state for name, answer in found.items()} == {
        "1.0.0": "affected",
        "1.1.0": "clean",
        "2.0.0": "unknown",
    }
    assert found["1.0.0"].found == ("the weights' commit",)


@pytest.mark.promise("quarantine")
def test_a_file_is_found_in_the_baked_manifest(server: UploadRegistry, open_repository: Open) -> None:
    repository = open_repository(server, "ml/minilm")
    put_image(repository, "1.0.0", layers=usual_layers(), labels=LABELS)
    put_image(repository, "1.1.0")
    found = asked(repository, FileQuestion("ef" * 32))
    assert found["1.0.0"] == Answer("affected", ("/models/model.safetensors",), "the manifest in the image")
    assert found["1.1.0"].state == "unknown", "no manifest: it cannot be told, and is not left out"
    assert asked(repository, FileQuestion("00" * 32))["1.0.0"].state == "clean"


def test_no_layer_of_weights_is_read_for_a_file(plain: UploadRegistry, open_repository: Open) -> None:
    repository = open_repository(plain, "ml/minilm")
    put_image(repository, "1.0.0", layers=usual_layers())
    before = plain.count("blob")
    asked(repository, FileQuestion("ef" * 32))
    assert plain.count("blob") - before == 2, "the configuration, and the top layer"


@pytest.mark.promise("quarantine")
def test_a_package_is_found_by_the_sbom_and_else_in_the_layers(
    server: UploadRegistry, open_repository: Open
) -> None:
    repository = open_repository(server, "ml/minilm")
    put_image(repository, "1.0.0", layers=usual_layers())
    image = put_image(repository, "1.1.0", layers=usual_layers(), note="with an SBOM")
    component = {"hashes": [{"content": image.digest.removeprefix("sha256:")}]}
    document = {
        "bomFormat": "CycloneDX",
        "metadata": {"component": component},
        "components": [{"purl": "pkg:pypi/torch@2.0%2Bcpu"}],
    }
    hiding = {**document, "components": []}
    for each in (hiding, document, {**hiding, "serialNumber": "x"}):  # what one lists, no other one hides
        attach(repository, image, Document(json.dumps(each).encode(), SBOM_TYPE, "x.cdx.json"))
    put_image(repository, "2.0.0")
    found = asked(repository, PackageQuestion("torch"))
    assert (found["1.0.0"].found, found["1.0.0"].by) == (("torch 2.0+cpu",), "layers")
    assert (found["1.1.0"].found, found["1.1.0"].by) == (("torch 2.0+cpu",), "SBOM")
    assert found["2.0.0"].state == "unknown"
    assert asked(repository, PackageQuestion("libc6"))["1.0.0"].state == "affected"
    for other in (PackageQuestion("torch", "2.1"), PackageQuestion("old"), PackageQuestion("gone")):
        assert asked(repository, other)["1.0.0"].state == "clean", "another version, deleted, not installed"


@pytest.mark.promise("quarantine")
@pytest.mark.parametrize(
    ("layers", "labels", "place"),
    [
        ([layer({"etc/x": f"a={TOKEN}\n"})], {}, "layer 1: etc/x"),
        ([layer({"x": "y"}), layer({"b": base64.b64encode(b"ab" + TOKEN.encode())})], {}, "layer 2: b"),
        ([layer({"x": "y"})], {"note": TOKEN}, "configuration"),
        ([layer({"x": TOKEN}), layer({".wh.x": ""})], {}, "layer 1: x"),
        ([layer({"x.gz": gzip.compress(b"a" * 99 + TOKEN.encode())})], {}, "layer 1: x.gz"),
        ([gzip.compress(layer({"x": TOKEN}))], {}, "layer 1: x"),
    ],
    ids=["file", "base64", "label", "deleted later", "packed", "packed layer"],
)
def test_a_token_is_found_wherever_it_is(
    plain: UploadRegistry,
    open_repository: Open,
    layers: Sequence[bytes],
    labels: Mapping[str, str],
    place: str,
) -> None:
    repository = open_repository(plain, "ml/minilm")
    put_image(repository, "1.0.0", layers=layers, labels=labels)
    put_image(repository, "1.1.0")
    found = asked(repository, TokenQuestion(Secret(TOKEN.encode()), "f"))
    assert found["1.0.0"].found == (place,)
    assert found["1.1.0"].state == "clean"


def test_a_layer_that_images_share_is_searched_once(plain: UploadRegistry, open_repository: Open) -> None:
    repository = open_repository(plain, "ml/minilm")
    shared = layer({"models/x": "z" * 1000})
    for version in ("1.0.0", "1.0.1", "1.0.2"):
        put_image(repository, version, layers=[shared], note=version)
    before = plain.count("blob")
    asked(repository, TokenQuestion(Secret(TOKEN.encode()), "f"))
    assert plain.count("blob") - before == 4, "three configurations, one layer"


@pytest.mark.promise("quarantine")
def test_what_cannot_be_read_is_unknown(plain: UploadRegistry, open_repository: Open) -> None:
    repository = open_repository(plain, "ml/minilm")
    put_image(repository, "1.0.0", layers=[layer({"x": "y" * 2000})[:1100]])
    (answer,) = asked(repository, TokenQuestion(Secret(TOKEN.encode()), "f")).values()
    assert answer.state == "unknown" and "cannot be read" in answer.found[0]


@pytest.mark.promise("quarantine")
def test_every_platform_of_an_index_counts(plain: UploadRegistry, open_repository: Open) -> None:
    repository = open_repository(plain, "ml/minilm")
    images = [put_image(repository, labels={"io.modelbake.commit": each}) for each in (COMMIT, "f" * 40)]
    put_index(repository, "1.0.0", *images)
    (answer,) = asked(repository, CommitQuestion(COMMIT)).values()
    assert answer.state == "affected"
    clean, affected, unknown = Answer("clean"), Answer("affected", ("x",)), Answer("unknown", ("why",))
    assert together([clean, unknown]).state == "unknown"
    assert together([unknown, affected, clean]) == affected
    assert together([]).state == "unknown"


# --- what leads to it -------------------------------------------------------------------------------------


def record(
    channel: str, number: int, version: str, digest: str, previous: str | None, kind: Kind = "promote"
) -> Record:
    date = f"2026-01-0{number}T00:00:00Z"
    return Record(channel, number, kind, "minilm", version, digest, previous, date, "me", "d" * 40)


def production(*versions: str, kinds: Mapping[int, Kind] | None = None, at: str | None = None) -> Channel:
    """A channel that went through versions, of which each is the image of its last digit."""
    records, previous = [], None
    for number, version in enumerate(versions, start=1):
        digest = a(version[-1])
        kind = (kinds or {}).get(number, "promote")
        records.append(record("production", number, version, digest, previous, kind))
        previous = digest
    return read_channel("production", at or previous, [each.tag for each in records], records)


def an_incident(channel: Channel, states: Mapping[str, str], quarantined: Sequence[str] = ()) -> Incident:
    """`states`: by the letter of a digest; each is released as 1.0.LETTER."""
    tags = {a(letter): [f"1.0.{letter}"] for letter in states}
    held = Holdings("minilm", gather(tags, [channel]), (channel,))
    places = {"affected": ("the weights' commit",), "unknown": ("no label",), "clean": ()}
    answers = {
        ("minilm", a(letter)): Answer(state, places[state])  # type: ignore[arg-type]
        for letter, state in states.items()
    }
    marked = {"minilm": frozenset(a(letter) for letter in quarantined)}
    return Incident(CommitQuestion(COMMIT), (held,), answers, marked)


def test_all_names_of_an_image_are_gathered() -> None:
    channel = production("1.0.1", "1.0.2", "1.0.1")
    tags = {a("1"): ["1.0.1", "1.0", "1", "candidate-x", "mine"], a("2"): ["1.0.2"]}
    newest, first = gather(tags, [channel])
    assert (newest.versions, newest.records, newest.channels) == (("1.0.2",), ("production-0002",), ())
    assert first.aliases == ("1", "1.0") and first.channels == ("production",)
    assert first.records == ("production-0003", "production-0001")
    assert (first.candidates, first.others) == (("candidate-x",), ("mine",))


@pytest.mark.promise("quarantine")
def test_an_image_without_a_version_is_found_by_its_record(
    plain: UploadRegistry, open_repository: Open
) -> None:
    repository = open_repository(plain, "ml/minilm")
    put_image(repository, "1.0.0", labels=LABELS)
    mover = Mover(repository, "minilm", "production", quiet(), "me")
    mover.promote("1.0.0", ChannelEntry())
    del plain.repositories[repository.path].tags["1.0.0"]
    held = read_holdings(repository, "minilm", ("production",), quiet())
    assert [each.name for each in held.images] == ["production-0001"]
    assert asked(repository, CommitQuestion(COMMIT))["production-0001"].state == "affected"


# --- where to go, and what to do --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channel", "states", "quarantined", "target"),
    [
        (production("1.0.1", "1.0.2"), {"1": "clean", "2": "affected"}, "", "1.0.1"),
        (
            production("1.0.1", "1.0.2", "1.0.3"),
            {"1": "clean", "2": "affected", "3": "affected"},
            "",
            "1.0.1",
        ),
        (production("1.0.1", "1.0.2", "1.0.3"), {"1": "clean", "2": "unknown", "3": "affected"}, "", "1.0.1"),
        (production("1.0.1", "1.0.2", "1.0.3"), {"1": "clean", "2": "clean", "3": "affected"}, "2", "1.0.1"),
        (production("1.0.1", "1.0.2"), {"1": "affected", "2": "affected"}, "", None),
        (production("1.0.2"), {"2": "affected"}, "", None),
        (
            production("1.0.1", "1.0.2", "1.0.3", "1.0.2", kinds={4: "rollback"}),
            {"1": "clean", "2": "affected", "3": "clean"},
            "",
            "1.0.1",
        ),
        (
            production("1.0.1", "1.0.2", at=a("9")),
            {"1": "affected", "2": "clean", "9": "affected"},
            "",
            "1.0.2",
        ),
    ],
    ids=[
        "before",
        "two back",
        "unknown is no place",
        "in quarantine",
        "none",
        "the first",
        "rolled back from",
        "moved by hand",
    ],
)
def test_a_channel_goes_back_to_the_last_one_that_is_known_to_be_free(
    channel: Channel, states: Mapping[str, str], quarantined: str, target: str | None
) -> None:
    (escape,) = an_incident(channel, states, quarantined).escapes
    assert (escape.target.version if escape.target else None) == target
    assert escape.by_hand == (channel.digest == a("9"))


def test_a_channel_that_names_something_else_is_left_alone() -> None:
    assert an_incident(production("1.0.1", "1.0.2"), {"1": "affected", "2": "clean"}).escapes == []
    empty = read_channel("production", None, [], [])
    assert target_of(empty, lambda digest: True) is None


def test_the_steps_are_those_of_the_case() -> None:
    incident = an_incident(production("1.0.1", "1.0.2"), {"1": "clean", "2": "affected", "3": "unknown"})
    told = steps(incident)
    assert [line.split()[1] for line in told] == [
        "quarantine:",
        "roll",
        "revoke:",
        "rebuild:",
        "hosts:",
        "look",
    ]
    assert f"--commit {COMMIT} minilm --quarantine" in told[0]
    assert "`build.py rollback minilm --channel production --to 1.0.1`" in told[1]
    assert "`version: 1.0.4` of minilm" in told[3] and "promote" in told[3]
    assert "1.0.3" in told[5] and "no label" in told[5]
    done = steps(incident, quarantined=True, moved=[("minilm", "production")])
    assert [line.split()[1] for line in done] == ["revoke:", "rebuild:", "hosts:", "look"]
    failed = steps(incident, quarantined=True)
    assert "rollback" in failed[0], "what could not be moved is still to be done"
    by_hand = an_incident(production("1.0.1", at=a("9")), {"1": "clean", "9": "affected"})
    assert f"--over {a('9')}" in steps(by_hand)[1]
    nowhere = steps(an_incident(production("1.0.2"), {"2": "affected"}))
    assert "stop its servers" in nowhere[1]
    assert steps(an_incident(production("1.0.1"), {"1": "clean"})) == []


def test_each_question_has_a_step_of_its_own() -> None:
    incident = an_incident(production("1.0.1", "1.0.2"), {"1": "clean", "2": "affected"})
    for question, words in (
        (FileQuestion("ab" * 32), "exclude:"),
        (PackageQuestion("torch", "2.0"), "requirements.in"),
        (TokenQuestion(Secret(TOKEN.encode()), "a file"), "withdraw the token"),
    ):
        told = "\n".join(steps(replace(incident, question=question)))
        assert words in told and TOKEN not in told
    assert "--token-file 'a file' minilm" in told


def test_the_table_and_the_document_say_the_same() -> None:
    incident = an_incident(
        production("1.0.1", "1.0.2"), {"1": "clean", "2": "affected", "3": "unknown"}, ["2"]
    )
    lines = as_table(incident)
    assert len(lines) == 3 and "1.0.1" not in "".join(lines)
    assert "affected, quarantined" in lines[1] and "2026-01-02T00:00:00Z" in lines[1]
    document = as_document(incident, ["1. x"], {("minilm", "production"): "1.0.1"})
    assert [each["state"] for each in document["images"]] == ["affected", "unknown", "clean"]
    assert document["channels"][0]["moved_to"] == "1.0.1" and document["steps"] == ["1. x"]
    assert json.loads(json.dumps(document)) == document
    assert as_table(an_incident(production("1.0.1"), {"1": "clean"})) == []


@pytest.mark.parametrize(
    ("released", "version"),
    [([], "1.0.0"), (["1.2.3", "1.10.0"], "1.10.1"), (["2.0.0-rc.1", "1.0.0"], "2.0.0")],
)
def test_the_next_version(released: Sequence[str], version: str) -> None:
    assert next_version(released) == version


# --- quarantine -------------------------------------------------------------------------------------------


@pytest.mark.promise("quarantine")
def test_what_is_in_quarantine_is_neither_promoted_nor_rolled_back_to(
    server: UploadRegistry, open_repository: Open
) -> None:
    repository = open_repository(server, "ml/minilm")
    good, bad = put_image(repository, "1.0.0"), put_image(repository, "1.1.0", note="bad")
    mover = Mover(repository, "minilm", "production", quiet(), "me")
    mover.promote("1.1.0", ChannelEntry())
    mover.promote("1.0.0", ChannelEntry())  # control: both can be
    assert put_into_quarantine(repository, bad, Quarantine("holds it", "2026-01-01T00:00:00Z", "me"))
    tags = dict(plain_tags(server, repository))
    moves: list[Callable[[], str]] = [
        lambda: mover.promote("1.1.0", ChannelEntry()),
        lambda: mover.rollback(),
        lambda: mover.rollback("1.1.0"),
    ]
    for move in moves:
        with pytest.raises(PolicyRefused, match="in quarantine since 2026-01-01T00:00:00Z: holds it"):
            move()
    assert plain_tags(server, repository) == tags, "nothing was written"
    assert quarantines(repository, good) == []
    assert not put_into_quarantine(repository, bad, Quarantine("holds it", "2026-02-02T00:00:00Z", "you"))
    assert put_into_quarantine(repository, bad, Quarantine("holds more", "2026-02-02T00:00:00Z", "you"))
    assert [each.reason for each in quarantines(repository, bad)] == ["holds it", "holds more"]


@pytest.mark.control("quarantine")
def test_what_is_in_no_quarantine_is_promoted_and_rolled_back_to(
    server: UploadRegistry, open_repository: Open
) -> None:
    repository = open_repository(server, "ml/minilm")
    images = [put_image(repository, version, note=version) for version in ("1.0.0", "1.1.0")]
    mover = Mover(repository, "minilm", "production", quiet(), "me")
    put_into_quarantine(repository, put_image(repository, "1.2.0", note="another"), Quarantine("holds it"))
    digests = [mover.promote("1.0.0", ChannelEntry()), mover.promote("1.1.0", ChannelEntry())]
    assert digests == [image.digest for image in images]
    assert mover.rollback() == images[0].digest


def plain_tags(server: UploadRegistry, repository: RegistryRepository) -> dict[str, Manifest | None]:
    """The tags that are no list of referrers, with what they name."""
    names = [tag for tag in repository.registry.tags(repository.path) if not tag.startswith("sha256-")]
    return {name: repository.manifest(name) for name in names}


@pytest.mark.promise("quarantine")
def test_the_verb_moves_what_it_can_and_says_what_it_cannot(
    plain: UploadRegistry,
    open_repository: Open,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for model, versions in (("first", ("1.0.0",)), ("second", ("1.0.0", "1.1.0"))):
        repository = open_repository(plain, f"ml/{model}")
        for version in versions:
            bad = version == versions[-1]
            put_image(repository, version, labels=LABELS if bad else {"io.modelbake.commit": "f" * 40})
            Mover(repository, model, "production", quiet(), "me").promote(version, ChannelEntry())
    monkeypatch.chdir(tmp_path)
    for name, value in (("", plain.host), ("_USER", USER), ("_PASSWORD", PASSWORD)):
        monkeypatch.setenv(f"MODELBAKE_REGISTRY{name}", value)
    entry = {"version": "1.0.0", "source": "hf://acme/minilm", "runtime": "weights"}
    document = {"registry": f"{plain.host}/ml", "models": {"first": entry, "second": entry, "third": entry}}
    Path("models.yaml").write_text(json.dumps(document))

    assert run(["incident", "--commit", COMMIT]) == 0
    before = capsys.readouterr().out
    assert "--quarantine" in before and "--channel production --to 1.0.0" in before
    assert run(["incident", "--commit", COMMIT, "--quarantine", "--json"]) == 72
    said = capsys.readouterr()
    assert "first: production stays at 1.0.0: no earlier version" in said.err
    found = json.loads(said.out)
    moved = {each["model"]: each["moved_to"] for each in found["channels"]}
    assert moved == {"first": None, "second": "1.0.0"}
    tags = plain.repositories["ml/second"].tags
    assert tags["production"] == tags["1.0.0"]
    assert run(["incident", "--commit", COMMIT, "second", "--json"]) == 0
    (image,) = (each for each in json.loads(capsys.readouterr().out)["images"] if each["state"] == "affected")
    assert image["quarantined"] and image["channels"] == []
    assert run(["channels", "first"]) == 0
    assert "production is in quarantine since" in capsys.readouterr().err
    plain.trouble("tags", status=403, times=99)
    assert run(["incident", "--commit", COMMIT, "second"]) == 62, "the question could not be answered"


@pytest.mark.promise("quarantine")
def test_a_document_that_cannot_be_read_is_a_quarantine_all_the_same(
    server: UploadRegistry, open_repository: Open
) -> None:
    repository = open_repository(server, "ml/minilm")
    image = put_image(repository, "1.0.0")
    attach(repository, image, Document(b"\xff{", QUARANTINE_TYPE, "quarantine.json"))
    (found,) = quarantines(repository, image)
    assert "does not say why" in found.words


def test_a_quarantine_is_read_as_it_was_written() -> None:
    quarantine = Quarantine("holds commit abc", "2026-01-01T00:00:00Z", "me@host")
    assert decode(encode(quarantine)) == quarantine
    assert decode(encode(Quarantine("a\x1b[31m\nb"))).reason == "a [31m b"
