"""docs/deploy: files for hosts are what their own tools take, and lock the server down as the page says."""

from __future__ import annotations

import copy
import re
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

FOLDER = Path(__file__).resolve().parents[2] / "docs/deploy"
POD_FILES = ("kubernetes.yaml", "kubernetes-image-volume.yaml", "kserve.yaml")
DIGEST = re.compile(r"\S+/\S+@sha256:[0-9a-f]{64}")
# What KServe's own entries have besides those of a pod and of a container.
KSERVE_POD = {"model", "minReplicas", "maxReplicas"}
KSERVE_CONTAINER = {"modelFormat", "storageUri", "protocolVersion", "runtime", "runtimeVersion"}


def documents(name: str) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all((FOLDER / name).read_text()) if each]


def pod_of(name: str) -> dict[str, Any]:
    """The pod of a file; KServe's model is its one container."""
    document = documents(name)[0]
    if document["kind"] == "Deployment":
        return dict(document["spec"]["template"]["spec"])
    predictor = document["spec"]["predictor"]
    model = {key: value for key, value in predictor["model"].items() if key not in KSERVE_CONTAINER}
    pod = {key: value for key, value in predictor.items() if key not in KSERVE_POD}
    return {**pod, "containers": [model]}


def validate(document: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize(
    ("name", "versions"),
    [("kubernetes.yaml", ("1.30", "1.37")), ("kubernetes-image-volume.yaml", ("1.33", "1.37"))],
)
def test_kubernetes_takes_the_manifests(name: str, versions: tuple[str, ...]) -> None:
    for document in documents(name):
        for version in versions:
            validate(document, version)


def test_kubernetes_takes_the_pod_that_kserve_is_asked_for() -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod_of("kserve.yaml")}
    validate(pod, "1.37")
    pod["spec"]["containers"][0]["volumeMountss"] = []  # type: ignore[index]
    with pytest.raises(kubernetes_validate.ValidationError, match="volumeMountss"):
        validate(pod, "1.37")


@pytest.mark.parametrize(
    ("path", "key", "wrong"),
    [
        (("spec", "template", "spec"), "imagePullSecrets", "imagePullSecret"),
        (
            ("spec", "template", "spec", "containers", 0, "securityContext"),
            "readOnlyRootFilesystem",
            "readOnly",
        ),
        (("spec", "template", "spec", "volumes", 1, "image"), "reference", "ref"),
    ],
)
def test_a_mistyped_key_is_found(path: tuple[str | int, ...], key: str, wrong: str) -> None:
    document = copy.deepcopy(documents("kubernetes-image-volume.yaml")[0])
    at: Any = document
    for step in path:
        at = at[step]
    at[wrong] = at.pop(key)
    with pytest.raises(kubernetes_validate.ValidationError, match=wrong):
        validate(document, "1.37")


def test_an_image_volume_is_refused_by_a_cluster_that_has_none() -> None:
    (document,) = documents("kubernetes-image-volume.yaml")
    with pytest.raises(kubernetes_validate.ValidationError, match="image"):
        validate(document, "1.30")


@pytest.mark.parametrize("name", POD_FILES)
def test_pods_are_locked_down(name: str) -> None:
    pod = pod_of(name)
    (container,) = pod["containers"]
    user = pod["securityContext"]
    assert (user["runAsUser"], user["runAsGroup"], user["runAsNonRoot"]) == (65532, 65532, True)
    assert user["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False and pod["enableServiceLinks"] is False
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert container["resources"]["limits"].keys() == {"memory", "nvidia.com/gpu"}
    assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]
    assert pod["volumes"][0] == {"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}}
    if name == "kserve.yaml":
        return
    (drain,) = (each["value"] for each in container["env"] if each["name"] == "MODELBAKE_DRAIN_SECONDS")
    waits = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert waits + int(drain) < pod["terminationGracePeriodSeconds"]
    probes = ("startupProbe", "readinessProbe", "livenessProbe")
    assert {container[probe]["httpGet"]["path"] for probe in probes} == {"/health"}
    (port,) = container["ports"]
    assert {container[probe]["httpGet"]["port"] for probe in probes} == {port["name"]}


@pytest.mark.parametrize("name", POD_FILES)
def test_images_are_named_by_digest(name: str) -> None:
    text = (FOLDER / name).read_text()
    images = re.findall(r"^\s+(?:image|reference|storageUri): (?:oci://)?(\S+)$", text, re.M)
    assert images
    assert [image for image in images if not DIGEST.fullmatch(image)] == []


def test_every_file_is_on_the_page_and_the_page_names_no_other() -> None:
    page = (FOLDER / "README.md").read_text()
    named = set(re.findall(r"\]\(([^)/#]+)\)", page))
    here = {path.name for path in FOLDER.iterdir()} - {"README.md", "compose.cpu.yaml"}
    assert named == here
    links = re.findall(r"\]\(([^)#]+)\)", page)
    assert [link for link in links if not (FOLDER / link).exists()] == []


def test_the_script_is_one_of_a_posix_shell_and_wants_digests() -> None:
    script = FOLDER / "run-split.sh"
    subprocess.run(["sh", "-n", str(script)], check=True)
    environment = {"PATH": "/usr/bin:/bin", "WEIGHTS": "a@sha256:b"}
    missing = subprocess.run(
        ["sh", str(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert missing.returncode != 0 and "RUNTIME" in missing.stderr
    environment["RUNTIME"] = "registry.example.com/ml/runtimes:latest"
    tagged = subprocess.run(["sh", str(script)], env=environment, capture_output=True, text=True, check=False)
    assert tagged.returncode == 2 and "names no digest" in tagged.stderr
