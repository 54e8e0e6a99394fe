from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from modelbake import grammar
from modelbake.config import (
    CheckSpec,
    Config,
    ModelSpec,
    SmokeSpec,
    json_schema,
    load_config,
    schema_text,
)
from modelbake.errors import ConfigError, UsageError
from modelbake.expected import Approx, Between, Contains, Cosine, Equals, Golden, Matches
from modelbake.quantity import SIZE
from modelbake.smokeentry import Limits
from modelbake.sourceuri import SOURCE
from modelbake.yamlfile import read_yaml

ROOT = Path(__file__).parents[2]
DIGEST = "sha256:" + "ab" * 32
NAME_EXPECTED = f"expected {grammar.NAME.expected}"
RUNTIME_EXPECTED = f"expected {grammar.RUNTIME.expected}"
VERSION_EXPECTED = 'expected a semantic version in quotes, such as "1.4.0"'
SOURCE_EXPECTED = "expected a source such as hf://organisation/name or s3://bucket/prefix"
REGISTRY_EXPECTED = "expected a registry such as registry.example.com:5000/team, without a scheme"
BASE_EXPECTED = "expected an image pinned by its digest: name:tag@sha256: and 64 hexadecimal digits"
HUB_EXPECTED = "expected the URL of a hub such as https://huggingface.co"
REVISION_EXPECTED = "expected a branch, tag or commit of the repository"
PATTERN_EXPECTED = "expected a relative file name pattern such as *.safetensors"
LINE_EXPECTED = "expected text on one line, without control characters"
TOKEN = "hf_" + "c4n4ryC4N4RY" * 2
TOKEN_IN_A_CHECK = "this looks like a token, and everyone who reads this file or a report could read it"
SECRET_IN_A_QUERY = (
    "names a secret, and everyone who reads this file or a report could read its value; let the server answer"
    " this check without it"
)
INSIDE = (
    "inside a list or a mapping would be taken literally: expect that value by an expression of its own"
    " (write {equals: ...} around all of it to expect it as it stands)"
)
SECRET = "this looks like a token or a password, and everyone who pulls the image could read it"
SECRET_NAME = (
    "this names a secret, and everyone who pulls the image could read it;"
    " give it to the container when it is started"
)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def document(
    *, registry: str = "r.example.com/ml", defaults: str = "{}", name: str = "m", **keys: str | None
) -> str:
    """Return a models.yaml with one model; keyword values stand as written and come last, None: left out."""
    model = {"version": '"1.0.0"', "source": "hf://a/b", "runtime": "embeddings"}
    model = {key: value for key, value in model.items() if key not in keys}
    lines = [f"registry: {registry}", f"defaults: {defaults}", "models:", f"  {name}:"]
    lines += [f"    {key}: {value}" for key, value in {**model, **keys}.items() if value is not None]
    return "\n".join(lines) + "\n"


def loaded(text: str) -> Config:
    path = Path("models.yaml")
    path.write_text(text, encoding="utf-8")
    return load_config(path)


def model(**keys: str) -> ModelSpec:
    return loaded(document(**keys)).select((), all=True)[0]


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(text)
    return caught.value.message


# --- good ones --------------------------------------------------------------------------------------


def test_the_smallest_model_has_documented_defaults() -> None:
    assert model() == ModelSpec(
        name="m",
        version="1.0.0",
        source="hf://a/b",
        revision="main",
        include=("*",),
        exclude=(),
        runtime="embeddings",
        device="cuda",
        base=None,
        hub="https://huggingface.co",
        env={},
        labels={},
        smoke=SmokeSpec(startup_seconds=300.0, requests=20, checks=()),
    )


def test_every_key_is_read() -> None:
    spec = model(
        revision="refs/pr/3",
        include='["*.json", "1_Pooling/config.json"]',
        exclude='["onnx/*"]',
        device="any",
        base=f"docker.io/library/python:3.11@{DIGEST}",
        hub="https://hub.example.com:8443/hf",
        env='{OMP_NUM_THREADS: "4", TOKENIZERS_PARALLELISM: "false"}',
        labels="{org.example.team: search}",
        smoke="{startup_seconds: 60, requests: 5, checks: [{name: dim, post: /v1/e,"
        ' body: {input: [a, 1, null]}, status: 201, expect: {"length(a)": 3,'
        " b: {approx: 1, tolerance: 1e-3}, c: {d: 1}}}, {get: /h}, {get: /h}],"
        ' tolerance: {latency: "20%", load: "250%"}}',
    )
    assert spec.revision == "refs/pr/3"
    assert spec.include == ("*.json", "1_Pooling/config.json")
    assert spec.exclude == ("onnx/*",)
    assert spec.device == "any"
    assert spec.base == f"docker.io/library/python:3.11@{DIGEST}"
    assert spec.hub == "https://hub.example.com:8443/hf"
    assert spec.env == {"OMP_NUM_THREADS": "4", "TOKENIZERS_PARALLELISM": "false"}
    assert spec.labels == {"org.example.team": "search"}
    assert spec.smoke.startup_seconds == 60.0
    assert spec.smoke.requests == 5
    tolerance = spec.smoke.tolerance
    assert (tolerance.latency, tolerance.load, tolerance.throughput) == ("20%", "250%", None)
    assert spec.smoke.checks[0] == CheckSpec(
        name="dim",
        method="POST",
        path="/v1/e",
        body={"input": ["a", 1, None]},
        status=201,
        expect={"length(a)": 3, "b": Approx(approx=1.0, tolerance=0.001), "c": {"d": 1}},
    )
    assert [(check.name, check.method) for check in spec.smoke.checks[1:]] == [
        ("GET /h", "GET"),
        ("GET /h #3", "GET"),
    ]


def test_defaults_are_merged_into_every_model() -> None:
    config = loaded(
        """
registry: localhost:5000
defaults:
  runtime: embeddings
  device: any
  include: ["*.json"]
  env: {A: "1", B: "2"}
  labels: {a.b: c}
  smoke:
    startup_seconds: 10
    requests: 3
    checks: [{get: /default}]
models:
  one: {version: "1.0.0", source: "hf://a/b"}
  two:
    version: "2.0.0"
    source: hf://a/c
    runtime: transformers
    include: ["*.txt"]
    env: {B: "3"}
    labels: {d.e: f}
    smoke: {requests: 4, checks: []}
"""
    )
    one, two = config.select((), all=True)
    assert (one.runtime, one.device, one.include, one.env) == (
        "embeddings",
        "any",
        ("*.json",),
        {"A": "1", "B": "2"},
    )
    assert (one.smoke.startup_seconds, one.smoke.requests, len(one.smoke.checks)) == (10.0, 3, 1)
    assert (two.runtime, two.device, two.include) == ("transformers", "any", ("*.txt",))
    assert (two.env, two.labels) == ({"A": "1", "B": "3"}, {"a.b": "c", "d.e": "f"})
    assert (two.smoke.startup_seconds, two.smoke.requests, two.smoke.checks) == (10.0, 4, ())


def test_specs_cannot_be_changed_nor_made_with_names_that_are_not_names() -> None:
    spec = model()
    with pytest.raises(ValidationError):
        spec.version = "2.0.0"
    for wrong in (
        {"name": "a\n"},
        {"version": "1"},
        {"base": "python"},
        {"env": {"HF_TOKEN": "x"}},
        {"more": 1},
    ):
        with pytest.raises(ValidationError):
            ModelSpec.model_validate({**spec.model_dump(), **wrong})


# --- bad ones: a key, what is written there, and the exact message --------------------------------------

WRONG_VALUES = [
    (
        "version",
        "1.10",
        f'version: {VERSION_EXPECTED}, got the number 1.10; write "1.10.0" in quotes',
    ),
    ("version", "1", f'version: {VERSION_EXPECTED}, got the number 1; write "1.0.0" in quotes'),
    ("version", '"v1.2"', f'version: {VERSION_EXPECTED}, got "v1.2"; write "1.2.0" in quotes'),
    (
        "version",
        '"01.0.0"',
        f'version: {VERSION_EXPECTED}, got "01.0.0"; write "1.0.0" in quotes',
    ),
    (
        "version",
        '"1.0.0+cu12"',
        f"version: {VERSION_EXPECTED}, got \"1.0.0+cu12\"; '+build' cannot stand in an image tag;"
        " use '-build'",
    ),
    ("version", '"1.0.0\\n"', f'version: {VERSION_EXPECTED}, got "1.0.0\\n"'),
    ("version", '"1.0.0-01"', f'version: {VERSION_EXPECTED}, got "1.0.0-01"'),
    ("version", "true", f"version: {VERSION_EXPECTED}, got the boolean true"),
    ("version", "", f"version: {VERSION_EXPECTED}, got nothing"),
    ("version", "[a]", f"version: {VERSION_EXPECTED}, got a list"),
    (
        "version",
        "1:30",
        'version: 1:30 is a base-60 number for some YAML readers and not for others; write "1:30" in quotes',
    ),
    # Advice that would be refused in turn is none: with quotes it is a text, but no version.
    ("version", "2024-01-01", f'version: {VERSION_EXPECTED}, got "2024-01-01"; write "2024.1.1" in quotes'),
    ("version", '"2024-1-31"', f'version: {VERSION_EXPECTED}, got "2024-1-31"; write "2024.1.31" in quotes'),
    (
        "revision",
        "2024-01-01",
        "revision: 2024-01-01 is a date for some YAML readers and not for others;"
        ' write "2024-01-01" in quotes',
    ),
    ("source", "a/b", f'source: {SOURCE_EXPECTED}, got "a/b"; did you mean "hf://a/b"?'),
    (
        "source",
        "https://huggingface.co/a/b",
        f'source: {SOURCE_EXPECTED}, got "https://huggingface.co/a/b"; did you mean "hf://a/b"?',
    ),
    (
        "source",
        "ftp://a/b",
        f'source: {SOURCE_EXPECTED}, got "ftp://a/b"; the sources are hf:, s3:, gs:, az:, mlflow:,'
        " sagemaker:, https:, oci:, file:",
    ),
    (
        "source",
        "s3://Models/llama",
        f'source: {SOURCE_EXPECTED}, got "s3://Models/llama"; write s3://bucket/prefix, the bucket of 3 or'
        " more lower-case letters",
    ),
    (
        "source",
        "hf://gpt2",
        f'source: {SOURCE_EXPECTED}, got "hf://gpt2"; name the organisation too: hf://organisation/name',
    ),
    (
        "source",
        "hf://a/b@v1",
        f'source: {SOURCE_EXPECTED}, got "hf://a/b@v1"; the branch, tag or commit goes into `revision`',
    ),
    ("source", "hf://a/b--c", f'source: {SOURCE_EXPECTED}, got "hf://a/b--c"'),
    ("source", "hf://a/b.git", f'source: {SOURCE_EXPECTED}, got "hf://a/b.git"'),
    ("source", "hf://a/b/c", f'source: {SOURCE_EXPECTED}, got "hf://a/b/c"'),
    ("revision", "a..b", f'revision: {REVISION_EXPECTED}, got "a..b"'),
    ("revision", "-x", f'revision: {REVISION_EXPECTED}, got "-x"'),
    ("revision", "v1.lock", f'revision: {REVISION_EXPECTED}, got "v1.lock"'),
    (
        "revision",
        "12345",
        f'revision: {REVISION_EXPECTED}, got the number 12345; write "12345" in quotes',
    ),
    (
        "revision",
        "12e45",
        f'revision: {REVISION_EXPECTED}, got the number 12e45; write "12e45" in quotes',
    ),
    ("revision", '"$(id)"', f'revision: {REVISION_EXPECTED}, got "$(id)"'),
    ("include", '"*.json"', 'include: expected a list, got "*.json"; write ["*.json"]'),
    ("include", "[]", "include: expected at least one item"),
    ("include", "[../a]", f'include[0]: {PATTERN_EXPECTED}, got "../a"'),
    ("include", "[a/../b]", f'include[0]: {PATTERN_EXPECTED}, got "a/../b"'),
    ("exclude", '["a\\nb"]', f'exclude[0]: {PATTERN_EXPECTED}, got "a\\nb"'),
    (
        "exclude",
        "[ok, /a]",
        f'exclude[1]: {PATTERN_EXPECTED}, got "/a"; patterns are relative to the repository:'
        " leave the first '/' or './' out",
    ),
    (
        "exclude",
        "['a\\b']",
        f"exclude[0]: {PATTERN_EXPECTED}, got \"a\\\\b\"; directories are separated by '/'",
    ),
    (
        "runtime",
        "Embeddings",
        f'runtime: {RUNTIME_EXPECTED}, got "Embeddings"; did you mean "embeddings"?',
    ),
    (
        "runtime",
        "services/chat/",
        f'runtime: {RUNTIME_EXPECTED}, got "services/chat/"; did you mean "./services/chat"?',
    ),
    ("runtime", "../etc", f'runtime: {RUNTIME_EXPECTED}, got "../etc"'),
    ("runtime", "./a/../b", f'runtime: {RUNTIME_EXPECTED}, got "./a/../b"'),
    ("runtime", "", f"runtime: {RUNTIME_EXPECTED}, got nothing"),
    (
        "device",
        "gpu",
        "device: expected one of cuda, any, cpu; got \"gpu\"; did you mean 'cuda'?",
    ),
    ("device", "CPU", "device: expected one of cuda, any, cpu; got \"CPU\"; did you mean 'cpu'?"),
    ("device", "1", "device: expected one of cuda, any, cpu; got the number 1"),
    (
        "base",
        "python:3.11",
        f'base: {BASE_EXPECTED}, got "python:3.11"; `docker buildx imagetools inspect python:3.11`'
        " shows the digest: write python:3.11@sha256:...",
    ),
    ("base", "python@sha256:12", f'base: {BASE_EXPECTED}, got "python@sha256:12"'),
    ("base", f"Python@{DIGEST}", f'base: {BASE_EXPECTED}, got "Python@{DIGEST[:50]}..."'),
    ("base", f'"a b@{DIGEST}"', f'base: {BASE_EXPECTED}, got "a b@{DIGEST[:53]}..."'),
    (
        "hub",
        "hub.example.com",
        f'hub: {HUB_EXPECTED}, got "hub.example.com"; did you forget https:// ?',
    ),
    (
        "hub",
        "https://h.io/",
        f"hub: {HUB_EXPECTED}, got \"https://h.io/\"; leave the last '/' out",
    ),
    (
        "hub",
        "https://h.io?a=b",
        f'hub: {HUB_EXPECTED}, got "https://h.io?a=b"; leave the query and the fragment out',
    ),
    (
        "hub",
        "https://user:hunter2@h.io",
        f"hub: {HUB_EXPECTED}, got text that is not repeated here; credentials do not belong"
        " in the file: the token comes from HF_TOKEN",
    ),
    ("hub", "ftp://h.io", f'hub: {HUB_EXPECTED}, got "ftp://h.io"'),
    ("env", "[A]", "env: expected a mapping (key: value), got a list"),
    ("env", "{PORT: 80}", f'env.PORT: {LINE_EXPECTED}, got the number 80; write "80" in quotes'),
    ("env", '{A: "x\\ny"}', f"env.A: {LINE_EXPECTED}, got text that is not repeated here"),
    (
        "env",
        '{"A B": x}',
        'env."A B": expected an environment variable\'s name (letters, digits and \'_\'), got "A B"',
    ),
    ("env", "{HF_TOKEN: 12}", f"env.HF_TOKEN: {SECRET_NAME}"),
    ("env", "{db_password: x}", f"env.db_password: {SECRET_NAME}"),
    ("env", "{A: hf_aBcDeFgHiJkLmNoPqRsT}", f"env.A: {SECRET}"),
    ("env", "{PROXY: http://u:hunter2@p}", f"env.PROXY: {SECRET}"),
    ("env", '{MODELBAKE_PORT: "1"}', "env.MODELBAKE_PORT: this is set by the image itself"),
    ("env", '{MODELBAKE_VERIFY: "off"}', "env.MODELBAKE_VERIFY: this is set by the image itself"),
    (
        "allow_pickle",
        '["*.bin"]',
        f'allow_pickle[0]: expected {grammar.PICKLE.expected}, got "*.bin"',
    ),
    (
        "allow_pickle",
        "[model.safetensors]",
        f'allow_pickle[0]: expected {grammar.PICKLE.expected}, got "model.safetensors"',
    ),
    ("convert", "gguf", 'convert: expected one of none, safetensors; got "gguf"'),
    ("convert", "true", "convert: expected one of none, safetensors; got the boolean true"),
    ("verify", "fast", 'verify: expected one of full, quick, off; got "fast"'),
    (
        "verify",
        "off",
        'verify: off is a boolean for some YAML readers and not for others; write "off" in quotes, or true'
        " or false",
    ),
    (
        "labels",
        "{Team: x}",
        f'labels.Team: expected {grammar.LABEL_NAME.expected}, got "Team"; did you mean "team"?',
    ),
    ("labels", "{a.b: 1}", f'labels.a.b: {LINE_EXPECTED}, got the number 1; write "1" in quotes'),
    ("labels", "{a.b: hf_aBcDeFgHiJkLmNoPqRsT}", f"labels.a.b: {SECRET}"),
    (
        "labels",
        "{io.modelbake.model: x}",
        "labels.io.modelbake.model: labels of io.modelbake.* are reserved; use a name of your own,"
        " such as org.example.team",
    ),
    (
        "labels",
        "{org.opencontainers.image.version: x}",
        "labels.org.opencontainers.image.version: labels of org.opencontainers.image.* are reserved;"
        " use a name of your own, such as org.example.team",
    ),
    ("smoke", "5", "smoke: expected a mapping (key: value), got the number 5"),
    (
        "smoke",
        "{requests: 0}",
        "smoke.requests: expected a whole number from 1 to 100000, got the number 0",
    ),
    (
        "smoke",
        "{requests: 1.5}",
        "smoke.requests: expected a whole number from 1 to 100000, got the number 1.5",
    ),
    (
        "smoke",
        "{startup_seconds: true}",
        "smoke.startup_seconds: expected a number of seconds from 1 to 86400, got the boolean true",
    ),
    (
        "smoke",
        "{tolerance: {latency: 20}}",
        'smoke.tolerance.latency: expected a percentage above 0 in quotes, such as "20%", got the number 20',
    ),
    (
        "smoke",
        '{tolerance: {load: "0.0%"}}',
        'smoke.tolerance.load: expected a percentage above 0 in quotes, such as "20%", got "0.0%"',
    ),
    (
        "smoke",
        '{tolerance: {throughput: "100%"}}',
        "smoke.tolerance.throughput: expected a percentage above 0 and below 100 in quotes, such as"
        ' "20%", got "100%"',
    ),
    (
        "smoke",
        '{tolerance: {latancy: "20%"}}',
        "smoke.tolerance.latancy: unknown key; did you mean 'latency'?",
    ),
    ("smoke", "{request: 1}", "smoke.request: unknown key; did you mean 'requests'?"),
    ("smoke", "{checks: {}}", "smoke.checks: expected a list, got a mapping"),
    (
        "smoke",
        "{checks: [{name: a, get: /}, {name: a, get: /}]}",
        'smoke: two checks have the name "a"',
    ),
    ("verison", "1", "verison: unknown key; did you mean 'version'?"),
    ("gpu", "true", "gpu: unknown key; write 'device: cuda'"),
    (
        "token_command",
        "[vault, read]",
        "token_command: unknown key; set MODELBAKE_TOKEN_COMMAND in the environment",
    ),
    (
        "hf_token",
        "x",
        "hf_token: unknown key; secrets are never written in this file: tokens come from the environment",
    ),
    (
        "max_size",
        "6",
        "max_size: expected a size such as 6 GB or 500 MiB (units: B, kB, MB, GB, TB, KiB, MiB, GiB, TiB),"
        " got the number 6; say of what: 6 GB, for example",
    ),
    (
        "max_size",
        "6 gb",
        "max_size: expected a size such as 6 GB or 500 MiB (units: B, kB, MB, GB, TB, KiB, MiB, GiB, TiB),"
        ' got "6 gb"; did you mean 6 GB?',
    ),
    (
        "zzz",
        "x",
        "zzz: unknown key; known here: revision, include, exclude, runtime, device, base, hub,"
        " layer_order, compression, verify, max_size, env, labels, smoke, version, source,"
        " endpoint, files, add, allow_pickle, convert",
    ),
]

WRONG_CHECKS = [
    ("{get: h}", 'checks[0].get: expected a URL path that begins with \'/\', got "h"; did you mean "/h"?'),
    (
        "{get: //evil.example}",
        "checks[0].get: expected a URL path that begins with '/', got \"//evil.example\"",
    ),
    ('{get: "/ HTTP/1.1"}', "checks[0].get: expected a URL path that begins with '/', got \"/ HTTP/1.1\""),
    ("{name: x}", "checks[0]: expected either 'get' or 'post', with a path"),
    ("{get: /a, post: /a}", "checks[0]: expected either 'get' or 'post', with a path"),
    ("{get: /a, body: {}}", "checks[0]: a 'get' has no 'body'; did you mean 'post'?"),
    (f"{{post: /a, body: {{x: [{{y: {TOKEN}}}]}}}}", f"checks[0].body: {TOKEN_IN_A_CHECK}"),
    (f'{{post: /a, body: {{"{TOKEN}": 1}}}}', f"checks[0].body: {TOKEN_IN_A_CHECK}"),
    (f'{{post: /a, body: "say {TOKEN} please"}}', f"checks[0].body: {TOKEN_IN_A_CHECK}"),
    (f"{{get: /a, expect: {{b: {TOKEN}}}}}", f"checks[0].expect: {TOKEN_IN_A_CHECK}"),
    (f'{{get: /a, name: "with {TOKEN}"}}', f"checks[0].name: {TOKEN_IN_A_CHECK}"),
    (f'{{get: "/a/{TOKEN}"}}', f"checks[0].get: {TOKEN_IN_A_CHECK}"),
    (f'{{post: "/a?x={TOKEN.replace("_", "%5F")}", body: 1}}', f"checks[0].post: {TOKEN_IN_A_CHECK}"),
    ('{get: "/a?max_tokens=3&api_key=hunter2"}', f'checks[0].get: "api_key" {SECRET_IN_A_QUERY}'),
    ('{post: "/a?pass%77ord=hunter2", body: 1}', f'checks[0].post: "password" {SECRET_IN_A_QUERY}'),
    ("{get: /a, expect: {b: [{contains: x}]}}", f"checks[0].expect.b: 'contains' {INSIDE}"),
    ("{get: /a, expect: {b: {c: {d: [{at_least: 1}]}}}}", f"checks[0].expect.b: 'at_least' {INSIDE}"),
    ("{pots: /a}", "checks[0].pots: unknown key; did you mean 'post'?"),
    ("{get: /a, status: 99}", "checks[0].status: expected an HTTP status from 100 to 599, got the number 99"),
    ('{get: /a, status: "200"}', 'checks[0].status: expected an HTTP status from 100 to 599, got "200"'),
    (
        "{get: /a, name: ''}",
        'checks[0].name: expected a check\'s name: 1 to 100 characters on one line, got ""',
    ),
    (
        '{get: /a, expect: {"a[0": 1}}',
        'checks[0].expect."a[0": not a JMESPath expression: it is incomplete at character 4 of "a[0"',
    ),
    (
        '{get: /a, expect: {"a]b": 1}}',
        'checks[0].expect."a]b": not a JMESPath expression: "]" is unexpected at character 2 of "a]b"',
    ),
    (
        '{get: /a, expect: {"a == `b`": true}}',
        'checks[0].expect."a == `b`": not a JMESPath expression: what stands between backticks is not JSON'
        ' in "a == `b`"',
    ),
    ("{get: /a, expect: {'': 1}}", 'checks[0].expect."": expected a JMESPath expression, got ""'),
    (
        "{get: /a, expect: {lenght(a): 1}}",
        "checks[0].expect.\"lenght(a)\": JMESPath has no function lenght(); did you mean 'length'?",
    ),
    (
        '{get: /a, expect: {"length(a, b)": 1}}',
        'checks[0].expect."length(a, b)": length() takes 1 argument, not 2',
    ),
    (
        "{get: /a, expect: {a: {approx: 1, tolerance: 0}}}",
        "checks[0].expect.a.tolerance: expected a number greater than 0, got the number 0",
    ),
    (
        '{get: /a, expect: {a: {approx: "1", tolerance: 1}}}',
        'checks[0].expect.a.approx: expected a number, got "1"',
    ),
    ("{get: /a, expect: {a: {approx: 1}}}", "checks[0].expect.a.tolerance: required key missing"),
    (
        "{get: /a, expect: {a: {approx: 1, tolerance: 1, tolerence: 1}}}",
        "checks[0].expect.a.tolerence: unknown key; did you mean 'tolerance'?",
    ),
    (
        "{get: /a, expect: {a: {cosine: v, at_leest: 1}}}",
        "checks[0].expect.a.at_leest: unknown key; did you mean 'at_least'?",
    ),
    (
        "{get: /a, expect: {a: {contian: b}}}",
        "checks[0].expect.a: \"contian\" looks like a word for an expectation; did you mean 'contains'?"
        " (write {equals: {...}} to expect this very mapping)",
    ),
    (
        "{get: /a, expect: {a: {contains: b, at_least: 1}}}",
        "checks[0].expect.a: 'contains' and 'at_least' do not go together",
    ),
    (
        "{get: /a, expect: {a: {contains: 3}}}",
        "checks[0].expect.a.contains: expected text of 1 to 1000 characters, got the number 3;"
        ' write "3" in quotes',
    ),
    (
        "{get: /a, expect: {a: {at_least: 3, at_most: 2}}}",
        "checks[0].expect.a: no number is so: 'at_least' is more than 'at_most'",
    ),
    (
        "{get: /a, expect: {a: {matches: 'a(b'}}}",
        "checks[0].expect.a.matches: not a regular expression:"
        " missing ), unterminated subpattern at character 2",
    ),
    (
        "{get: /a, expect: {a: {matches: '[[a]'}}}",
        "checks[0].expect.a.matches: not a regular expression that means the same to every Python:"
        " Possible nested set at position 1",
    ),
    (
        "{get: /a, expect: {a: {matches: 'a{99999999999}'}}}",
        "checks[0].expect.a.matches: not a regular expression: the repetition number is too large",
    ),
    (
        "{get: /a, expect: {a: {cosine: v, at_least: 1.5}}}",
        "checks[0].expect.a.at_least: expected a number from -1 to 1, got the number 1.5",
    ),
    (
        "{get: /a, expect: {a: {cosine: Hello}}}",
        f'checks[0].expect.a.cosine: {NAME_EXPECTED}, got "Hello"; did you mean "hello"?',
    ),
    (
        f"{{get: /a, expect: {{a: {{contains: {TOKEN}}}}}}}",
        f"checks[0].expect: {TOKEN_IN_A_CHECK}",
    ),
]

REGISTRIES = [
    ("https://r.io/ml/", "a registry is written without scheme and last '/': did you mean \"r.io/ml\"?"),
    ("ml/team", 'the host comes first (with a dot or a port): did you mean "docker.io/ml/team"?'),
    ("r.io/Team", 'namespaces are lower-case: did you mean "r.io/team"?'),
    ("r.io:99999", ""),
    ("r.io/a//b", ""),
    ("r.io/a:tag", ""),
    ('"r.io\\n"', ""),
]


@pytest.mark.parametrize(("key", "written", "message"), WRONG_VALUES)
def test_each_wrong_value_is_reported_with_place_reason_and_remedy(
    key: str, written: str, message: str
) -> None:
    text = document(**{key: written})
    (said,) = refused(text).splitlines()
    place, _, rest = said.partition(": ")
    assert rest == f"models.m.{message}"
    assert place.startswith(f"models.yaml:{len(text.splitlines())}:")


@pytest.mark.parametrize(("written", "message"), WRONG_CHECKS)
def test_each_wrong_check_is_reported(written: str, message: str) -> None:
    (said,) = refused(document(smoke=f"{{checks: [{written}]}}")).splitlines()
    assert said.split(": ", 1)[1] == f"models.m.smoke.{message}"
    assert said.startswith("models.yaml:8:")


WRONG_SMOKE = [
    (
        "{limits: {max_gpu_memory: 6}}",
        f"limits.max_gpu_memory: expected {SIZE.expected}, got the number 6; say of what: 6 GB, for example",
    ),
    (
        "{limits: {max_gpu_memory: 6 gb}}",
        f'limits.max_gpu_memory: expected {SIZE.expected}, got "6 gb"; did you mean 6 GB?',
    ),
    (
        "{limits: {max_load_seconds: 0}}",
        "limits.max_load_seconds: expected a number greater than 0, got the number 0",
    ),
    (
        "{limits: {max_load_second: 5}}",
        "limits.max_load_second: unknown key; did you mean 'max_load_seconds'?",
    ),
    (
        "{limits: {max_latency_seconds: 5}}",
        "limits.max_latency_seconds: unknown key; write 'max_latency', in seconds",
    ),
    ("{require_gpu: 1}", "require_gpu: expected true or false, got the number 1"),
]


@pytest.mark.parametrize(("written", "message"), WRONG_SMOKE)
def test_each_wrong_limit_is_reported(written: str, message: str) -> None:
    text = document(smoke=written)
    (said,) = refused(text).splitlines()
    place, rest = said.split(": ", 1)
    assert place.startswith(f"models.yaml:{len(text.splitlines())}:")
    assert rest == f"models.m.smoke.{message}"
    file = read_yaml(Path("models.yaml"))
    assert not jsonschema.Draft202012Validator(json_schema()).is_valid(file.data)


def test_limits_are_added_to_the_defaults_key_by_key() -> None:
    defaults = "{smoke: {require_gpu: true, limits: {max_gpu_memory: 6 GB, max_load_seconds: 60}}}"
    text = document(defaults=defaults, smoke="{limits: {max_load_seconds: 90}}")
    (spec,) = loaded(text).select((), all=True)
    assert spec.smoke.require_gpu is True
    assert spec.smoke.limits == Limits(max_gpu_memory="6 GB", max_load_seconds=90.0)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"device": "cpu", "smoke": "{require_gpu: true}"},
            "`device: cpu` and `require_gpu: true` exclude each other; write `require_gpu: false`, or"
            " another device",
        ),
    ],
)
def test_what_no_run_can_pass_is_refused(keys: dict[str, str], message: str) -> None:
    text = document(**keys)
    assert refused(text) == f"models.yaml:{len(text.splitlines())}:12: models.m.smoke: {message}"
    model(device="any", smoke="{require_gpu: true, limits: {max_latency: 1}, checks: [{get: /h}]}")  # control


def test_what_no_run_can_pass_is_refused_at_the_defaults_where_they_say_it() -> None:
    text = document(defaults="{smoke: {require_gpu: true}}", device="cpu")
    assert refused(text).startswith("models.yaml:2:19: defaults.smoke: `device: cpu`")


def test_a_golden_belongs_to_one_answer() -> None:
    said = refused(document(smoke="{checks: [{get: /a, expect: {a: {golden: v}, b: {cosine: v}}}]}"))
    assert said.endswith('models.m.smoke: golden "v" is named twice; give each answer a golden of its own')


def test_every_word_is_read_and_all_others_are_taken_as_they_stand() -> None:
    spec = model(
        smoke="{checks: [{get: /h, expect: {a: {contains: x}, b: {matches: ^x}, c: {cosine: v},"
        " d: {cosine: w, at_least: 0.9}, e: {golden: g}, f: {at_least: 1}, g: {at_least: 1, at_most: 2},"
        " h: {equals: {golden: 1}}, i: {content: x, at: 1}, j: {equals: [{contains: x}]}}}]}"
    )
    (check,) = spec.smoke.checks
    assert list(check.expect.values()) == [
        Contains(contains="x"),
        Matches(matches="^x"),
        Cosine(cosine="v", at_least=0.999),
        Cosine(cosine="w", at_least=0.9),
        Golden(golden="g"),
        Between(at_least=1.0),
        Between(at_least=1.0, at_most=2.0),
        Equals(equals={"golden": 1}),
        {"content": "x", "at": 1},
        Equals(equals=[{"contains": "x"}]),
    ]
    assert check.goldens == {"v": "c", "w": "d", "g": "e"}
    jsonschema.validate(read_yaml(Path("models.yaml")).data, json_schema())


@pytest.mark.parametrize(("written", "advice"), REGISTRIES)
def test_each_wrong_registry_is_reported(written: str, advice: str) -> None:
    shown = written if written.startswith('"') else f'"{written}"'
    expected = f"models.yaml:1:11: registry: {REGISTRY_EXPECTED}, got {shown}" + (
        f"; {advice}" if advice else ""
    )
    assert refused(document(registry=written)) == expected


def test_credentials_in_a_registry_are_not_repeated() -> None:
    said = refused(document(registry="user:hunter2@r.io"))
    assert "hunter2" not in said
    assert "docker login" in said


@pytest.mark.parametrize(
    "text",
    [
        document(env="{A: [hunter2]}"),
        document(env='{A: "hunter2\\n"}'),
        document(env="{TOKEN: hunter2}"),
        document(env="{A: http://u:hunter2@p}"),
        document(hub="http://u:hunter2@p"),
        document(source="https://u:hunter2@p/a/b"),
        document(registry="https://u:hunter2@p/a/b"),
        document(token="hunter2"),
    ],
)
def test_what_may_be_a_secret_is_never_printed(text: str) -> None:
    assert "hunter2" in text
    assert "hunter2" not in refused(text)


def test_positions_point_at_the_value_the_key_or_the_model() -> None:
    text = """registry: r.io
models:
  one:
    verison: "1.0.0"
    source: hf://a/b
    runtime: x
    env: {OK: a, HF_TOKEN: b}
  Two:
    version: 1.0
"""
    assert [line.split(" ")[0:2] for line in refused(text).splitlines()] == [
        ["models.yaml:3:3:", "models.one.version:"],
        ["models.yaml:4:5:", "models.one.verison:"],
        ["models.yaml:7:18:", "models.one.env.HF_TOKEN:"],
        ["models.yaml:8:3:", "models.Two:"],
        ["models.yaml:8:3:", "models.Two.runtime:"],
    ]


def test_the_whole_file_is_checked_at_once_also_after_refused_yaml() -> None:
    text = (
        document(device="gpu", env="{A: yes}", labels="&x {a: 1}") + "    device: any\n    source: hf://x/y\n"
    )
    said = [line.split(": ")[1] for line in refused(text).splitlines()]
    assert said == [
        "models.m.device",
        "models.m.env.A",
        "models.m.labels",
        "models.m.labels.a",
        "models.m.device",
        "models.m.source",
    ]


def test_merge_keys_do_not_also_count_as_missing_keys() -> None:
    text = (
        "registry: r.io\nmodels:\n  a: &a {version: '1.0.0', source: hf://a/b, runtime: x}\n  b: {<<: *a}\n"
    )
    said = refused(text)
    assert "missing" not in said
    assert "merge keys are not supported" in said


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("MiniLM", f'{NAME_EXPECTED}, got "MiniLM"; did you mean "minilm"?'),
        ('"a b"', f'{NAME_EXPECTED}, got "a b"; did you mean "a-b"?'),
        ("a/b", f'{NAME_EXPECTED}, got "a/b"'),
        ("a..b", f'{NAME_EXPECTED}, got "a..b"'),
        ('"a\\n"', f'{NAME_EXPECTED}, got "a\\n"'),
        ("a" * 65, f'{NAME_EXPECTED}, got "{"a" * 57}..."'),
        ("no", 'a key has to be text; write "no" in quotes'),
        ("1.0", 'a key has to be text; write "1.0" in quotes'),
    ],
)
def test_each_wrong_model_name_is_reported_once(name: str, message: str) -> None:
    (said,) = refused(document(name=name)).splitlines()
    assert said.startswith("models.yaml:4:3: models.")
    assert said.endswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "models.yaml:1:1: expected a mapping (key: value), got a list"),
        ("a", 'models.yaml:1:1: expected a mapping (key: value), got "a"'),
        ("registry: r.io\n", "models.yaml:1:1: models: required key missing"),
        ("registry: r.io\nmodels: {}\n", "models.yaml:2:9: models: expected at least one item"),
        (
            "registry: r.io\nmodels:\n",
            "models.yaml:2:8: models: expected a mapping (key: value), got nothing",
        ),
        (
            "registry: r.io\nmodels: {a: }\n",
            "models.yaml:2:13: models.a: expected a mapping (key: value), got nothing",
        ),
        (
            document(runtime=None),
            "models.yaml:4:3: models.m.runtime: required key missing, here and in `defaults`:"
            " the folder of images/ that serves the model",
        ),
        (
            document(defaults='{version: "1.0.0"}'),
            "models.yaml:2:12: defaults.version: unknown key;"
            " each model has its own, so it cannot be a default",
        ),
    ],
)
def test_wrong_documents(text: str, message: str) -> None:
    assert refused(text) == message


def test_a_wrong_default_is_reported_once() -> None:
    text = document(defaults="{device: gpu}") + '  n: {version: "1.0.0", source: "hf://a/b", runtime: x}\n'
    assert refused(text).splitlines() == [
        "models.yaml:2:20: defaults.device: expected one of cuda, any, cpu; got \"gpu\"; did you mean 'cuda'?"
    ]


def test_no_file() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(Path("absent.yaml"))
    hint = "run in the folder that holds models.yaml, or name it with --file"
    assert str(caught.value) == f"absent.yaml: no such file\n  hint: {hint}"


# --- anything at all, anywhere -------------------------------------------------------------------------

FIELDS = {
    "registry": grammar.REGISTRY,
    "name": grammar.NAME,
    "version": grammar.VERSION,
    "source": SOURCE,
    "revision": grammar.REVISION,
    "runtime": grammar.RUNTIME,
    "base": grammar.BASE,
    "hub": grammar.HUB,
    "env": grammar.ENV_VALUE,
}


@pytest.mark.parametrize("key", FIELDS)
@settings(deadline=None)  # a busy machine is not a defect
@given(
    text=st.text(st.characters(codec="utf-8", max_codepoint=0xFFFF))
    | st.from_regex(r"[a-z:/.@0-9${}\n-]{0,40}")
)
def test_any_text_in_any_field_is_refused_or_of_its_grammar(key: str, text: str) -> None:
    written = json.dumps(text)
    try:
        config = loaded(document(**{key: f"{{A: {written}}}" if key == "env" else written}))
    except ConfigError as error:
        assert error.message.startswith("models.yaml:")
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", error.message)
        return
    (spec,) = config.models.values()
    value = config.registry if key == "registry" else spec.env["A"] if key == "env" else getattr(spec, key)
    assert value == text
    assert FIELDS[key].matches(text)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1000, 1000)
    | st.floats(-10, 10, width=16)
    | st.text("ab/{}:", max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab.", max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)
KEYS = ["version", "source", "include", "env", "labels", "smoke", "device", "base", "revision", "unheard-of"]


@settings(deadline=None)  # a busy machine is not a defect
@given(
    keys=st.dictionaries(st.sampled_from(KEYS), values),
    defaults=values,
    smoke=values,
    check=values,
    expect=values,
)
def test_any_value_in_any_place_is_refused_or_read(
    keys: Mapping[str, Any], defaults: Any, smoke: Any, check: Any, expect: Any
) -> None:
    checks = [
        check,
        {"get": "/", "expect": expect},
        {"post": check, "status": smoke, "expect": {"a": expect}},
    ]
    whole = {
        "registry": "r.io",
        "defaults": defaults,
        "models": {
            "a": {"version": "1.0.0", "source": "hf://a/b", "runtime": "r", **keys},
            "b": {"smoke": {"checks": checks, "requests": smoke}},
            "c": smoke,
        },
    }
    try:
        loaded(json.dumps(whole))
    except ConfigError as error:
        assert all(line.startswith("models.yaml:1:") for line in error.message.splitlines())


# --- choosing models -----------------------------------------------------------------------------------


def test_selecting_models() -> None:
    config = loaded(document(name="minilm") + '  llama: {version: "1.0.0", source: "hf://a/b", runtime: x}\n')
    assert [spec.name for spec in config.select([], all=True)] == ["minilm", "llama"]
    assert [spec.name for spec in config.select(["llama", "minilm", "llama"])] == ["llama", "minilm"]
    for names, everything, message in (
        (
            ["minlm"],
            False,
            "models.yaml: no model \"minlm\"; did you mean 'minilm'?\n  hint: models are minilm, llama",
        ),
        (
            ["x", "lama"],
            False,
            'models.yaml: no model "x"\nno model "lama"; did you mean \'llama\'?'
            "\n  hint: models are minilm, llama",
        ),
        ([], False, "name at least one model, or write --all\n  hint: models are minilm, llama"),
        (["llama"], True, "write either names or --all, not both"),
    ):
        with pytest.raises(UsageError) as caught:
            config.select(names, all=everything)
        assert str(caught.value) == message


# --- the schema for editors ------------------------------------------------------------------------------


def test_the_schema_in_the_repository_is_current() -> None:
    written = (ROOT / "models.schema.json").read_text(encoding="utf-8")
    assert written == schema_text(), "run: python -m modelbake.config > models.schema.json"
    run = subprocess.run(
        [sys.executable, "-m", "modelbake.config"], cwd=ROOT, capture_output=True, check=True
    )
    assert run.stdout.decode() == written


def test_the_example_is_valid_by_the_loader_and_by_the_schema() -> None:
    config = load_config(ROOT / "models.yaml")
    assert {"minilm", "llama-3.2-1b"} <= set(config.models)
    jsonschema.Draft202012Validator.check_schema(json_schema())
    jsonschema.validate(read_yaml(ROOT / "models.yaml").data, json_schema())


def test_a_path_may_have_a_query_and_a_value_may_be_expected_as_it_stands() -> None:
    found = model(
        smoke='{checks: [{get: "/a?max_tokens=3&tokenizer=x", name: tokens, expect:'
        " {a: {equals: [{contains: x}]}, b: [{content: x}, [1]]}}]}"
    ).smoke.checks[0]
    assert found.path == "/a?max_tokens=3&tokenizer=x"
    assert found.expect["b"] == [{"content": "x"}, [1]]


def test_every_key_has_a_description_and_texts_have_an_example() -> None:
    schema = json_schema()
    for holder in [schema, *schema["$defs"].values()]:
        assert holder["description"]
        for key, field in holder["properties"].items():
            assert field["description"], key
            assert field.get("type") != "string" or "enum" in field or field["examples"], key


def test_the_schema_refuses_what_the_loader_refuses() -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    texts = [document(**{key: written}) for key, written, _ in WRONG_VALUES]
    texts += [document(smoke=f"{{checks: [{written}]}}") for written, _ in WRONG_CHECKS]
    texts += [document(registry=written) for written, _ in REGISTRIES]
    not_said = []
    for text in texts:
        Path("models.yaml").write_text(text)
        file = read_yaml(Path("models.yaml"))
        if not file.problems and validator.is_valid(file.data):
            not_said.append(refused(text).split(": ", 2)[2])
    beyond_a_schema = (
        "secret|token|reserved|set by the image|JMESPath|takes|'get'|two checks|named twice|looks like a word"
        "|inside a list|regular expression|no number is so|\\\\n"
    )
    assert [message for message in not_said if not re.search(beyond_a_schema, message)] == []
    assert len(not_said) < len(texts) / 3


# --- speed -----------------------------------------------------------------------------------------------


def test_loading_takes_no_longer_for_a_model_among_a_thousand() -> None:
    one = """  m{}:
    version: "1.0.0"
    source: hf://sentence-transformers/all-MiniLM-L6-v2
    revision: main
    include: ["*.json", "*.txt", "*.safetensors"]
    exclude: ["onnx/*"]
    runtime: embeddings
    device: any
    labels: {{org.example.team: search}}
    smoke:
      requests: 20
      checks:
        - post: /v1/embeddings
          body: {{input: hello}}
          expect: {{"length(data[0].embedding)": 384}}
"""

    def text(models: int) -> str:
        return "registry: r.io\nmodels:\n" + "".join(one.format(number) for number in range(models))

    def seconds(read: Callable[[str], object], what: str) -> float:
        began = time.process_time()
        read(what)
        return time.process_time() - began

    def wrong(models: int) -> str:
        return text(models).replace("version:", "verison:").replace("any", "gpu")

    assert len(loaded(text(1000)).models) == 1000
    assert len(refused(wrong(1000)).splitlines()) == 3000
    # Ten times as much takes ten times as long; what looks at all models for each takes a hundred times.
    assert seconds(loaded, text(1000)) < 40 * min(seconds(loaded, text(100)) for _ in range(3))
    assert seconds(refused, wrong(1000)) < 40 * min(seconds(refused, wrong(100)) for _ in range(3))


def test_importing_leaves_jmespath_and_docker_alone() -> None:
    program = "import sys, modelbake.config; print('jmespath' in sys.modules, 'docker' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True, text=True
    )
    assert run.stdout.split() == ["False", "False"]


# Channels and signing

RELEASES = """\
registry: registry.example.com/ml
signing: {public_key: keys/cosign.pub}
channels:
  staging: {}
  production: {require: [signature, audit], soak: {channel: staging, hours: 1.5}}
models:
  a: {version: "1.0.0", source: hf://acme/a, runtime: embeddings}
"""


def test_channels_and_signing(tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text(RELEASES)
    config = load_config(tmp_path / "models.yaml")
    assert list(config.channels) == ["staging", "production"]
    production = config.channels["production"]
    assert production.require == ("signature", "audit")
    assert production.soak is not None
    assert (production.soak.channel, production.soak.hours) == ("staging", 1.5)
    assert config.signing is not None
    assert config.signing.public_key == "keys/cosign.pub"


def test_usual_channels(tmp_path: Path) -> None:
    lines = RELEASES.splitlines(keepends=True)
    (tmp_path / "models.yaml").write_text(lines[0] + "".join(lines[5:]))
    config = load_config(tmp_path / "models.yaml")
    assert list(config.channels) == ["staging", "production"]
    assert all(not entry.require and entry.soak is None for entry in config.channels.values())
    assert config.signing is None


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "signing: {public_key: keys/cosign.pub}\n",
            "",
            "channels.production.require: a signature is required",
        ),
        ("channel: staging", "channel: stagin", "no channel \"stagin\"; did you mean 'staging'?"),
        ("channel: staging", "channel: production", "cannot have been in this very channel"),
        ("staging: {}", "Staging: {}", 'did you mean "staging"?'),
        ("staging: {}", "candidate-1: {}", "channels.candidate-1: expected a channel's name"),
        ("staging: {}", "staging-0001: {}", "channels.staging-0001: expected a channel's name"),
        ("public_key: keys/cosign.pub", "", "expected either 'public_key', or 'identity' and 'issuer'"),
        ("public_key: keys/cosign.pub", "identity: x", "by both 'identity' and 'issuer'"),
        (
            "public_key: keys/cosign.pub",
            "identity: x, issuer: https://ci.example.com",
            "need 'transparency_log: true'",
        ),
        ("public_key: keys/cosign.pub", "public_key: /etc/cosign.pub", "expected a PEM file relative to"),
        ("public_key: keys/cosign.pub", "key: cosign.key", "MODELBAKE_SIGNING_KEY"),
    ],
)
def test_channels_and_signing_that_cannot_be(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in RELEASES
    (tmp_path / "models.yaml").write_text(RELEASES.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "models.yaml")
    assert said in str(caught.value)
