"""What slimming removes from a site-packages folder, and what it must leave there."""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

BUILDER = Path(__file__).parents[3] / "images" / "builder"


def builder(name: str) -> Any:
    """Import a module of the builder stage; its folder is on no path, as nothing else may import from it."""
    sys.path.insert(0, str(BUILDER))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BUILDER))


# For each rule: what it has to remove, and what looks like it and has to stay.
RULES: dict[str, tuple[list[str], list[str]]] = {
    "torch/include/**": (["torch/include/ATen/ATen.h"], ["torch/include.py", "mytorch/include/a.h"]),
    "torch/share/cmake/**": (["torch/share/cmake/Torch/TorchConfig.cmake"], ["torch/share/data.json"]),
    # torch does not even import without torch_shm_manager.
    "torch/bin/protoc*": (["torch/bin/protoc", "torch/bin/protoc-3.13.0.0"], ["torch/bin/torch_shm_manager"]),
    "nvidia/**/include/**": (
        ["nvidia/cu13/include/cuda.h", "nvidia/cublas/include/sub/cublas.h"],
        ["nvidia/cu13/lib/libcublas.so.13"],
    ),
    "numpy/**/include/**": (["numpy/_core/include/numpy/ndarraytypes.h"], ["numpy/_core/include.py"]),
    "**/*.a": (["a.a", "nvidia/cu13/lib/libcudart_static.a"], ["lib/libx.alpha", "a/x.a.py"]),
    "**/*.pxd": (["numpy/__init__.pxd"], ["numpy/pxd.py"]),
    "**/*.pyi": (["torch/_C/__init__.pyi"], ["torch/_C.py", "x/a.pyi.py"]),
    "nvidia/nvshmem/lib/*.bc": (
        ["nvidia/nvshmem/lib/libnvshmem_device.bc"],
        ["triton/backends/nvidia/lib/libdevice.10.bc", "nvidia/nvshmem/lib/libnvshmem_host.so.3"],
    ),
    "**/tests/**": (
        ["sympy/core/tests/test_basic.py", "tests/x.py", "a/tests/b/c.txt"],
        [
            "jinja2/tests.py",
            "numpy/testing/__init__.py",
            "torch/_inductor/test_operators.py",
            "contests/a.py",
        ],
    ),
    "torch/testing/_internal/common_methods_invocations.py": (
        ["torch/testing/_internal/common_methods_invocations.py"],
        ["torch/testing/__init__.py", "torch/testing/_internal/common_dtype.py"],
    ),
    "torch/testing/_internal/common_utils.py": (
        ["torch/testing/_internal/common_utils.py"],
        ["torch/testing/_internal/logging_tensor.py"],
    ),
    "torch/testing/_internal/opinfo/**": (
        ["torch/testing/_internal/opinfo/core.py"],
        ["torch/testing/_internal/__init__.py"],
    ),
    "torch/testing/_internal/distributed/*test*.py": (
        ["torch/testing/_internal/distributed/distributed_test.py"],
        ["torch/testing/_internal/distributed/fake_pg.py"],
    ),
    "nvidia/*/lib/libnvrtc.alt.so*": (
        ["nvidia/cu13/lib/libnvrtc.alt.so.13"],
        ["nvidia/cu13/lib/libnvrtc.so.13", "nvidia/cuda_nvrtc/lib/libnvrtc.so.12"],
    ),
    "nvidia/*/lib/libnvrtc-builtins.alt.so*": (
        ["nvidia/cu13/lib/libnvrtc-builtins.alt.so.13.0"],
        ["nvidia/cu13/lib/libnvrtc-builtins.so.13.0"],
    ),
    "nvidia/*/lib/libcusolverMg.so*": (
        ["nvidia/cu13/lib/libcusolverMg.so.12"],
        ["nvidia/cu13/lib/libcusolver.so.12"],
    ),
    "nvidia/*/lib/libcufftw.so*": (["nvidia/cu13/lib/libcufftw.so.12"], ["nvidia/cu13/lib/libcufft.so.12"]),
    "nvidia/*/lib/libnvblas.so*": (["nvidia/cu13/lib/libnvblas.so.13"], ["nvidia/cu13/lib/libcublas.so.13"]),
    "nvidia/*/lib/libnvperf_*.so*": (
        ["nvidia/cu13/lib/libnvperf_host.so", "nvidia/cu13/lib/libnvperf_target.so"],
        ["nvidia/cu13/lib/libcupti.so.13"],
    ),
    "nvidia/*/lib/libpcsamplingutil.so*": (["nvidia/cu13/lib/libpcsamplingutil.so"], []),
    "nvidia/*/lib/libcheckpoint.so*": (["nvidia/cu13/lib/libcheckpoint.so"], []),
    "nvidia/nvshmem/lib/nvshmem_bootstrap_*.so*": (
        ["nvidia/nvshmem/lib/nvshmem_bootstrap_mpi.so.3"],
        ["nvidia/nvshmem/lib/libnvshmem_host.so.3"],
    ),
    "nvidia/nvshmem/lib/nvshmem_transport_*.so*": (
        ["nvidia/nvshmem/lib/nvshmem_transport_ibrc.so.3"],
        ["nvidia/nvshmem/lib/libnvshmem_host.so.3"],
    ),
}
NEEDED = sorted({path for _, stays in RULES.values() for path in stays})


def site(folder: Path, *paths: str, package: str = "pack") -> Path:
    """Make a site-packages folder of one package with these files, and a RECORD of them."""
    made = folder / "site-packages"
    info = f"{package}-1.0.dist-info"
    files = {path: f"# {path}\n".encode() for path in paths}
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n".encode()
    files[f"{info}/licenses/torch/include/tests/LICENSE.a"] = b"a licence has to stay\n"
    for path, content in files.items():
        (made / path).parent.mkdir(parents=True, exist_ok=True)
        (made / path).write_bytes(content)
    rows = [[path, recorded(content), str(len(content))] for path, content in files.items()]
    with (made / info / "RECORD").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([*rows, [f"{info}/RECORD", "", ""]])
    return made


def recorded(content: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def slimmed(
    made: Path,
    *,
    remove: Mapping[str, str] | None = None,
    stub: Mapping[str, str] | None = None,
    keep: tuple[str, ...] = (),
) -> list[Any]:
    slim = builder("slim")
    return list(slim.slim(made, slim.Instructions(remove or {}, stub or {}, keep)))


def left(made: Path) -> set[str]:
    paths = {path.relative_to(made).as_posix() for path in made.rglob("*") if not path.is_dir()}
    return {path for path in paths if ".dist-info/" not in path}


def verify_record(made: Path) -> None:
    """Everything that RECORD lists is there with the bytes it says, and nothing is missing from it."""
    (record,) = made.glob("*.dist-info/RECORD")
    rows = {row[0]: row for row in csv.reader(record.read_text().splitlines())}
    for path, row in rows.items():
        content = (made / path).read_bytes()
        if row[1]:
            assert row[1:] == [recorded(content), str(len(content))], path
    assert set(rows) == {p.relative_to(made).as_posix() for p in made.rglob("*") if p.is_file()}


def test_each_rule_has_a_case_here() -> None:
    slim_rules = builder("slim_rules")
    assert set(RULES) == set(slim_rules.RULES)
    assert all(reason.strip() for reason in slim_rules.RULES.values())


@pytest.mark.parametrize("pattern", RULES)
def test_a_rule_removes_what_it_is_for_and_nothing_that_looks_like_it(pattern: str, tmp_path: Path) -> None:
    goes, stays = RULES[pattern]
    made = site(tmp_path, *goes, *stays, "other/__init__.py")
    (done,) = slimmed(made, remove={pattern: "because"})
    assert left(made) == {*stays, "other/__init__.py"}
    assert (done.files, done.bytes) == (len(goes), sum(len(f"# {path}\n") for path in goes))
    verify_record(made)


def test_all_rules_together_leave_what_is_needed(tmp_path: Path) -> None:
    slim_rules = builder("slim_rules")
    gone = sorted({path for goes, _ in RULES.values() for path in goes})
    made = site(tmp_path, *gone, *NEEDED)
    slimmed(made, remove=slim_rules.RULES)
    assert left(made) == set(NEEDED)
    verify_record(made)


def test_metadata_is_never_removed(tmp_path: Path) -> None:
    made = site(tmp_path, "pack/a.py")
    slimmed(made, remove={"**": "everything"})
    assert left(made) == set()
    assert (made / "pack-1.0.dist-info/licenses/torch/include/tests/LICENSE.a").exists()
    assert (made / "pack-1.0.dist-info/METADATA").exists()
    verify_record(made)


def test_a_removed_package_is_not_found_by_import_any_more(tmp_path: Path) -> None:
    """An empty folder would be, as a namespace package, and torch takes triton for installed then."""
    made = site(tmp_path, "heavy/__init__.py", "heavy/deep/deeper/x.py", "other/__init__.py")
    find = "import importlib.util, sys; print(importlib.util.find_spec(sys.argv[1]) is not None)"

    def found(name: str) -> str:
        run = [sys.executable, "-S", "-c", find, name]
        env = {"PYTHONPATH": str(made), "PATH": ""}
        return subprocess.run(run, env=env, capture_output=True, text=True, check=True).stdout.strip()

    assert found("heavy") == "True"
    slimmed(made, remove={"heavy/**": "because"})
    assert found("heavy") == "False"
    assert found("other") == "True"


def test_what_is_kept_goes_before_every_rule(tmp_path: Path) -> None:
    made = site(tmp_path, "torch/include/a.h", "torch/include/deep/b.h", "triton/x.so")
    slimmed(
        made, remove={"torch/include/**": "", "triton/**": ""}, keep=("torch/include/deep/*", "triton/**")
    )
    assert left(made) == {"torch/include/deep/b.h", "triton/x.so"}


def test_a_file_is_counted_once(tmp_path: Path) -> None:
    made = site(tmp_path, "torch/include/tests/a.h")
    first, second = slimmed(made, remove={"torch/include/**": "", "**/tests/**": ""})
    assert (first.files, second.files) == (1, 0)


def test_links_go_and_what_they_name_stays(tmp_path: Path) -> None:
    made = site(tmp_path, "lib/libx.so.1")
    (made / "lib/libx.so").symlink_to("libx.so.1")
    (made / "lib/include").symlink_to("/usr/include")
    slimmed(made, remove={"lib/libx.so": "", "lib/include": "", "lib/include/**": ""})
    assert left(made) == {"lib/libx.so.1"}
    assert Path("/usr/include").is_dir()


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("a/*.so", "a/b.so", True),
        ("a/*.so", "a/b/c.so", False),
        ("a/?.so", "a/bb.so", False),
        ("a/**", "a/b/c", True),
        ("a/**", "a", False),
        ("a/**", "ab/c", False),
        ("**/a", "a", True),
        ("**/a", "x/y/a", True),
        ("**/a", "xa", False),
        ("a/**/b", "a/b", True),
        ("a/**/b", "a/x/y/b", True),
        ("a.b", "axb", False),
        ("a+[b]", "a+[b]", True),
        ("a", "a\n", False),
    ],
)
def test_patterns(pattern: str, path: str, matches: bool) -> None:
    slim = builder("slim")
    assert bool(slim.matcher(pattern).fullmatch(path)) is matches


def test_instructions_are_read_after_the_rules_for_all(tmp_path: Path) -> None:
    slim, slim_rules = builder("slim"), builder("slim_rules")
    file = tmp_path / "slim.json"
    file.write_text(json.dumps({"remove": {"triton/**": "why"}, "stub": {"x.so": "y"}, "keep": ["z"]}))
    read = slim.read_instructions(file)
    assert list(read.remove) == [*slim_rules.RULES, "triton/**"]
    assert (read.stub, read.keep) == ({"x.so": "y"}, ("z",))
    for wrong in ("[]", '{"remove": {}}', "{"):
        file.write_text(wrong)
        with pytest.raises(ValueError):
            slim.read_instructions(file)
