"""What the Prefect server does by itself when a run is lost or fails: automations, made again by every deploy.

    ajuste-lost        no heartbeat for 3 beats of 30 s         -> the flow run is marked CRASHED
    ajuste-run-again   a flow run CRASHED                       -> deployment `recover`, which runs it again once
    ajuste-webhook     a flow run FAILED or CRASHED             -> one call of $AJUSTE_WEBHOOK, if it was set at deploy
    ajuste-drift       event `ajuste.drift` of flows/drift.py   -> deployment `adapt`

Heartbeats come from the flow's own process, if PREFECT_RUNNER_HEARTBEAT_FREQUENCY is set where it runs: a lost worker
alone loses no run. The address of the webhook is kept in a Prefect block on the server, never in a file.
"""

import os
from datetime import timedelta
from uuid import UUID

from prefect.automations import Automation
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CallWebhook, ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.exceptions import ObjectNotFound

HEARTBEAT_SECONDS = 30  # Prefect takes no less
BEATS = 3  # one beat may be late on a busy machine
LOST, AGAIN, WEBHOOK, DRIFT = "ajuste-lost", "ajuste-run-again", "ajuste-webhook", "ajuste-drift"
BLOCK = "ajuste-webhook"
RECOVER, ADAPT = "recover/recover", "adapt/adapt"
DRIFT_EVENT, MODEL = "ajuste.drift", "ajuste.model."  # and the resource that it is about: ajuste.model.<name>
GONE = "no heartbeat: its process is gone"
BEAT = "prefect.flow-run.heartbeat"
RUNS = {"prefect.resource.id": "prefect.flow-run.*"}
ENDS = {f"prefect.flow-run.{name}" for name in ("Completed", "Failed", "Crashed", "Cancelled", "Paused", "Suspended")}


def apply(client: SyncPrefectClient) -> list[str]:
    """Make or update the automations on the client's server; returns their names. Doing it again changes nothing.

    Without deployment `recover` nothing is run again, without $AJUSTE_WEBHOOK nobody is called, without deployment
    `adapt` no drift is answered: those are left out.
    """
    wanted = [_lost()]
    try:
        wanted.append(_again(client.read_deployment_by_name(RECOVER).id))
    except ObjectNotFound:
        pass
    if url := os.environ.get("AJUSTE_WEBHOOK"):
        Webhook(url=url, allow_private_urls=True).save(BLOCK, overwrite=True)
        wanted.append(_webhook(client.read_block_document_by_name(BLOCK, "webhook").id))
    try:
        wanted.append(_drift(client.read_deployment_by_name(ADAPT).id))
    except ObjectNotFound:
        pass
    for automation in wanted:
        _put(automation)
    return [automation.name for automation in wanted]


def _put(automation: Automation) -> None:
    try:
        automation.id = Automation.read(name=automation.name).id
    except ValueError:
        automation.create()
    else:
        automation.update()


def _lost() -> Automation:
    return Automation(
        name=LOST,
        description=f"No heartbeat for {BEATS * HEARTBEAT_SECONDS} s: the flow run is marked crashed.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            match=RUNS,
            after={BEAT},
            expect={BEAT, *ENDS},
            for_each={"prefect.resource.id"},
            threshold=1,
            within=timedelta(seconds=BEATS * HEARTBEAT_SECONDS),
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=GONE)],
    )


def _again(recover: UUID) -> Automation:
    return Automation(
        name=AGAIN,
        description="A crashed run of a deployment is run again, once: `recover` decides.",
        trigger=_reactive({"prefect.flow-run.Crashed"}),
        actions=[
            RunDeployment(
                deployment_id=recover,
                parameters={"flow_run_id": {"__prefect_kind": "jinja", "template": "{{ flow_run.id }}"}},
            )
        ],
    )


def _webhook(block: UUID) -> Automation:
    payload = '{"flow": "{{ flow.name }}", "run": "{{ flow_run.name }}", "state": "{{ flow_run.state.name }}"}'
    return Automation(
        name=WEBHOOK,
        description="A run that failed or crashed: one call.",
        trigger=_reactive({"prefect.flow-run.Failed", "prefect.flow-run.Crashed"}),
        actions=[CallWebhook(block_document_id=block, payload=payload)],
    )


def _drift(adapt: UUID) -> Automation:
    return Automation(
        name=DRIFT,
        description="Requests are no longer like the training data: `adapt` runs now, not at night.",
        trigger=EventTrigger(
            posture=Posture.Reactive,
            match={"prefect.resource.id": f"{MODEL}*"},
            expect={DRIFT_EVENT},
            for_each={"prefect.resource.id"},
            threshold=1,
            within=timedelta(0),
        ),
        actions=[RunDeployment(deployment_id=adapt, parameters={})],
    )


def _reactive(expect: set[str]) -> EventTrigger:
    return EventTrigger(
        posture=Posture.Reactive,
        match=RUNS,
        expect=expect,
        for_each={"prefect.resource.id"},
        threshold=1,
        within=timedelta(0),
    )
