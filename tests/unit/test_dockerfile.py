"""The parser of Dockerfiles: it reads them as BuildKit's own parser does, or refuses them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelbake.dockerfile import DockerfileError, parse
from modelbake.dockerwords import Variable
from tests.conftest import Tally
from tests.promises import cases
from tests.unit.buildkit_reading import by_buildkit, comparable


def read(text: str) -> list[tuple[Any, ...]]:
    """Return keyword, flags and words of every instruction."""
    return [(each.keyword, each.flags, each.words) for each in parse(text).instructions]


INSTRUCTIONS = (
    *(
        "FROM a AS b",
        "RUN",
        "RUN ",
        'RUN ["a", "b"]',
        "COPY --link --from=x a b",
        "ENV a=b",
        "ENV a b",
        "run x",
    ),
    *('LABEL "a"="b c"', "LABEL ", "CMD", 'CMD ["x"]', "USER 1", "WORKDIR /a", "EXPOSE 80", "ARG a=b"),
    *("ONBUILD RUN x", "HEALTHCHECK CMD x", "VOLUME /a"),
)
DIRECTIVES = ("# syntax=x\n", "# escape=`\n", "# escape=\\\n", "#escape = `\n", "# check=skip=all\n", "#!x\n")
LINE_ENDS = (
    "\n",
    "\n",
    "\n",
    "\n\n",
    "\\\n",
    "\\ \n",
    "\\\\\n",
    "`\n",
    "# c\n",
    "\u2028",
    "\r",
    "\x0b",
    "\x85",
)
MARKS = (
    *("\t", " ", "  ", "\\", '"', "'", "$a", "${a}", "\\$", "${", "=", "[", "]", '["a"', "a", "#", "é", "//"),
    *("<<EOF", "<<-EOF", '<<"EOF"', "\nEOF\n", "\n\tEOF\n", "<<", "EOF", "--mount=type=secret,id=a ", "--"),
    *("--x ", "\u00a0", "\u3000", "\x0c", "\x00", "\ufeff", "\u202e", "{{ x }}", "\ud800"),
)
PIECES = st.sampled_from([*INSTRUCTIONS, *DIRECTIVES, *LINE_ENDS, *MARKS])
TEXTS = st.lists(PIECES, max_size=24).map("".join)
# Most random texts are refused; these begin well.
GOOD_TEXTS = TEXTS.map(lambda text: f"FROM a AS b\nRUN x\n{text}\nRUN y\n")


def read_alike(text: str) -> bool:
    """Tell whether a text was read at all; fail where BuildKit reads it otherwise."""
    try:
        parsed = parse(text)
    except DockerfileError:
        return False  # no engine ever sees it
    if parsed.instructions:
        theirs = by_buildkit(text, parsed.directives.get("escape", "\\"))
        assert [comparable(each) for each in parsed.instructions] == theirs
    return bool(parsed.instructions)


@pytest.mark.promise("dockerfile")
def test_what_is_read_is_read_as_buildkit_reads_it(tally: Tally) -> None:
    accepted = 0

    @settings(max_examples=cases(400, 5_000), deadline=None, database=None)
    @given(TEXTS | GOOD_TEXTS)
    def check(text: str) -> None:
        nonlocal accepted
        tally.count()
        accepted += read_alike(text)

    check()
    assert accepted > tally.tried / 20, "the texts are not all refused"


@pytest.mark.control("dockerfile")
def test_a_parser_that_knows_no_here_documents_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "FROM a\nRUN cat <<USER\nRUN b\nUSER\n"
    assert read_alike(text)
    monkeypatch.setattr("modelbake.dockerfile._WITH_HEREDOCS", ())
    with pytest.raises(AssertionError):
        read_alike(text)


def test_instructions_with_their_lines() -> None:
    parsed = parse("# c\n\nfrom a AS b\n  RUN --mount=type=secret,id=x \\\n # c\n\n  x y\nUSER 1")
    assert [(each.line, each.keyword) for each in parsed.instructions] == [
        (3, "FROM"),
        (4, "RUN"),
        (8, "USER"),
    ]
    assert parsed.instructions[1].flags == ("--mount=type=secret,id=x",)
    assert parsed.instructions[1].words == (("x y",),)
    assert parsed.directives == {}


def test_words_and_what_they_mean() -> None:
    assert read(r'ENV A="b\"\$c\\ d" B=$C' ":$D E='$f\\'") == [
        ("ENV", (), (("A",), ('b"$c\\ d',), ("B",), (Variable("C"), ":", Variable("D")), ("E",), ("$f\\",)))
    ]
    assert read('LABEL "a b"="" c=d\\ e\\$f') == [("LABEL", (), (("a b",), (), ("c",), ("d e$f",)))]
    assert read('CMD ["a", "", "$b"]') == [("CMD", (), (("a",), (), ("$b",)))]
    assert read("COPY --link a $b/ c") == [("COPY", ("--link",), (("a",), (Variable("b"), "/"), ("c",)))]


def test_directives() -> None:
    assert parse("# syntax=docker/dockerfile:1\n# Escape = `\nFROM a`\n AS b\n").directives == {
        "syntax": "docker/dockerfile:1",
        "escape": "`",
    }
    assert read("# escape=`\nFROM a`\n AS b\n") == [("FROM", (), (("a",), ("AS",), ("b",)))]
    assert parse("# a comment\n# syntax=x\nFROM a").directives == {}
    assert parse("#!/usr/bin/env x\n# syntax=x\nFROM a").directives == {"syntax": "x"}


def test_here_documents_are_bodies_and_no_instructions() -> None:
    parsed = parse("RUN <<EOF cat <<-'X'\nRUN a\nEOF\n\tb\n\tX\nUSER 1\n")
    assert [each.keyword for each in parsed.instructions] == ["RUN", "USER"]
    assert parsed.instructions[0].heredocs == ("RUN a\n", "\tb\n")
    assert [each.keyword for each in parse('ENV a="<<EOF"\nRUN ["<<EOF"]\nUSER 1').instructions] == [
        "ENV", "RUN", "USER",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("FROM a\nRUN b\rRUN c", "line 2: holds the control character U+000D"),
        ("FROM a\nUSER b\0\nRUN c", "line 2: holds the control character U+0000"),
        ("FROM a\nLABEL b=\u2028c", "line 2: holds the control character U+2028"),
        ("\ufeffFROM a", "line 1: holds the control character U+FEFF"),
        ("FROM\u00a0a", "line 1: the space U+00A0 outside double quotes"),
        ("FROM a\nENV a=b\\\\\nRUN c", r"line 2: ends with \\"),
        ("FROM a\nRUN b \\", "line 2: goes on behind the end of the file"),
        ("FROM a\nRUN <<EOF\nb", "line 2: the here-document has no end: no line EOF"),
        ("FROM a\nRUN echo '<<EOF'\nb\nEOF", "line 2: quotes or another << beside a here-document"),
        ("FROM a\nRUN x <<E\"O\"F\nb\nEOF", "line 2: quotes or another <<"),
        ("FROM a\nONBUILD RUN <<EOF\nb\nEOF", "line 2: ONBUILD with a here-document"),
        ('FROM a\nRUN --mount="x y" b', "line 2: a flag that is not --name"),
        ('FROM a\nRUN ["a", b]', "line 2: begins with [ and is no JSON list of texts"),
        ("FROM a\nRUN [1]", "line 2: begins with [ and is no JSON list of texts"),
        (f"FROM a\nRUN {'[' * 10_000}", "line 2: begins with [ and is no JSON list of texts"),
        ("FROM a\nENV a b", "line 2: expected NAME=VALUE"),
        ('FROM a\nENV a="b', 'line 2: a quotation mark " without its other half'),
        ("FROM a\nENV a=${b:-c}", "line 2: a $ that is neither escaped"),
        ("FROM a\nENV a=$1", "line 2: a $ that is neither escaped"),
        ('FROM a\nCOPY "a b" c', "line 2: quotes in COPY; write its JSON form"),
        ("FROM a\nFETCH b", "line 2: no instruction begins with 'FETCH'"),
        ('{"syntax": "x"}', "line 1: no instruction begins with"),
        ("// syntax=x\nFROM a", "line 1: no instruction begins with '//'"),
        ("# syntax=a\n# syntax=b\nFROM a", "line 2: a second directive `syntax`"),
        ("# escape=x\nFROM a", "line 1: `escape` is neither"),
    ],
)  # fmt: skip
def test_what_is_unclear_is_refused_with_its_line(text: str, problem: str) -> None:
    with pytest.raises(DockerfileError) as raised:
        parse(text)
    assert problem in str(raised.value)
