from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelbake.errors import RenderError
from modelbake.requirements import normalised, read_requirements, split_requirements, unhashed

IMAGES = Path(__file__).resolve().parents[2] / "images"
TEXT = """\
# compiled by somebody
--index-url https://example.com/simple
Torch==2.0 \\
    --hash=sha256:aa \\
    --hash=sha256:bb

nvidia.cublas_cu13==13 --hash=sha256:cc   # heavy
web[standard] == 1 ; python_version > "3" --hash=sha256:dd
direct @ https://example.com/direct.whl --hash=sha256:ee
last==1
"""


def test_layers_have_their_packages_and_the_rest_is_one_more() -> None:
    heavy, direct, rest = split_requirements(TEXT, [["torch", "nvidia-*"], ["direct"]], "r.txt")
    option = "--index-url https://example.com/simple\n"
    assert heavy == (
        f"{option}Torch==2.0 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n"
        "nvidia.cublas_cu13==13 --hash=sha256:cc   # heavy\n"
    )
    assert direct == f"{option}direct @ https://example.com/direct.whl --hash=sha256:ee\n"
    assert rest == f'{option}web[standard] == 1 ; python_version > "3" --hash=sha256:dd\nlast==1\n'


def test_a_package_is_in_the_first_layer_that_names_it() -> None:
    first, second = split_requirements("torch==1\nweb==1\n", [["t*"], ["torch"], ["*"]], "r.txt")
    assert (first, second) == ("torch==1\n", "web==1\n")


@pytest.mark.parametrize("layers", [[], [["absent"]], [["*"]]])
def test_a_file_of_one_layer_stays_as_it_is(layers: list[list[str]]) -> None:
    assert split_requirements(TEXT, layers, "r.txt") == (TEXT,)


@pytest.mark.parametrize("line", ["./local.whl", "https://example.com/a.whl", "==1", "torch$1"])
def test_what_has_no_name_is_refused_with_its_place(line: str) -> None:
    with pytest.raises(RenderError, match=rf"^r\.txt:3: .*{re.escape(line)[:20]}"):
        split_requirements(f"a==1 \\\n  --hash=x\n{line}\n", [["a"]], "r.txt")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("torch>=2\n", [(1, "torch>=2")]),
        ("# a\n\ntorch==2 \\\n    # via x\n", [(3, "torch==2")]),
        ("torch==2  # --hash=sha256:aa\n", [(1, "torch==2")]),
        ("torch==2 --hash=md5:aa\n", [(1, "torch==2 --hash=md5:aa")]),
        ("a==1 --hash=sha256:aa\nb==1\nc @ https://example.com/c.whl\n",
         [(2, "b==1"), (3, "c @ https://example.com/c.whl")]),
        ("--index-url https://example.com\na==1 --hash=sha256:aa # x\n", []),
        ("a==1 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n    # via x\n", []),
        ("a==1 ; python_version > '3' --hash sha512:aa\n", []),
        ("https://example.com/a.whl#sha256=aa --hash=sha256:aa\n", []),
        ("", []),
    ],
)  # fmt: skip
def test_what_no_hash_pins_is_found_with_its_line(text: str, found: list[tuple[int, str]]) -> None:
    assert unhashed(text) == found


def test_the_toolkits_own_runtimes_are_pinned_by_hash() -> None:
    for path in sorted(IMAGES.glob("*/requirements*.txt")):
        assert unhashed(path.read_text()) == []


def test_names_are_compared_as_indexes_do() -> None:
    assert normalised("Foo.Bar__baz") == "foo-bar-baz"


@given(
    st.lists(st.sampled_from(["torch==1", "nvidia-a==2", "web==3", "numpy==4"]), unique=True),
    st.lists(st.lists(st.sampled_from(["torch", "nvidia-*", "n*"]), min_size=1), max_size=3),
)
def test_nothing_is_lost_and_nothing_is_twice(lines: list[str], layers: list[list[str]]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    cut = split_requirements(text, layers, "r.txt")
    assert sorted("".join(cut).splitlines()) == sorted(lines)


def test_the_pins_of_this_repository_are_cut() -> None:
    for path in sorted(IMAGES.glob("*/requirements.c*.txt")):
        text = path.read_text()
        names = {entry.name for entry in read_requirements(text, path.name)}
        assert names == set(re.findall(r"^([a-z0-9-]+)==", text, re.M))
        if "torch" in names:
            heavy, _ = split_requirements(text, [["torch", "triton", "nvidia-*", "cuda-*"]], path.name)
            assert heavy.startswith("cuda-" if "cuda" in path.name else "torch==")
