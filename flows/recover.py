"""Run a crashed run again, once. Deployment `recover`, started by automation `ajuste-run-again`."""

from uuid import UUID

from prefect import flow
from prefect.client.orchestration import get_client

AGAIN = "ajuste-again"  # the tag of a run that is a second try


@flow(name="recover")
def recover(flow_run_id: str) -> str:
    """Same deployment, same parameters, so the same worktree and checkpoints. Returns what was done, in words.

    A second try that crashes is left as it is; asked twice for one run, the server makes one (idempotency key).
    """
    with get_client(sync_client=True) as client:
        lost = client.read_flow_run(UUID(flow_run_id))
        if lost.deployment_id is None:
            return f"{lost.name} belongs to no deployment: not run again"
        if client.read_flow(lost.flow_id).name == "recover" or AGAIN in lost.tags:
            return f"{lost.name} was a second try: not run again"
        run = client.create_flow_run_from_deployment(
            lost.deployment_id,
            parameters=lost.parameters,
            tags=sorted({*lost.tags, AGAIN}),
            idempotency_key=f"{AGAIN}-{lost.id}",
        )
        return f"{lost.name} is run again as {run.name}"
