from __future__ import annotations

import pickle
import re

from modelbake import errors
from modelbake.errors import ModelbakeError


def _classes(root: type[ModelbakeError] = ModelbakeError) -> list[type[ModelbakeError]]:
    return [root, *(found for child in root.__subclasses__() for found in _classes(child))]


def test_every_class_has_its_own_exit_code() -> None:
    codes = [cls.exit_code for cls in _classes()]
    assert len(codes) == len(set(codes)) > 30
    assert all(0 < code < 256 for code in codes)
    # argparse's own and the shell's codes (126: cannot execute, 127: not found) stay free.
    assert not {126, 127} & set(codes)


def test_the_tree_in_the_docstring_is_the_tree_in_the_code() -> None:
    drawn = dict(re.findall(r"(\w+)\s+(\d+)   \S", errors.__doc__ or ""))
    assert {name: int(code) for name, code in drawn.items()} == {
        cls.__name__: cls.exit_code for cls in _classes()
    }


def test_the_text_names_subject_problem_and_remedy() -> None:
    error = ModelbakeError("is wrong", subject="models.yaml", hint="mend it")
    assert str(error) == "models.yaml: is wrong\n  hint: mend it"
    assert str(ModelbakeError("is wrong")) == "is wrong"


def test_every_class_survives_the_way_to_another_process() -> None:
    for cls in _classes():
        error = cls("is wrong", subject="models.yaml", hint="mend it")
        found = pickle.loads(pickle.dumps(error))  # noqa: S301
        assert type(found) is cls
        assert (found.message, found.subject, found.hint) == ("is wrong", "models.yaml", "mend it")
        assert str(found) == str(error)
