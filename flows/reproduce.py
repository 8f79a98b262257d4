"""The weekly proof: what answers is made again in a clean clone. Deployment `reproduce` of infra/prefect.yaml."""

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from ajuste.tracking.again import reproduce as proof
from ajuste.tracking.registry import registry
from flows._patience import outlive_worker


class NotReproduced(Exception):
    """An input, a registered file or an out differs; the message names it."""


@flow(name="reproduce")
def reproduce(revision: str | None = None) -> str:
    """Make the champion of each served name again, or `revision`, or HEAD where there is no champion.

    Fails, naming what differs, after all of them were tried; each version keeps its verdict in tag `reproduced`.
    """
    outlive_worker()
    verdicts = [proof.reproduce(reference) for reference in ([revision] if revision else _champions() or ["HEAD"])]
    text = "\n\n".join(proof.report(verdict) for verdict in verdicts)
    create_markdown_artifact(key="reproduction", markdown=f"```\n{text}\n```")
    if not all(verdict.good for verdict in verdicts):
        raise NotReproduced(text)
    return text


def _champions() -> list[str]:
    served = [name for name in registry.names() if not name.endswith("-adapter")]
    return [f"models:/{name}@champion" for name in served if registry.by_alias(name, "champion")]
