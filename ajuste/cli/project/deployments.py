"""What a Prefect server knows of the deployments, asked over its HTTP API: Prefect itself takes seconds to import."""

import os
from dataclasses import dataclass
from datetime import UTC, datetime

API = "http://127.0.0.1:4200/api"  # of `ajuste ui`
SECONDS = 10.0  # a busy server; one that is not there says so at once
CONNECT = 3.0


@dataclass(frozen=True)
class Deployment:
    """A deployment with the times of its next and its last run. `last`: state and its message."""

    name: str  # as `prefect deployment run` takes it: flow/deployment
    pool: str
    scheduled: bool  # a schedule starts it
    next: datetime | None  # of a new deployment known after some seconds
    last: datetime | None
    state: str
    message: str


def server(seconds: float = SECONDS) -> str | None:
    """The API of the server that answers: $PREFECT_API_URL, or that of `make stack`, or that of `ajuste ui`.

    The login of one that we started goes to $PREFECT_API_AUTH_STRING, where Prefect's own client and the processes
    that are started look for it. Raises UsageError if the server wants a login that we do not have.
    """
    import httpx

    from ajuste.cli import logins
    from ajuste.core.errors import UsageError
    from ajuste.core.home import home

    named = os.environ.get("PREFECT_API_URL")
    ours = [logins.read_env(home() / starter).get("PREFECT_API_URL") for starter in logins.STARTERS]
    for api in [named] if named else [*filter(None, ours), API]:
        try:
            timeout = httpx.Timeout(seconds, connect=CONNECT)
            if httpx.get(f"{api}/health", timeout=timeout).status_code != 200:
                continue
            if login := logins.known(api, home()):
                os.environ["PREFECT_API_AUTH_STRING"] = login
            if httpx.get(f"{api}/admin/version", timeout=timeout, auth=_login()).status_code == 401:
                raise UsageError(f"the Prefect server {api} wants a login that is not known here: source the `env` "
                                 "file of who started it, or PREFECT_API_AUTH_STRING=user:password")  # fmt: skip
            return api
        except httpx.HTTPError:
            continue
    return None


def _login() -> tuple[str, str] | None:
    user, colon, password = os.environ.get("PREFECT_API_AUTH_STRING", "").partition(":")
    return (user, password) if colon else None


def deployments(api: str, seconds: float = SECONDS) -> list[Deployment]:
    """All deployments of the server, by name. Raises httpx.HTTPError if it stops answering."""
    import httpx

    with httpx.Client(base_url=api, timeout=seconds, auth=_login()) as client:

        def ask(path: str, **body: object) -> list[dict]:
            answer = client.post(path, json=body)
            answer.raise_for_status()
            return answer.json()

        flows = {item["id"]: item["name"] for item in ask("/flows/filter", limit=200)}
        found = []
        for item in ask("/deployments/filter", limit=200):
            mine = {"deployments": {"id": {"any_": [item["id"]]}}}
            due = ask("/flow_runs/filter", limit=1, sort="EXPECTED_START_TIME_ASC", **mine,
                      flow_runs={"state": {"type": {"any_": ["SCHEDULED"]}}})  # fmt: skip
            past = ask("/flow_runs/filter", limit=1, sort="EXPECTED_START_TIME_DESC", **mine,
                       flow_runs={"state": {"type": {"not_any_": ["SCHEDULED"]}}})  # fmt: skip
            state = (past[0]["state"] or {}) if past else {}
            found.append(Deployment(
                f"{flows.get(item['flow_id'], '?')}/{item['name']}", item["work_pool_name"] or "",
                not item["paused"] and any(schedule["active"] for schedule in item["schedules"]),
                _time(due[0]["expected_start_time"]) if due else None,
                _time(past[0]["start_time"] or past[0]["expected_start_time"]) if past else None,
                state.get("name", ""), state.get("message") or "",
            ))  # fmt: skip
    return sorted(found, key=lambda deployment: deployment.name)


def lines(found: list[Deployment]) -> list[tuple[str, str, str, str]]:
    """Each as (name and pool, next run, last run, its state with the first line of its message if it did not end)."""
    rows = []
    for item in found:
        why = item.message.splitlines()[0][:100] if item.message and item.state != "Completed" else ""
        upcoming = _shown(item.next) or ("not planned yet" if item.scheduled else "when asked for")
        rows.append((item.name, upcoming, _shown(item.last) or "none",
                     f"{item.state}: {why}" if why else item.state))  # fmt: skip
    return rows


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def _shown(when: datetime | None) -> str:
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if when else ""
