"""infra/compose.yaml and infra/k8s: their schemas, by maintained validators, and what a careful reader would look for.

Nothing is started here: no Docker and no cluster is needed, and that they really run is NOT TESTED.
"""

import copy
import re
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.made.projects import ROOT

COMPOSE = ROOT / "infra" / "compose.yaml"
K8S = ROOT / "infra" / "k8s"
CLUSTER = "1.37"
FILES = sorted(K8S.glob("*.yaml"))
OBJECTS = [
    pytest.param(document, id=f"{path.name}:{document['kind']}")
    for path in FILES
    for document in yaml.safe_load_all(path.read_text())
    if document["kind"] != "Kustomization"
]
PODS = [param for param in OBJECTS if "template" in param.values[0].get("spec", {})]


def compose_errors(path: Path) -> str:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_compose_keeps_the_schema_and_the_validator_finds_an_error(tmp_path: Path) -> None:
    assert compose_errors(COMPOSE) == ""
    wrong = yaml.safe_load(COMPOSE.read_text())
    wrong["services"]["postgres"]["healthchek"] = {}
    (tmp_path / "compose.yaml").write_text(yaml.safe_dump(wrong))
    assert "healthchek" in compose_errors(tmp_path / "compose.yaml")


@pytest.mark.parametrize("document", OBJECTS)
def test_cluster_files_keep_their_schema(document: dict) -> None:
    kubernetes_validate.validate(document, CLUSTER, strict=True)


def test_the_clusters_validator_finds_errors() -> None:
    worker = next(param.values[0] for param in PODS if param.id == "worker.yaml:Deployment")
    for key, value in (("replicas", "one"), ("replica", 1)):
        wrong = copy.deepcopy(worker)
        wrong["spec"][key] = value
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(wrong, CLUSTER, strict=True)


def test_compose_starts_in_order_listens_on_loopback_and_holds_no_secret() -> None:
    text = COMPOSE.read_text()
    services = yaml.safe_load(text)["services"]
    assert set(services) == {"postgres", "s3", "buckets", "prefect", "mlflow", "worker", "models"}
    for name, service in services.items():
        assert re.fullmatch(r"[\w./-]+:\d[\w.-]*", service["image"]), f"{name}: an image by version"
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert name == "buckets" or "healthcheck" in service, name
        for needed, how in service.get("depends_on", {}).items():
            done = "service_completed_successfully" if needed == "buckets" else "service_healthy"
            assert needed in services and how["condition"] == done
        for key, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|SECRET|ACCESS_KEY", key):
                assert re.match(r"\$\{AJUSTE_\w+:\?", value), f"{name}: {key} comes from infra/.env"
    wanted = set(re.findall(r"\$\{(AJUSTE_\w+)", text))
    example = dict(line.split("=", 1) for line in (ROOT / "infra" / "env.example").read_text().splitlines()
                   if "=" in line and not line.startswith("#"))  # fmt: skip
    assert wanted == set(example)
    assert not [key for key, value in example.items() if value and re.search("PASSWORD|KEY", key)]


@pytest.mark.parametrize("document", PODS)
def test_pods_are_unprivileged_limited_and_probed(document: dict) -> None:
    spec = document["spec"]["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] and spec["automountServiceAccountToken"] is False
    for container in spec["containers"]:
        rights = container["securityContext"]
        assert rights["allowPrivilegeEscalation"] is False and rights["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["requests"]["memory"] and container["resources"]["limits"]["memory"]
        assert document["kind"] == "Job" or {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)
        if container["name"] in ("worker", "run"):
            assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
        for variable in container.get("env", []):
            if re.search(r"PASSWORD|SECRET|ACCESS_KEY", variable["name"]):
                assert variable["valueFrom"]["secretKeyRef"]["name"] == "ajuste"


def test_kustomize_names_every_file_and_no_file_is_a_secret() -> None:
    kustomization = yaml.safe_load((K8S / "kustomization.yaml").read_text())
    assert set(kustomization["resources"]) == {path.name for path in FILES} - {"kustomization.yaml", "job.yaml"}
    assert "Secret" not in {param.values[0]["kind"] for param in OBJECTS}


def test_the_image_is_one_version_everywhere_and_leaves_secrets_out() -> None:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    built = [COMPOSE.read_text(), (K8S / "job.yaml").read_text(), (ROOT / "infra" / "Dockerfile").read_text()]
    assert all(set(re.findall(r"ajuste:(\d[\w.]*)", text)) == {version} for text in built)
    assert yaml.safe_load((K8S / "kustomization.yaml").read_text())["images"][0]["newTag"] == version
    ignored = (ROOT / "infra" / "Dockerfile.dockerignore").read_text().splitlines()
    assert {"**/.env", ".stack", ".dvc/config.local", ".git"} <= set(ignored)
