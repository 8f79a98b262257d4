"""Run a crashed run again, once. Deployment `recover`, started by automation `ajuste-run-again`.

A server that was away for long has missed the beats of runs that go on: automation `ajuste-lost` marks them crashed
when it is back. A run whose process is alive on this machine is therefore set to Running again.
"""

from uuid import UUID

import psutil
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.states import Running

from flows.automations import GONE

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
        if lost.state and lost.state.message == GONE and _goes_on(lost.id):
            client.set_flow_run_state(lost.id, Running(message="its process is alive"), force=True)
            return f"{lost.name} goes on: not run again"
        if client.read_flow(lost.flow_id).name == "recover" or AGAIN in lost.tags:
            return f"{lost.name} was a second try: not run again"
        run = client.create_flow_run_from_deployment(
            lost.deployment_id,
            parameters=lost.parameters,
            tags=sorted({*lost.tags, AGAIN}),
            idempotency_key=f"{AGAIN}-{lost.id}",
        )
        return f"{lost.name} is run again as {run.name}"


def _goes_on(flow_run_id: UUID) -> bool:
    """Whether the engine of a flow run is a process of this machine."""
    for process in psutil.process_iter():
        try:
            if "prefect.engine" in process.cmdline()[:4]:
                running = process.environ().get("PREFECT__FLOW_RUN_ID")
                if running and UUID(running) == flow_run_id and process.status() != psutil.STATUS_ZOMBIE:
                    return True
        except psutil.Error:
            continue
    return False
