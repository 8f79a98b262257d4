"""infra/compose.yaml and infra/k8s: their schemas, by maintained validators, and what a careful reader would look for.

Nothing is started here: no Docker and no cluster is needed, and that they really run is NOT TESTED. The schema of
KubeRay's RayJob comes with its operator and not with Kubernetes: its pods are validated, its own keys compared with
those that infra/k8s/rayjob.yaml needs.
"""

import copy
import json
import re
import stat
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from infra import prepare
from tests.made.projects import ROOT

SECRET = re.compile(r"PASSWORD|SECRET|ACCESS_KEY|AUTH_STRING")
COMPOSE = ROOT / "infra" / "compose.yaml"
K8S = ROOT / "infra" / "k8s"
CLUSTER = "1.37"
FILES = sorted(K8S.glob("*.yaml"))
OBJECTS = [
    pytest.param(document, id=f"{path.name}:{document['kind']}")
    for path in FILES
    for document in yaml.safe_load_all(path.read_text())
    if document["kind"] not in ("Kustomization", "RayJob")
]
RAYJOB = yaml.safe_load((K8S / "rayjob.yaml").read_text())
GROUPS = {"head": RAYJOB["spec"]["rayClusterSpec"]["headGroupSpec"],
          "worker": RAYJOB["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]}  # fmt: skip
PODS = [param for param in OBJECTS if "template" in param.values[0].get("spec", {})]
PODS += [pytest.param({"kind": "Job", "spec": {"template": group["template"]}}, id=f"rayjob.yaml:{name}")
         for name, group in GROUPS.items()]  # fmt: skip


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


@pytest.mark.parametrize("group", GROUPS)
def test_the_pods_of_ray_keep_their_schema(group: str) -> None:
    template = GROUPS[group]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": template["spec"]}
    kubernetes_validate.validate(pod, CLUSTER, strict=True)
    pod["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, CLUSTER, strict=True)


def test_the_rayjob_runs_the_pipeline_on_workers_that_share_the_checkout() -> None:
    """Its keys are those that KubeRay's own definition of version v1 held when the file was written."""
    spec, cluster = RAYJOB["spec"], RAYJOB["spec"]["rayClusterSpec"]
    assert (RAYJOB["apiVersion"], spec["entrypoint"], spec["submissionMode"]) == ("ray.io/v1", "ajuste run", "HTTPMode")
    assert set(spec) == {"entrypoint", "submissionMode", "backoffLimit", "activeDeadlineSeconds",
                         "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "rayClusterSpec"}  # fmt: skip
    assert set(cluster) == {"rayVersion", "headGroupSpec", "workerGroupSpecs"}
    assert set(GROUPS["head"]) == {"rayStartParams", "template"}
    sized = {"groupName", "replicas", "minReplicas", "maxReplicas"}
    assert set(GROUPS["worker"]) == {*sized, "rayStartParams", "template"}
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    assert cluster["rayVersion"] == pinned
    head, worker = (GROUPS[name]["template"]["spec"] for name in GROUPS)
    for pod in (head, worker):
        assert {"name": "home", "mountPath": "/srv/ajuste"} in pod["containers"][0]["volumeMounts"]
        assert pod["containers"][0]["workingDir"] == "/srv/ajuste"
    assert GROUPS["head"]["rayStartParams"]["num-cpus"] == "0" and "env" in head["containers"][0]
    assert worker["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert not [item for item in worker["containers"][0]["env"] if "valueFrom" in item], "workers need no secret"


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
        digest = "" if "build" in service else "@sha256:[0-9a-f]{64}"
        assert re.fullmatch(rf"[\w./-]+:\d[\w.-]*{digest}", service["image"]), f"{name}: an image that cannot change"
        assert service["read_only"] and "/tmp" in service["tmpfs"] and service["security_opt"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert name == "buckets" or "healthcheck" in service, name
        for needed, how in service.get("depends_on", {}).items():
            done = "service_completed_successfully" if needed == "buckets" else "service_healthy"
            assert needed in services and how["condition"] == done
        for key, value in service.get("environment", {}).items():
            if SECRET.search(key):
                assert re.match(r"\$\{AJUSTE_\w+:\?", value), f"{name}: {key} comes from infra/.env"
    wanted = set(re.findall(r"\$\{(AJUSTE_\w+)", text))
    example = dict(line.split("=", 1) for line in (ROOT / "infra" / "env.example").read_text().splitlines()
                   if "=" in line and not line.startswith("#"))  # fmt: skip
    assert wanted == set(example)
    assert not [key for key, value in example.items() if value]


def test_compose_asks_for_logins_and_lets_only_published_pages_out() -> None:
    found = yaml.safe_load(COMPOSE.read_text())
    services = found["services"]
    assert found["networks"]["inside"] == {"internal": True}
    out = {name for name, service in services.items() if service["networks"] != ["inside"]}
    assert out == {"prefect", "mlflow", "models"} == {name for name in services if services[name].get("ports")}
    prefect = services["prefect"]["environment"]
    assert prefect["PREFECT_SERVER_API_AUTH_STRING"] == services["worker"]["environment"]["PREFECT_API_AUTH_STRING"]
    assert prefect["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] == "http://127.0.0.1:4200,http://localhost:4200"
    mlflow = services["mlflow"]
    assert "--app-name=basic-auth" in mlflow["command"] and "--allowed-hosts=mlflow:5000" in str(mlflow["command"])
    for client in ("worker", "models"):
        given = services[client]["environment"]["MLFLOW_TRACKING_PASSWORD"]
        assert given == mlflow["environment"]["MLFLOW_AUTH_ADMIN_PASSWORD"]


def test_the_model_server_sees_bases_and_policy_and_no_secret_but_its_own() -> None:
    service = yaml.safe_load(COMPOSE.read_text())["services"]["models"]
    outside = [volume for volume in service["volumes"] if volume.startswith("..")]
    assert sorted(outside) == ["../artifacts/base:/srv/models/artifacts/base:ro",
                               "../policy.yaml:/srv/models/policy.yaml:ro"]  # fmt: skip
    assert {key for key in service["environment"] if SECRET.search(key)} == {"MLFLOW_TRACKING_PASSWORD"}
    (pod,) = [param.values[0]["spec"]["template"]["spec"] for param in PODS if param.id == "models.yaml:Deployment"]
    (container,) = pod["containers"]
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert all(mount["readOnly"] and mount["subPath"] in ("artifacts/base", "policy.yaml")
               for mount in mounts.values() if mount["name"] == "checkout")  # fmt: skip
    assert "envFrom" not in container
    assert [volume for volume in pod["volumes"] if "emptyDir" not in volume] == [
        {"name": "checkout", "persistentVolumeClaim": {"claimName": "ajuste-home", "readOnly": True}}]  # fmt: skip
    assert {item["name"] for item in container["env"] if SECRET.search(item["name"])} == {"MLFLOW_TRACKING_PASSWORD"}


def test_prepare_makes_the_passwords_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "HERE", tmp_path / "infra")
    (tmp_path / "infra").mkdir()
    (tmp_path / "infra" / "env.example").write_text((ROOT / "infra" / "env.example").read_text())
    (tmp_path / "infra" / ".env").write_text("AJUSTE_POSTGRES_PASSWORD=mine\n")
    texts = []
    for _ in range(2):
        prepare.main()
        files = [tmp_path / "infra" / name for name in (".env", "secret.env", "runs.env")]
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
        texts.append([file.read_text() for file in files])
    assert texts[0] == texts[1] and (tmp_path / "artifacts" / "base").is_dir()
    compose, secret, runs = (dict(line.split("=", 1) for line in text.splitlines()) for text in texts[0])
    assert compose["AJUSTE_POSTGRES_PASSWORD"] == secret["postgres-password"] == "mine"
    assert re.fullmatch(r"ajuste:[0-9a-f]{64}", compose["AJUSTE_PREFECT_LOGIN"]) and all(compose.values())
    assert runs["MLFLOW_TRACKING_PASSWORD"] == secret["mlflow-password"] == compose["AJUSTE_MLFLOW_PASSWORD"]
    assert not secret["s3-access-key"], "the cluster's S3 store is the user's own"
    asked = {item for path in FILES for item in re.findall(r"secretKeyRef: \{name: ajuste, key: ([\w-]+)\}",
                                                           path.read_text())}  # fmt: skip
    assert asked == set(secret)


@pytest.mark.parametrize("document", PODS)
def test_pods_are_unprivileged_limited_and_probed(document: dict) -> None:
    spec = document["spec"]["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] and spec["automountServiceAccountToken"] is False
    for container in spec["containers"]:
        rights = container["securityContext"]
        assert rights["readOnlyRootFilesystem"] is True
        assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}
        assert rights["allowPrivilegeEscalation"] is False and rights["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["requests"]["memory"] and container["resources"]["limits"]["memory"]
        assert document["kind"] == "Job" or {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)
        if container["name"] in ("worker", "run"):
            assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
        for variable in container.get("env", []):
            if SECRET.search(variable["name"]):
                assert variable["valueFrom"]["secretKeyRef"]["name"] == "ajuste"


def unrestricted(pod: dict) -> list[str]:
    """What of a pod the cluster's standard `restricted` refuses (Kubernetes, Pod Security Standards)."""
    wrong = [key for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key)]
    kinds = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
    wrong += [volume["name"] for volume in pod.get("volumes", []) if not set(volume) - {"name"} <= kinds]
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        rights = pod.get("securityContext", {}) | container.get("securityContext", {})
        wrong += ["root"] * (not rights.get("runAsNonRoot") or rights.get("runAsUser") == 0)
        wrong += ["privileges"] * (rights.get("allowPrivilegeEscalation") is not False)
        wrong += ["privileges"] * bool(rights.get("privileged"))
        wrong += ["capabilities"] * (rights.get("capabilities", {}).get("drop") != ["ALL"])
        wrong += ["capabilities"] * bool(set(rights["capabilities"].get("add", [])) - {"NET_BIND_SERVICE"})
        wrong += ["seccomp"] * (rights.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"))
        wrong += ["hostPort"] * any(port.get("hostPort") for port in container.get("ports", []))
    return wrong


def test_the_namespace_is_restricted_and_every_pod_may_live_in_it() -> None:
    (namespace,) = [param.values[0] for param in OBJECTS if param.values[0]["kind"] == "Namespace"]
    kustomization = yaml.safe_load((K8S / "kustomization.yaml").read_text())
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert kustomization["namespace"] == namespace["metadata"]["name"] == "ajuste"
    pool = json.loads((ROOT / "infra" / "pools" / "kubernetes.json").read_text())
    assert pool["variables"]["properties"]["namespace"]["default"] == "ajuste"
    pods = {param.id: param.values[0]["spec"]["template"]["spec"] for param in PODS}
    pods["pool"] = pool["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    assert len(pods) == 9 and {name: unrestricted(pod) for name, pod in pods.items()} == {name: [] for name in pods}
    worse = copy.deepcopy(pods["pool"])
    worse["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    assert unrestricted(worse) == ["privileges"]


def test_nothing_leaves_or_enters_a_pod_but_what_is_named() -> None:
    rules = [param.values[0] for param in OBJECTS if param.values[0]["kind"] == "NetworkPolicy"]
    (shut,) = [rule["spec"] for rule in rules if rule["metadata"]["name"] == "nothing-else"]
    assert shut == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}

    def names(selector: dict) -> list[str]:
        return selector["matchExpressions"][0]["values"] if selector else ["any"]

    out, into = set(), set()
    for rule in rules:
        for mine in names(rule["spec"]["podSelector"]):
            for way, found, peers in (("egress", out, "to"), ("ingress", into, "from")):
                for entry in rule["spec"].get(way, []):
                    ports = [port["port"] for port in entry["ports"]]
                    for peer in entry[peers]:
                        other = peer.get("namespaceSelector", {}).get("matchLabels", {}).values()
                        them = other or names(peer["podSelector"])
                        found |= {(mine, name, port) for name in them for port in ports}
    inside = {(mine, name, port) for mine, name, port in out if name not in ("kube-system", "storage")}
    servers = {("prefect", "postgres", 5432), ("mlflow", "postgres", 5432), ("models", "mlflow", 5000)}
    those, asked = ("worker", "run", "ray"), (("prefect", 4200), ("mlflow", 5000))
    runs = {(who, name, port) for who in those for name, port in asked}
    among = {("ray", "ray", 1)}  # ports 1 to 65535
    assert inside == servers | runs | among
    store = {(who, "storage", 9000) for who in ("mlflow", *those)}
    assert out - inside == {("any", "kube-system", 53)} | store
    open_to = {("models", "any", 8000), ("ray", "kuberay", 8265)}
    assert into == {(name, mine, port) for mine, name, port in inside} | open_to


def test_kustomize_names_every_file_and_no_file_is_a_secret() -> None:
    kustomization = yaml.safe_load((K8S / "kustomization.yaml").read_text())
    alone = {"kustomization.yaml", "job.yaml", "rayjob.yaml"}
    assert set(kustomization["resources"]) == {path.name for path in FILES} - alone
    assert "Secret" not in {param.values[0]["kind"] for param in OBJECTS}


def test_the_image_is_one_version_everywhere_and_leaves_secrets_out() -> None:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    jobs = [(K8S / name).read_text() for name in ("job.yaml", "rayjob.yaml")]
    built = [COMPOSE.read_text(), *jobs, (ROOT / "infra" / "Dockerfile").read_text()]
    assert all(set(re.findall(r"ajuste:(\d[\w.]*)", text)) == {version} for text in built)
    assert yaml.safe_load((K8S / "kustomization.yaml").read_text())["images"][0]["newTag"] == version
    ignored = (ROOT / "infra" / "Dockerfile.dockerignore").read_text().splitlines()
    secret = {"**/.env", ".stack", ".ui", "infra/secret.env", "infra/runs.env", ".dvc/config.local"}
    assert secret | {".git"} <= set(ignored)
    dockerfile = (ROOT / "infra" / "Dockerfile").read_text()
    assert re.search(r"^FROM python:3\.11\.\d+-\S+@sha256:[0-9a-f]{64}$", dockerfile, re.MULTILINE)
    (extras,) = re.findall(r"^ARG EXTRAS=(\S+)$", dockerfile, re.MULTILINE)
    assert "make setup EXTRAS=$EXTRAS\n" in dockerfile
    assert extras.split(",") == ["s3", "stack"] and "test" not in re.findall(r"\[(.+?)\]", dockerfile)
