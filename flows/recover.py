"""Run a crashed run again, once. Deployment `recover`, started by automation `ajuste-run-again`.

A server that was away for long has missed the beats of runs that go on: automation `ajuste-lost` marks them crashed
when it is back. A run whose process is alive is therefore set to Running again: it holds the worktree of its deployment
(ajuste/tracking/project/occupied.py), in whatever container it is, or is a process of this machine.
"""

from uuid import UUID

import psutil
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.states import Running

from ajuste.core.home import home
from ajuste.tracking.project import occupied
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
        name = client.read_deployment(lost.deployment_id).name
        if lost.state and lost.state.message == GONE and (_holds(lost.id, name) or _goes_on(lost.id)):
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


def _holds(flow_run_id: UUID, deployment: str) -> bool:
    """Whether a flow run has the worktree of its deployment."""
    return str(flow_run_id) in (occupied.holder(home(), deployment) or "")


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
