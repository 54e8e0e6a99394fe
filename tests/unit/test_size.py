"""Sizes of images: read from real tar streams of the form that engines export."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from modelbake.budget import require_budget, require_size
from modelbake.errors import EngineError, ImageTooLarge
from modelbake.imagetar import ImageContent, Layer, read_file, read_image
from modelbake.naive import NAIVE_FILE, naive_size
from modelbake.size import REST, WEIGHTS, cuda_libraries, sizes_of
from modelbake.sizetable import document, in_words
from tests.unit.planning import planned

SITE = "opt/venv/lib/python3.11/site-packages"
RECORD = (
    f"{SITE}/heavy-1.0.dist-info/RECORD",
    "heavy/a.py,sha256=x,10\nheavy/lib.so,sha256=x,5000\n../../../bin/heavy,,\n"
    'heavy-1.0.dist-info/RECORD,,\n"heavy/with,comma.txt",,\n',
)


def tar(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def exported(
    layers: Sequence[bytes], history: Sequence[Mapping[str, object]] | None = None, **more: bytes
) -> Iterator[bytes]:
    """Yield an export of the form of Docker 25 and later, in chunks of an odd size."""
    steps = history if history is not None else [{"created_by": f"step {n}"} for n in range(len(layers))]
    config = json.dumps({"history": list(steps)}).encode()
    blobs = {f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}": blob for blob in [*layers, config]}
    names = list(blobs)
    listed = [f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}" for blob in layers]
    manifest = json.dumps([{"Config": names[-1], "Layers": listed}]).encode()
    whole = tar(
        {**blobs, "oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "manifest.json": manifest, **more}
    )
    for position in range(0, len(whole), 4097):
        yield whole[position : position + 4097]


BOTTOM = {"etc/os-release": b"x" * 300, "usr/lib/libcudart.so.12": b"c" * 700}
PACKAGES = {
    f"./{SITE}/heavy/a.py": b"a" * 10,
    f"./{SITE}/heavy/__pycache__/a.cpython-311.pyc": b"b" * 90,
    f"./{SITE}/heavy/lib.so": b"l" * 5000,
    f"./{SITE}/heavy/with,comma.txt": b"t" * 7,
    f"./{SITE}/loose.py": b"l" * 40,
    "./opt/venv/bin/heavy": b"#!x",
    f"./{SITE}/nvidia/cuda_runtime/lib/libcudart.so.12": b"d" * 600,
    f"./{RECORD[0]}": RECORD[1].encode(),
}
TOP = {"models/model.safetensors": b"w" * 9000, "etc/.wh.os-release": b""}


def in_two(compress: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """Return what compresses in two parts, as parallel ones do; the first ends where a file does."""
    return lambda data: compress(data[:1024]) + compress(data[1024:])


zstd = zstandard.ZstdCompressor().compress
SKIPPED = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"abcd"
COMPRESSED = [
    bytes,
    *(each for one in (gzip.compress, zstd, bz2.compress, lzma.compress) for each in (one, in_two(one))),
]


@pytest.mark.parametrize("compress", [*COMPRESSED, lambda data: SKIPPED + zstd(data)])
def test_an_image_is_counted_by_layer_and_by_package(compress: Callable[[bytes], bytes]) -> None:
    layers = [compress(tar(files)) for files in (BOTTOM, PACKAGES, TOP)]
    history: list[Mapping[str, object]] = [
        {"created_by": "/bin/sh -c #(nop) ADD base in /"},
        {"created_by": "ENV A=b", "empty_layer": True},
        {"created_by": "COPY /layer/ / # buildkit"},
        {"created_by": "COPY  weights"},
    ]
    sizes = sizes_of(read_image(exported(layers, history)))
    record = len(RECORD[1])
    packages = 10 + 90 + 5000 + 7 + 3 + record
    assert sizes.layers == [
        ("ADD base in /", 1000),
        ("COPY /layer/ /", packages + 640),
        ("COPY weights", 9000),
    ]
    assert sizes.total == sum(size for _, size in sizes.layers)
    assert dict(sizes.packages) == {WEIGHTS: 9000, "heavy 1.0": packages, REST: 700 + 40 + 600 + 300}
    assert sizes.largest(1) == [(WEIGHTS, 9000)]


def test_a_duplicated_cuda_library_is_named_with_all_its_places() -> None:
    sizes = sizes_of(read_image(exported([tar(BOTTOM), tar(PACKAGES)])))
    (duplicate,) = sizes.duplicates
    assert duplicate.soname == "libcudart.so.12"
    assert duplicate.files == {
        "/usr/lib/libcudart.so.12": 700,
        f"/{SITE}/nvidia/cuda_runtime/lib/libcudart.so.12": 600,
    }
    assert sizes_of(read_image(exported([tar(PACKAGES)]))).duplicates == []


def test_cuda_libraries_are_known_by_what_the_loader_is_asked_for() -> None:
    files = {
        "a/libcudart.so.12.4.127": 1,
        "b/libcudart-9335f6a2.so.12": 2,  # as wheels carry their own copies
        "c/libcudart.so.13": 4,
        "d/libcublasLt.so.13": 8,
        "e/libnvrtc-builtins.so.13.0": 16,
        "f/libnvrtc.so.13": 32,
        "g/libcuriosity.txt": 64,
        "h/libcurl.so.4": 128,
        "i/libcups.so.2": 256,
        "j/libnccl.so.2": 512,
    }
    found = {library.soname: library.files for library in cuda_libraries(files)}
    assert found == {
        "libcudart.so.12": {"/a/libcudart.so.12.4.127": 1, "/b/libcudart-9335f6a2.so.12": 2},
        "libcudart.so.13": {"/c/libcudart.so.13": 4},
        "libcublasLt.so.13": {"/d/libcublasLt.so.13": 8},
        "libnvrtc-builtins.so.13": {"/e/libnvrtc-builtins.so.13.0": 16},
        "libnvrtc.so.13": {"/f/libnvrtc.so.13": 32},
        "libnccl.so.2": {"/j/libnccl.so.2": 512},
    }


def test_what_an_upper_layer_replaces_or_takes_away_still_takes_its_place() -> None:
    image = ImageContent(
        (
            Layer("", {"a": 1, "d/x": 2, "d/y": 4, "dd": 8, "o/x": 16}),
            Layer("", {"a": 32, "o/new": 64}, frozenset({"d", "o/"})),
        )
    )
    assert image.files() == {"a": 32, "dd": 8, "o/new": 64}
    assert image.size == 127
    assert sum(sizes_of(image).packages.values()) == 127


def test_an_older_export_with_linked_layers_is_read() -> None:
    layer = tar({"a": b"1234"})
    config = json.dumps({"history": []}).encode()
    manifest = json.dumps([{"Config": "c.json", "Layers": ["one/layer.tar", "two/layer.tar"]}]).encode()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, content in (("one/layer.tar", layer), ("c.json", config), ("manifest.json", manifest)):
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        link = tarfile.TarInfo("two/layer.tar")
        link.type, link.linkname = tarfile.SYMTYPE, "../one/layer.tar"
        archive.addfile(link)
    assert [each.size for each in read_image(iter([buffer.getvalue()])).layers] == [4, 4]


@pytest.mark.parametrize("content", [b"", b"nonsense" * 200, tar({"a": b"1"}), tar({"manifest.json": b"[]"})])
def test_what_is_no_export_is_an_error(content: bytes) -> None:
    with pytest.raises(EngineError, match="exported image"):
        read_image(iter([content]))


@pytest.mark.parametrize("compress", COMPRESSED)
def test_a_file_is_read_out_of_an_export(compress: Callable[[bytes], bytes]) -> None:
    def export() -> Iterator[bytes]:
        return exported([compress(tar(files)) for files in (BOTTOM, {"./list.json": b"[1]"})])

    assert read_file(export(), "list.json", 3) == b"[1]"
    for path, largest in (("list.json", 2), ("lists.json", 3), ("manifest.json", 10_000)):
        with pytest.raises(EngineError, match=f"has no {path} of at most"):
            read_file(export(), path, largest)
    with pytest.raises(EngineError, match="exported image"):
        read_file(iter([b"".join(export())[:600]]), "list.json", 3)


def test_an_export_that_is_cut_off_is_an_error() -> None:
    whole = b"".join(exported([tar(BOTTOM), tar(PACKAGES)]))
    with pytest.raises(EngineError, match="exported image"):
        read_image(iter([whole[: len(whole) // 2]]))


@pytest.mark.parametrize("compress", COMPRESSED[1::2])
def test_a_compressed_layer_that_is_cut_off_is_an_error(compress: Callable[[bytes], bytes]) -> None:
    layer = compress(tar(PACKAGES))
    with pytest.raises(EngineError, match="exported image"):
        read_image(exported([layer[: len(layer) // 2]]))


def test_json_that_is_nested_too_deeply_is_an_error() -> None:
    with pytest.raises(EngineError, match="exported image cannot be read"):
        read_image(exported([tar(BOTTOM)], attestation=b"[" * 100_000))
    assert read_image(exported([tar(BOTTOM)], attestation=b"[" * 9 + b"]" * 9)).size == 1000, "control"


def test_a_record_that_cannot_be_read_leaves_its_files_without_a_package() -> None:
    files = {f"{SITE}/heavy/a.py": b"a" * 10, f"{SITE}/heavy/lib.so": b"l" * 5000}
    rows = "heavy/a.py,,\n{}heavy/lib.so,,\n"
    for between, owned in (("", 5010), (f"{'y' * 200_000},,\n", 10)):
        record = rows.format(between).encode()
        sizes = sizes_of(read_image(exported([tar({**files, RECORD[0]: record})])))
        assert sizes.packages["heavy 1.0"] == owned
        assert sizes.total == sum(sizes.packages.values()) == 5010 + len(record)


def test_what_the_base_image_brings_is_none_of_the_installed() -> None:
    pip = "usr/local/lib/python3.11/site-packages"
    base = {f"{pip}/pip/a.py": b"p" * 400, f"{pip}/pip-24.0.dist-info/RECORD": b"pip/a.py,,\n"}
    packages = {f"./{SITE}/heavy/a.py": b"a" * 10, "opt/venv/bin/heavy": b"#!x", "opt/venvs/b": b"b"}
    sizes = sizes_of(read_image(exported([tar(base), tar(packages)])))
    assert sizes.packages["pip 24.0"] == 400
    assert sizes.installed == 13


# --- what is said of it -----------------------------------------------------------------------------------


def test_the_table_names_layers_packages_duplicates_and_what_changed() -> None:
    now = sizes_of(read_image(exported([tar(BOTTOM), tar(PACKAGES), tar(TOP)])))
    then = sizes_of(ImageContent((Layer("", {"models/model.safetensors": 100}),)))
    plan = planned(max_size="6 GB")
    told = document(plan, "sha256:1", now, ("0.9.0", then), 10_000)
    assert json.loads(json.dumps(told)) == told
    assert told["duplicates"] == ["libcudart.so.12"]
    assert told["installed_bytes"] == sum(map(len, PACKAGES.values()))
    assert told["previous"]["packages"]["heavy"] == now.packages["heavy 1.0"]
    assert told["previous"]["packages"][WEIGHTS] == 8900
    text = "\n".join(in_words(told))
    assert "minilm 1.0.0: 15.9 kB unpacked of at most 6 GB" in text
    assert f"duplicate: libcudart.so.12 is there 2 times: /{SITE}/nvidia" in text
    assert f"{told['installed_bytes'] / 10_000:.2f} of the 10.0 kB of a plain pip install" in text
    assert "since 0.9.0: +15.8 kB ((weights) +8.9 kB" in text
    alone = "\n".join(in_words(document(plan, "sha256:1", then, None, None)))
    assert "        100 B  " in alone
    large = {**told, "bytes": 99_999, "previous": {**told["previous"], "bytes": 12_345_678_900}}
    assert in_words(large)[0].startswith("minilm 1.0.0: 100.0 kB unpacked")
    assert "since 0.9.0: -12,345.6 MB (" in in_words(large)[-1]
    assert "duplicate" not in alone
    assert "since" not in alone
    assert "pip install" not in alone


def test_the_naive_figure_is_of_these_very_pins(tmp_path: Path) -> None:
    plan = planned(directory=tmp_path)
    assert naive_size(plan) is None
    requirements = tmp_path / "requirements.cuda.txt"
    requirements.write_text("torch==1\n")
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()
    (tmp_path / NAIVE_FILE).write_text(json.dumps({f"sha256:{digest}": 123, "other": 4}))
    assert naive_size(plan) == 123
    requirements.write_text("torch==2\n")
    assert naive_size(plan) is None
    (tmp_path / NAIVE_FILE).write_text("[")
    assert naive_size(plan) is None
    assert naive_size(replace(plan, requirements=None)) is None


# --- max_size ---------------------------------------------------------------------------------------------


def test_an_image_may_be_as_large_as_max_size_and_no_larger() -> None:
    spec = planned(max_size="6 GB").spec
    require_size(spec, 6 * 10**9)
    require_size(planned().spec, 10**15)
    with pytest.raises(ImageTooLarge) as caught:
        require_size(spec, 6 * 10**9 + 410_000_000, [("torch 2.13.0", 1_100_000_000)])
    assert caught.value.exit_code == 47
    assert str(caught.value).startswith(
        "minilm 1.0.0: the image is 6.41 GB unpacked, 410.00 MB more than `max_size: 6 GB`;"
        " the largest: torch 2.13.0 1.10 GB\n  hint: leave something out"
    )


def test_what_cannot_but_be_too_large_is_refused_before_anything_moves() -> None:
    spec = planned(max_size="1 MB").spec
    require_budget(spec, 1_000_000, None)
    require_budget(planned().spec, 10**15, 10**15)
    for weights, runtime in ((1_000_001, None), (600_000, 400_001)):
        with pytest.raises(ImageTooLarge, match=r"the image is at least 1\.00 MB unpacked"):
            require_budget(spec, weights, runtime)
