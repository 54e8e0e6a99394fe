"""What must hold of every push and publish, whatever its registry does: it says what is so."""

from __future__ import annotations

from collections.abc import Callable

from modelbake.errors import ModelbakeError

# What is tried at a request: refusals, faults of servers and of networks, answers that are none.
KINDS: tuple[int | str, ...] = (
    400, 401, 403, 404, 413, 429, 500, 503, "reset", "garbage", "truncate", "lose", "slow", "hang",
)  # fmt: skip
# The tag was put, and whether it is there could not be found out.
_UNCERTAIN = ("was sent, but could not be read back", "took the tag, but does not have it")


def require_truth(
    claimed: str | None, error: ModelbakeError | None, tag: str | None, *, right: Callable[[str], bool]
) -> None:
    """Hold a run to what the registry has, asked past everything that was in the way.

    Args:
        claimed: the digest that the run said it released, None where it failed.
        error: how it failed.
        tag: the digest under the version tag.
        right: whether a digest is that of the image which was to be released.
    """
    if claimed is not None:
        assert tag == claimed, f"a false success: {claimed} is said to be released, the tag is {tag}"
        assert right(claimed), f"a false success: {claimed} is not the image"
    elif tag is not None:
        said = str(error)
        assert any(words in said for words in _UNCERTAIN), f"a version tag on a failure: {tag} ({said})"
        assert right(tag), f"a version tag on a failure, and of another image: {tag} ({said})"
