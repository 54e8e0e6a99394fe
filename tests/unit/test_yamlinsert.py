"""A model is put into models.yaml, and every byte that was there stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelbake.errors import ConfigError
from modelbake.yamlfile import parse_yaml
from modelbake.yamlinsert import Entry, insert_model, new_file

PATH = Path("models.yaml")
ENTRY: Entry = {
    "version": "1.0.0",
    "source": "s3://models/llama/3.2",
    "exclude": ["*.pth"],
    "runtime": "transformers",
}
HEAD = "registry: r.example.com/ml   # ours\n"
MODEL = '  a:\n    version: "1.0.0"   # quoted\n    source: hf://a/b\n    runtime: weights\n'


def inserted(text: str, entry: Entry = ENTRY, name: str = "llama") -> str:
    """Insert, and check that the rest is as it was: what was put in is taken out again."""
    result = insert_model(text.encode(), PATH, name, entry).decode()
    at = (
        next(index for index, pair in enumerate(zip(text, result, strict=False)) if pair[0] != pair[1])
        if (not result.startswith(text))
        else len(text)
    )
    assert result[:at] + result[at + len(result) - len(text) :] == text
    before, after = (parse_yaml(each.encode(), PATH).data for each in (text, result))
    assert after == {**before, "models": {**before["models"], name: dict(entry)}}
    return result


def test_a_model_goes_behind_the_last_one_in_the_files_own_form() -> None:
    result = inserted(f"{HEAD}models:\n{MODEL}")
    assert result == (
        f"{HEAD}models:\n{MODEL}  llama:\n"
        '    version: "1.0.0"\n    source: s3://models/llama/3.2\n    exclude: ["*.pth"]\n'
        "    runtime: transformers\n"
    )


@pytest.mark.parametrize(
    "after",
    [
        "",
        "\n\n",
        "\n# of the next key\nchannels:\n  staging: {}\n",
        "    # of the last model\n",
        "# b:\n#   version: was here\n",
        "...\n",
        "   \n#\ta tab\t\n",
    ],
)
def test_what_follows_stays_what_it_is(after: str) -> None:
    result = inserted(f"{HEAD}models:  # all\n  # the first\n{MODEL}{after}")
    assert f"{MODEL}  llama:" in result or "last model\n  llama:" in result


def test_keys_before_and_behind_and_another_indentation() -> None:
    deep = " " * 10
    model = f'models:\n    a:\n{deep}version: "1.0.0"\n{deep}source: hf://a/b\n{deep}runtime: weights\n'
    result = inserted(f"---\n{model}\n{HEAD}")
    assert '\n    llama:\n          version: "1.0.0"\n' in result


def test_models_that_are_set_apart_by_empty_lines_stay_so() -> None:
    two = f"{MODEL}\n  # the second\n{MODEL.replace('a:', 'b:', 1)}"
    assert "runtime: weights\n\n  llama:\n" in inserted(f"{HEAD}models:\n{two}")


def test_windows_line_ends_and_a_byte_order_mark() -> None:
    text = f"\ufeff{HEAD}models:\n{MODEL}".replace("\n", "\r\n")
    result = insert_model(text.encode(), PATH, "llama", ENTRY).decode()
    assert result.startswith(text) and result.count("\n") == result.count("\r\n")


def test_no_final_newline() -> None:
    assert inserted(f"{HEAD}models:\n{MODEL.rstrip()}").startswith(f"{HEAD}models:\n{MODEL}  llama:\n")


@pytest.mark.parametrize(
    "models",
    [
        '{"a": {"version": "1.0.0", "source": "hf://a/b", "runtime": "weights"}}',
        "{a: {version: '1.0.0', source: 'hf://a/b', runtime: weights,},}  # flow",
        '{\n    "a": {\n      "version": "1.0.0",\n      "source": "hf://a/b"\n    }\n  }',
        "{\n  a: {version: '1.0.0', source: 'hf://a/b'}  # the first\n  # more to come\n  }",
    ],
)
def test_flow_style_and_json(models: str) -> None:
    assert '"llama": {' in inserted(f"registry: r.example.com/ml\nmodels: {models}\n")


def test_json_stays_json() -> None:
    import json

    text = json.dumps({"registry": "r.example.com/ml", "models": {"a": {"version": "1.0.0"}}}, indent=2)
    assert json.loads(inserted(text))["models"]["llama"] == dict(ENTRY)
    assert '\n    "llama": {\n      "version": "1.0.0",\n' in inserted(text)


def test_a_model_in_flow_style_below_a_key() -> None:
    assert "  llama:\n" in inserted(f"{HEAD}models:\n  a: {{version: '1.0.0', runtime: weights}}\n")


def test_text_that_looks_like_yaml_is_quoted() -> None:
    entry: Entry = {"version": "1.0.0", "source": "file:///srv/with space #1/ä: b", "include": ["[a]*"]}
    assert 'source: "file:///srv/with space #1/ä: b"' in inserted(f"{HEAD}models:\n{MODEL}", entry)
    assert '  "off":\n' in inserted(f"{HEAD}models:\n{MODEL}", name="off")


@pytest.mark.parametrize(
    "text",
    [
        # The end of the text would become that of the entry.
        f"{HEAD}models:\n  a:\n    version: |+\n      1\n\n\n",
        # A line that looks like a comment, and is none.
        f'{HEAD}models:\n  a:\n    version: "1\n# 2"\n',
    ],
)
def test_what_cannot_be_done_safely_is_not_done(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        insert_model(text.encode(), PATH, "llama", ENTRY)
    assert "by hand" in caught.value.hint and "  llama:\n" in caught.value.hint


def test_a_new_file_is_one_that_can_be_read() -> None:
    data = parse_yaml(new_file("r.example.com:5000/ml", "llama", ENTRY), PATH).data
    assert data == {"registry": "r.example.com:5000/ml", "models": {"llama": dict(ENTRY)}}
