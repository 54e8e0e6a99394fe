from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from modelbake import yamlfile
from modelbake.errors import ConfigError
from modelbake.scalars import quoted
from modelbake.yamlfile import (
    DEEPEST,
    LARGEST_FILE,
    MOST_VALUES,
    YamlFile,
    dotted,
    parse_yaml,
    raise_problems,
    read_yaml,
)

NAME = Path("models.yaml")


@pytest.fixture(params=["C", "Python"], autouse=True)
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test runs with libyaml and with PyYAML's own parser, which is used where libyaml is not there."""
    if request.param == "C":
        assert yaml.__with_libyaml__
        assert yamlfile._LOADER is yaml.CSafeLoader
    else:
        monkeypatch.setattr(yamlfile, "_LOADER", yaml.SafeLoader)
    return str(request.param)


def parsed(text: str) -> YamlFile:
    return parse_yaml(text.encode(), NAME)


def refused(text: str | bytes) -> str:
    """Return all that is said about a text, which must be something."""
    with pytest.raises(ConfigError) as caught:
        file = parse_yaml(text if isinstance(text, bytes) else text.encode(), NAME)
        raise_problems(file.path, file.problems)
    return caught.value.message


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("", None),
        ("~", None),
        ("null", None),
        ("true", True),
        ("False", False),
        ("0", 0),
        ("-12", -12),
        ("+12", 12),
        ("1.10", 1.1),
        ("-.5", -0.5),
        ("1e-3", 0.001),  # PyYAML by itself takes this for text
        ("6.02E+23", 6.02e23),
        ("1.0.0", "1.0.0"),
        ("y", "y"),
        ("n", "n"),
        ("nan", "nan"),
        ("hf://a/b", "hf://a/b"),
        ("localhost:5000/a", "localhost:5000/a"),
        ('"yes"', "yes"),
        ("'0755'", "0755"),
        ('"2024-01-01"', "2024-01-01"),
        ('"a\\nb"', "a\nb"),
        ('"\\0"', "\0"),
        ("[1, [a], {}]", [1, ["a"], {}]),
        ("{a: {b: [c]}}", {"a": {"b": ["c"]}}),
        ("|\n  two\n  lines\n", "two\nlines\n"),
    ],
)
def test_what_all_readers_agree_on_is_read(written: str, meant: Any) -> None:
    file = parsed(f"key: {written}\n")
    assert file.data == {"key": meant}
    assert type(file.data["key"]) is type(meant)
    assert file.problems == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a:\n  b: 1\n  c: 2\n  b: 3\n",
            "models.yaml:4:3: a.b: duplicate key; the first is at line 2",
        ),
        (
            "a: &x 1\n",
            "models.yaml:1:4: a: anchors (&x) are not supported; `defaults` holds what models share",
        ),
        ("a: *x\n", "models.yaml:1:4: a: aliases (*x) are not supported; write the value out"),
        (
            "a: {<<: {b: 1}}\n",
            'models.yaml:1:5: a."<<": merge keys are not supported; `defaults` holds what models share',
        ),
        (
            "a: !!str 1.0\n",
            "models.yaml:1:4: a: tags (tag:yaml.org,2002:str) are not supported; quote what has to be text",
        ),
        (
            "a: !!python/object/apply:os.system [id]\n",
            "models.yaml:1:4: a: tags (tag:yaml.org,2002:python/object/apply:os.system) are not supported;"
            " quote what has to be text",
        ),
        ("a: !env X\n", "models.yaml:1:4: a: tags (!env) are not supported; quote what has to be text"),
        ("&a b: c\n", "models.yaml:1:1: b: anchors and tags on keys are not supported"),
        ("1: a\n", 'models.yaml:1:1: 1: a key has to be text; write "1" in quotes'),
        ("on: a\n", 'models.yaml:1:1: on: a key has to be text; write "on" in quotes'),
        ("null: a\n", 'models.yaml:1:1: null: a key has to be text; write "null" in quotes'),
        ("? [a]\n: b\n", "models.yaml:1:3: a key has to be text"),
        (
            "a: yes\n",
            "models.yaml:1:4: a: yes is a boolean for some YAML readers and not for others;"
            ' write "yes" in quotes, or true or false',
        ),
        (
            "a: [Off]\n",
            "models.yaml:1:5: a[0]: Off is a boolean for some YAML readers and not for others;"
            ' write "Off" in quotes, or true or false',
        ),
        (
            "a: 0755\n",
            "models.yaml:1:4: a: 0755 is an octal number for some YAML readers and not for others;"
            ' write "0755" in quotes, or a number without leading zeros',
        ),
        (
            "a: 0x1F\n",
            "models.yaml:1:4: a: 0x1F is a number for some YAML readers and not for others;"
            ' write "0x1F" in quotes, or a decimal number',
        ),
        (
            "a: 1_000\n",
            "models.yaml:1:4: a: 1_000 is a number for some YAML readers and not for others;"
            " write \"1_000\" in quotes, or a number without '_'",
        ),
        (
            "a: 1:30\n",
            "models.yaml:1:4: a: 1:30 is a base-60 number for some YAML readers and not for others;"
            ' write "1:30" in quotes',
        ),
        (
            "a: 2024-01-01\n",
            "models.yaml:1:4: a: 2024-01-01 is a date for some YAML readers and not for others;"
            ' write "2024-01-01" in quotes',
        ),
        (
            "a: -.inf\n",
            'models.yaml:1:4: a: numbers have to be finite; write "-.inf" in quotes if it is text',
        ),
        (
            "a: 1e999\n",
            'models.yaml:1:4: a: the number is too large or too long; write "1e999" in quotes if it is text',
        ),
        (
            f"a: {'9' * 5000}\n",
            "models.yaml:1:4: a: the number is too large or too long;"
            f' write "{"9" * 57}..." in quotes if it is text',
        ),
        ("--- 1\n--- 2\n", "models.yaml:2:1: a second document starts here; write one document a file"),
        ("", "models.yaml:1:1: the file is empty"),
        ("# nothing\n", "models.yaml:2:1: the file is empty"),
        (
            "a: " + "[" * 60,
            "models.yaml:1:53: a[0][0]: nested deeper than 50 levels",
        ),
        ("a: \x07\n", "models.yaml:1:4: unprintable character U+0007; write it as an escape"),
        ("a: b\n# \u202e\n", "models.yaml:2:3: unprintable character U+202E; write it as an escape"),
        ("a: b\u2028\n", "models.yaml:1:5: unprintable character U+2028; write it as an escape"),
        (b"a: 1\nb: \xc3\xa9\xff\n", "models.yaml:2:5: not UTF-8: byte 0xff"),
        ("a: 1\n".encode("utf-16"), "models.yaml:1:1: not UTF-8: byte 0xff"),
        (b"#" * (LARGEST_FILE + 1), "larger than 1 MiB"),
    ],
)
def test_what_is_refused_and_how(text: str | bytes, message: str) -> None:
    assert refused(text) == message


def test_syntax_errors_have_a_position() -> None:
    assert refused("a:\n  b: [1\nc: 2\n").startswith("models.yaml:3:")
    assert refused("a:\n\tb: 1\n").startswith("models.yaml:2:1: not YAML: found character")
    assert refused("a: 1\n b: 2\n").startswith("models.yaml:2:3: not YAML: mapping values")


def test_problems_before_a_syntax_error_are_reported_with_it() -> None:
    lines = refused("a: yes\nb: [1\nc: 2\n").splitlines()
    assert lines[0].startswith("models.yaml:1:4: a: yes is a boolean")
    assert "not YAML" in lines[1]


def test_all_problems_are_reported_in_the_order_of_the_file() -> None:
    lines = refused("a: yes\nb: 0x1\na: 2\n7: x\n").splitlines()
    positions = [line.removeprefix("models.yaml:").split(": ")[0] for line in lines]
    assert positions == ["1:4", "2:4", "3:1", "4:1"]


def test_a_byte_order_mark_is_not_part_of_the_text() -> None:
    assert parse_yaml(b"\xef\xbb\xbfa: 1\n", NAME).data == {"a": 1}


def test_positions_of_keys_and_values() -> None:
    file = parsed('# top\nmodels:\n  minilm:\n    include: ["a", b]\n    version: 1.10\n')
    assert file.position(("models", "minilm", "version")) == (5, 14)
    assert file.position(("models", "minilm", "version"), of_key=True) == (5, 5)
    assert file.position(("models", "minilm", "include", 1)) == (4, 20)
    assert file.position(("models", "minilm", "absent", "deeper")) == (3, 3)
    assert file.position(("absent",)) == (2, 1)
    assert file.written(("models", "minilm", "version")) == "1.10"
    assert file.written(("models", "minilm", "include", 0)) is None
    assert file.written(("models", "absent")) is None


def test_deepest_allowed_nesting() -> None:
    depth = DEEPEST - 1
    assert parsed("a: " + "[" * depth + "]" * depth).problems == ()
    assert "nested deeper" in refused("a: " + "[" * (depth + 1) + "]" * (depth + 1))


@pytest.mark.promise("parsers")
@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? "])
def test_a_file_made_to_overflow_a_parser_is_refused_quickly(opening: str) -> None:
    began = time.perf_counter()
    assert refused(opening * (100_000 // len(opening)))
    assert time.perf_counter() - began < 5


def test_key_paths_as_people_write_them() -> None:
    path = ("models", "llama-3.2", "smoke", "checks", 0, "expect", "data[0]", 'a"\n')
    assert dotted(path) == 'models.llama-3.2.smoke.checks[0].expect."data[0]"."a\\"\\n"'
    assert dotted(()) == ""
    assert quoted("é" + "x" * 100) == f'"é{"x" * 56}..."'


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file") as caught:
        read_yaml(tmp_path / "absent.yaml")
    assert caught.value.subject == str(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="not a regular file"):
        read_yaml(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="not a regular file"):  # and does not wait for a writer
        read_yaml(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path / "nul\0")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path / ("x" * 300))
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * LARGEST_FILE + b"\na: 1")
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        read_yaml(large)
    exact = tmp_path / "exact.yaml"
    exact.write_bytes(b"a: 1\n" + b"#" * (LARGEST_FILE - 5))
    assert read_yaml(exact).data == {"a": 1}


texts = st.text(st.characters(codec="utf-8"), max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**17), 10**17) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


def _joined(found: re.Match[str]) -> str:
    return found[1] + str(json.loads(f'"{found[2]}"'))


class TestAnything:
    @settings(deadline=None)  # a busy machine is not a defect
    @given(json_values)
    def test_json_is_read_as_what_it_is(self, value: Any) -> None:
        escaped = json.dumps({"key": value})
        # YAML writes a character beyond U+FFFF as itself; it has no escapes by surrogate pairs.
        document = re.sub(r"(?<!\\)((?:\\\\)*)(\\ud[89ab]..\\ud[c-f]..)", _joined, escaped)
        assert parsed(document).data == {"key": value}

    @settings(deadline=None)  # a busy machine is not a defect
    @given(st.text(alphabet="ab: -[]{}&*!|>'\"%@`#?,\n\t1.0~<=\\", max_size=60) | st.text(max_size=40))
    def test_any_text_is_data_or_a_config_error(self, text: str) -> None:
        try:
            file = parse_yaml(text.encode("utf-8", "surrogatepass"), NAME)
            raise_problems(file.path, file.problems)
        except ConfigError as error:
            assert error.message
            assert "\x1b" not in str(error)
        else:
            json.dumps(file.data, allow_nan=False).encode()

    @settings(deadline=None)  # a busy machine is not a defect
    @given(st.binary(max_size=60))
    def test_any_bytes_are_data_or_a_config_error(self, content: bytes) -> None:
        try:
            parse_yaml(content, NAME)
        except ConfigError as error:
            assert error.message


def test_half_a_surrogate_pair_is_refused() -> None:
    assert refused('a: "\\ud800"\n').startswith("models.yaml:1:")


def test_a_file_has_so_many_values_and_no_more() -> None:
    numbers = ["1"] * (MOST_VALUES - 1)  # the list itself is one as well
    assert len(parsed(f"[{', '.join(numbers)}]").data) == MOST_VALUES - 1
    assert refused(f"[{', '.join(['1', *numbers])}]").endswith("more than 50,000 values in one file")
