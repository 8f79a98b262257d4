"""What is late when a deployed run begins: cancelled, because this run does the same work. A pull step of prefect.yaml.

While a run of a deployment goes on, Prefect itself cancels the next ones (collision_strategy: CANCEL_NEW). After a
downtime it does not: a worker that comes back finds every run that was due meanwhile, and would work them off one
after the other. One of them is enough.
"""

import os
from datetime import UTC, datetime
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.states import Cancelled


def cancel_late() -> dict[str, int]:
    """Cancel the runs of the schedule of this run's deployment that are due and wait; returns {"cancelled": number}."""
    with get_client(sync_client=True) as client:
        me = client.read_flow_run(UUID(os.environ["PREFECT__FLOW_RUN_ID"]))
        if me.deployment_id is None:
            return {"cancelled": 0}
        waiting = client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[me.deployment_id])),
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
                expected_start_time=FlowRunFilterExpectedStartTime(before_=datetime.now(UTC)),
            ),
        )
        # a run that a person or an automation asked for has a reason of its own
        late = [run for run in waiting if run.auto_scheduled and run.id != me.id]
        for run in late:
            client.set_flow_run_state(run.id, Cancelled(message=f"late: {me.name} does its work"))
        return {"cancelled": len(late)}
