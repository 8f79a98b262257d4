"""The weekly proof: the last result is made again in a clean clone. Deployment `reproduce` of infra/prefect.yaml."""

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from tracking import reproduce as proof


class NotReproduced(Exception):
    """An input or an out differs; the message names it."""


@flow(name="reproduce")
def reproduce(revision: str = "HEAD") -> str:
    """Fails, naming what differs, when the result of `revision` can not be made again bit by bit."""
    verdict = proof.reproduce(revision)
    text = proof.report(verdict)
    create_markdown_artifact(key="reproduction", markdown=f"```\n{text}\n```")
    if not verdict.equal:
        raise NotReproduced(text)
    return text
