"""Stubs of shared libraries, against real ones: loaded by the real loader, linked by a real library."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.images.test_slim import builder, left, site, slimmed, verify_record

# A real library without symbol versions is in this Python or in one of its packages; libz, say, has versions.
VERSIONED = "libz.so.1"


@pytest.fixture(scope="module")
def stub() -> Any:
    return builder("stub")


def in_a_process(program: str, *arguments: str) -> str:
    """Run Python in a process of its own: a library that does not load can end it."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_loader_takes_a_stub_and_every_function_fails(stub: Any, tmp_path: Path) -> None:
    names = [f"function_{number}" for number in range(200)]
    path = tmp_path / "libmade.so.1"
    path.write_bytes(
        stub.make_stub("libmade.so.1", [*names, "madeGetErrorString", "madeGetLastError"], "why")
    )
    program = (
        "import ctypes, sys; made = ctypes.CDLL(sys.argv[1]);"
        "print({getattr(made, f'function_{n}')() for n in range(200)});"
        "made.madeGetErrorString.restype = made.madeGetLastError.restype = ctypes.c_char_p;"
        "print(made.madeGetErrorString(3), made.madeGetLastError(None)); print(hasattr(made, 'absent'))"
    )
    assert in_a_process(program, str(path)).splitlines() == ["{3}", "b'why' b'why'", "False"]


def test_a_stub_is_read_as_it_was_made(stub: Any) -> None:
    """Sections are what `read_library` reads, and stubs have none: a stub of a stub is refused."""
    with pytest.raises(stub.StubError):
        stub.read_library(stub.make_stub("liba.so", ["f"], "why"))


def test_the_same_library_gives_the_same_bytes(stub: Any) -> None:
    assert stub.make_stub("l", ["a", "b"], "why") == stub.make_stub("l", ["a", "b"], "why")
    assert stub.make_stub("l", ["a", "b"], "why") != stub.make_stub("l", ["a", "c"], "why")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library, and another that is linked with it and calls it from one of its two functions."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler here")
    folder = tmp_path_factory.mktemp("compiled")
    (folder / "large.c").write_text(
        'int largeWork(int n) { return n * 2; }\nconst char *largeGetErrorString(int n) { return "fine"; }\n'
        "static int hidden(void) { return 1; }\nint largeOther(void) { return hidden(); }\n"
    )
    (folder / "user.c").write_text(
        "int largeWork(int); const char *largeGetErrorString(int);\n"
        "int works(void) { return 7; }\nint calls(void) { return largeWork(21); }\n"
        "const char *asks(void) { return largeGetErrorString(3); }\n"
    )
    (folder / "data.c").write_text("int largeData = 5;\nint largeWork(int n) { return n; }\n")
    common = [compiler, "-shared", "-fPIC", "-fvisibility=default"]
    for name in ("large", "data"):
        subprocess.run(
            [*common, f"-Wl,-soname,lib{name}.so.1", "-o", f"lib{name}.so.1", f"{name}.c"],
            cwd=folder,
            check=True,
        )
    linked = ["-Wl,-rpath,$ORIGIN", "-Wl,-z,now", "-o", "libuser.so", "user.c", "liblarge.so.1"]
    subprocess.run([*common, *linked], cwd=folder, check=True)
    return folder


def test_what_is_linked_with_a_library_loads_with_its_stub(stub: Any, compiled: Path, tmp_path: Path) -> None:
    program = (
        "import ctypes, sys; user = ctypes.CDLL(sys.argv[1]); user.asks.restype = ctypes.c_char_p;"
        "print(user.works(), user.calls(), user.asks())"
    )
    shutil.copytree(compiled, tmp_path / "lib")
    library = tmp_path / "lib/liblarge.so.1"
    assert in_a_process(program, str(tmp_path / "lib/libuser.so")) == "7 42 b'fine'\n"
    assert stub.read_library(library.read_bytes()) == stub.Library(
        "liblarge.so.1", ("largeGetErrorString", "largeOther", "largeWork")
    )
    library.write_bytes(stub.stub_of(library.read_bytes(), "one GPU"))
    said = in_a_process(program, str(tmp_path / "lib/libuser.so"))
    assert said == "7 3 b'not in this image: one GPU'\n"
    # The positive control of it: without any library of that name, nothing loads.
    library.unlink()
    with pytest.raises(AssertionError, match=r"liblarge\.so\.1: cannot open"):
        in_a_process(program, str(tmp_path / "lib/libuser.so"))


def test_slimming_puts_a_stub_in_the_place_of_a_library(compiled: Path, tmp_path: Path) -> None:
    made = site(tmp_path, "nvidia/nccl/lib/libnccl.so.2", "other.py")
    library = made / "nvidia/nccl/lib/libnccl.so.2"
    library.write_bytes((compiled / "liblarge.so.1").read_bytes())
    (library.parent / "libnccl.so").symlink_to("libnccl.so.2")
    (done,) = slimmed(made, remove={}, stub={"nvidia/nccl/lib/*": "one GPU"})
    assert left(made) == {"nvidia/nccl/lib/libnccl.so", "nvidia/nccl/lib/libnccl.so.2", "other.py"}
    assert done.files == 2
    assert ctypes.CDLL(str(library)).largeWork(21) == 3
    (library.parent / "libnccl.so").unlink()
    verify_record(made)


def test_what_a_stub_cannot_replace_is_refused(stub: Any, compiled: Path, tmp_path: Path) -> None:
    with pytest.raises(stub.StubError, match=r"data for others \(largeData\)"):
        stub.stub_of((compiled / "libdata.so.1").read_bytes(), "why")
    for wrong in (b"", b"\x7fELF", b"no library" * 100, (compiled / "liblarge.so.1").read_bytes()[:3000]):
        with pytest.raises(stub.StubError):
            stub.stub_of(wrong, "why")
    made = site(tmp_path, "a/lib.so")
    with pytest.raises(stub.StubError, match=r"a/lib\.so cannot be replaced by a stub"):
        slimmed(made, stub={"a/*.so": "why"})


def test_a_library_with_symbol_versions_is_refused(stub: Any) -> None:
    found = in_a_process(
        f"import ctypes; ctypes.CDLL({VERSIONED!r});"
        f"print([l.split()[-1] for l in open('/proc/self/maps') if {VERSIONED!r} in l or 'libz.so' in l][0])"
    ).strip()
    with pytest.raises(stub.StubError, match="versions"):
        stub.stub_of(Path(found).read_bytes(), "why")
