"""The job templates of the Docker and Kubernetes pools: complete, with GPU limits, as the workers want them."""

import asyncio
import json
import re
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from tests.made.projects import ROOT

WORKERS = {
    "docker": ("prefect_docker.worker", "DockerWorkerJobConfiguration"),
    "kubernetes": ("prefect_kubernetes.worker", "KubernetesWorkerJobConfiguration"),
}


def template(kind: str) -> dict:
    return json.loads((ROOT / "infra" / "pools" / f"{kind}.json").read_text())


@pytest.mark.parametrize("kind", WORKERS)
def test_every_placeholder_is_a_variable_and_every_job_variable_of_the_deployments_is_used(kind: str) -> None:
    pool = template(kind)
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(pool["job_configuration"])))
    assert used == set(pool["variables"]["properties"])
    for item in yaml.safe_load(Path(ROOT / "infra" / "prefect.yaml").read_text())["deployments"]:
        assert set(item["work_pool"]["job_variables"]) <= used


def test_runs_have_a_gpu_and_no_privileges() -> None:
    docker = template("docker")["job_configuration"]["container_create_kwargs"]
    assert docker["device_requests"] == [{"Driver": "nvidia", "Count": "{{ gpus }}", "Capabilities": [["gpu"]]}]
    assert docker["user"] == "1000" and docker["cap_drop"] == ["ALL"]
    pod = template("kubernetes")["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "{{ gpus }}"
    assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
    for kind in WORKERS:
        assert template(kind)["variables"]["properties"]["gpus"]["default"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", WORKERS)
def test_the_workers_own_model_takes_it(kind: str, prefect_harness: None) -> None:
    module, name = WORKERS[kind]
    pytest.importorskip(module, reason=f"prefect-{kind} is not installed: its job template is NOT CHECKED against it")
    values = {"working_dir": "/srv/ajuste", "env": {"AJUSTE_HOME": "/srv/ajuste"}, "gpus": 2}
    made = asyncio.run(getattr(import_module(module), name).from_template_and_values(template(kind), values))
    if kind == "docker":
        assert made.container_create_kwargs["device_requests"][0]["Count"] == 2
    else:
        (container,) = made.job_manifest["spec"]["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == 2 and container["workingDir"] == "/srv/ajuste"
