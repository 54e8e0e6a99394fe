"""Secrets of every known form are found, wherever in a stream; random bytes and weights hold none."""

from __future__ import annotations

import base64
import os
import random
from collections.abc import Collection

import pytest
from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
from detect_secrets.plugins.base import RegexBasedDetector

from modelbake.audit.content import Content
from modelbake.audit.tokens import Canaries, find_tokens
from modelbake.credentials import Secret
from modelbake.errors import UsageError
from tests.conftest import Tally
from tests.promises import cases
from tests.servers.minilm import minilm
from tests.unit.audit.secrets import LETTERS, SECRETS, word

NONE = Canaries()
CANARY = "correct-horse-" + "battery-staple-42"


def rules(data: bytes) -> set[str]:
    return {match.rule for match in find_tokens(data)}


def through(data: bytes, canaries: Canaries = NONE, step: int = 1 << 20) -> dict[str, int]:
    """Return the rules that a stream breaks, and where."""
    content = Content(canaries)
    for at in range(0, len(data), step):
        content.feed(data[at : at + step])
    return {hit.rule: hit.offset for hit in content.close()}


@pytest.mark.promise("audit")
@pytest.mark.parametrize("name", SECRETS)
def test_every_form_of_a_secret_is_found_in_text_and_among_bytes(name: str, tally: Tally) -> None:
    rule, make = SECRETS[name]
    secret = make().encode()
    noise = random.Random(name).randbytes(4000)
    for before, after in (
        (b"", b""),
        (b"token = '", b"'\n"),
        (b"x\0", b"\0y"),
        (noise + b"\0", b"\0" + noise),
    ):
        tally.count()
        assert rule in rules(before + secret + after), (before[:9], after[:9])


@pytest.mark.control("audit")
@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_that_is_cut_short_is_none(name: str) -> None:
    """Else any text would be found, and the tests above could not fail."""
    secret = SECRETS[name][1]().encode()
    assert rules(secret[: len(secret) // 3]) == set()


@pytest.mark.promise("audit")
def test_a_secret_on_the_border_of_two_pieces_is_found(tally: Tally) -> None:
    rng = random.Random(7)
    for name, (rule, make) in SECRETS.items():
        secret = make().encode()
        for _ in range(cases(1, 5)):
            tally.count()
            at = rng.choice((1, 2)) * (1 << 20) - rng.randrange(len(secret) + 40_000)
            data = bytes(at) + b"\n" + secret + b"\n" + bytes(3 << 20)
            found = through(data, step=rng.choice((1 << 20, 65_537, 999_983)))
            assert rule in found, name
            assert at < found[rule] <= at + 1 + len(secret), "and it says where"


@pytest.mark.promise("audit")
@pytest.mark.parametrize("form", ["as it is", "base64", "url base64", "hex", "HEX", "utf-16", "reversed"])
def test_a_canary_is_found_in_every_form_at_every_offset(form: str, tally: Tally) -> None:
    canaries = Canaries([Secret(CANARY)])
    raw = CANARY.encode()
    for shift in range(6):
        around = b"k" * shift + raw + b"and more"
        coded = {
            "as it is": around,
            "base64": base64.b64encode(around),
            "url base64": base64.urlsafe_b64encode(around),
            "hex": around.hex().encode(),
            "HEX": around.hex().upper().encode(),
            "utf-16": around.decode().encode("utf-16-le"),
            "reversed": around[::-1],
        }[form]
        for at in (0, 5000, (1 << 20) - 10 - shift):
            tally.count()
            data = bytes(at) + coded + bytes(1 << 20)
            assert "secret-canary" in through(data, canaries), (shift, at)
    other = Canaries([Secret("another-" + "horse-and-battery")])
    assert through(bytes(99) + coded, other) == {}


@pytest.mark.parametrize("secret", ["short", "        short  ", "x" * 5000])
def test_a_canary_that_tells_nothing_is_refused(secret: str) -> None:
    with pytest.raises(UsageError, match="a canary has at"):
        Canaries([Secret(secret)])


@pytest.mark.parametrize(
    "text",
    [
        "hf" + "_" + "x" * 34,
        "hf" + "_94wBhPGp6KrrTH3KD" + "chhKpRxZwd6dmHWLL",
        "hf" + "_YourTokenHere",
        "the_hf" + "_hub_download_file_from_a_repository_now",
        "AK" + "IAIOSFODNN7EXAMPLE",
        "aws_secret_access" + '_key = "wJalrXUtnFEMI/' + 'K7MDENG/bPxRfiCYEXAMPLEKEY"',
        "-----BEGIN RSA PRIVATE " + "KEY-----",
        'if "-----BEGIN PRIVATE ' + 'KEY-----" in pem:\n    return load_the_private_key_of_that_file(pem)',
        "Authorization: " + "Bearer YOUR_API_KEY_GOES_HERE",
        "Authorization: " + "Bearer <token of at least thirty characters>",
        "https://user" + ":password-of-user@example.com/",
        "https://user" + ":${PASSWORD_OF_USER}@example.com/",
        "https://example.com/a-page#with:colons-and@signs",
        "postgresql://scott" + ":tiger@localhost/test",
        "sk-" + "learn-intelex-is-a-package-with-a-long-name",
        "npm" + "_config_cache_folder_of_this_machine_x",
        "sha256:" + "0123456789abcdef" * 4,
        "AccountName=devstoreaccount1;Account"
        + "Key=Eby8vdM02xNOcqFl"
        + "qUwJPLlmEtlCDXJ1OUzF"
        + "T50uSRZ6IFsuFq2UVErC"
        + "z4I6tq/K1SZFPTOtr/KB"
        + "HBeksoGMGw==",
    ],
)
def test_placeholders_examples_and_code_are_no_secrets(text: str) -> None:
    assert rules(text.encode()) == set()


def test_random_bytes_hold_no_secret_and_no_pickle() -> None:
    rng = random.Random(11)
    content = Content(NONE)
    for _ in range(128 if os.environ.get("MODELBAKE_LARGE_TESTS") else 16):
        content.feed(rng.randbytes(1 << 20))
    assert content.close() == []


def test_every_rule_of_detect_secrets_that_is_a_form_is_ours_as_well() -> None:
    """What it finds by a token's form in a secret, we find; it may look at lines of text only."""
    compared = 0
    plugins: Collection[type] = get_mapping_from_secret_type_to_class().values()
    for plugin in plugins:
        if not issubclass(plugin, RegexBasedDetector):
            continue
        detector = plugin()
        for name, (rule, make) in SECRETS.items():
            if any(True for line in make().splitlines() for _ in detector.analyze_string(line)):
                compared += 1
                assert rule in rules(make().encode()), (plugin.__name__, name)
    assert compared >= 15, "the comparison compares something"


def test_a_new_plugin_of_detect_secrets_has_to_be_looked_at_here() -> None:
    known = (
        "Artifactory AWSKey AzureStorageKey BasicAuth Cloudant DiscordBotToken GitHubToken GitLabToken"
        " IbmCloudIam IbmCosHmac IPPublic JwtToken Mailchimp Npm OpenAI PrivateKey PypiToken SendGrid Slack"
        " Softlayer SquareOAuth Stripe TelegramBotToken TwilioKey"
    )
    plugins: Collection[type] = get_mapping_from_secret_type_to_class().values()
    found = {
        each.__name__.removesuffix("Detector") for each in plugins if issubclass(each, RegexBasedDetector)
    }
    assert found == set(known.split())


@pytest.mark.control("audit")
def test_the_sampling_of_every_sixth_byte_misses_no_run_of_twenty() -> None:
    for at in range(60):
        secret = ("AK" + "IA" + word("ABCDEFGH234567", 16)).encode()
        assert len(secret) == 20
        assert rules(b"\0" * at + secret + b"\0" * 60) == {"secret-aws"}, at
    assert rules(b"\0" * 9 + word(LETTERS, 20).encode() + b"\0" * 60) == set()


def test_real_weights_hold_no_secret_and_no_pickle() -> None:
    for file in sorted(minilm().rglob("*")):
        if file.is_file():
            assert through(file.read_bytes()) == {}, file
