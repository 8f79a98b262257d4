"""What `docker compose` and `kubectl` need before their first start: passwords that nobody has to invent.

    python infra/prepare.py      writes what is missing, changes nothing that is there

    infra/.env          for compose.yaml, the names of env.example          mode 0600, ignored by git
    infra/secret.env    for the Secret `ajuste` of a cluster                mode 0600, ignored by git
    infra/runs.env      for its Secret `ajuste-runs`: what runs of a Kubernetes pool log in with     the like
    artifacts/base/     what the model server mounts: Docker would make it for root alone
"""

import os
import secrets
from pathlib import Path

from ajuste.cli.logins import USER, private

HERE = Path(__file__).parent
# a name of the Secret, and of the same thing in infra/.env; those of your S3 store are yours to fill in
NAMES = {"postgres-password": "AJUSTE_POSTGRES_PASSWORD", "prefect-login": "AJUSTE_PREFECT_LOGIN",
         "mlflow-password": "AJUSTE_MLFLOW_PASSWORD", "mlflow-session-key": "AJUSTE_MLFLOW_SESSION_KEY",
         "s3-access-key": "", "s3-secret-key": ""}  # fmt: skip
RUNS = {"MLFLOW_TRACKING_PASSWORD": "mlflow-password", "AWS_ACCESS_KEY_ID": "s3-access-key",
        "AWS_SECRET_ACCESS_KEY": "s3-secret-key"}  # fmt: skip


def main() -> None:
    example = (HERE / "env.example").read_text(encoding="utf-8")
    wanted = [line.partition("=")[::2] for line in example.splitlines() if "=" in line and not line.startswith("#")]
    compose = _filled(HERE / ".env", {name: value or made(name) for name, value in wanted})
    secret = _filled(HERE / "secret.env", {name: compose.get(same, "") for name, same in NAMES.items()})
    _filled(HERE / "runs.env", {name: secret[same] for name, same in RUNS.items()})
    (HERE.parent / "artifacts" / "base").mkdir(parents=True, exist_ok=True)


def made(name: str) -> str:
    """A new value for this name: a user's number, a login, or a password of letters and digits."""
    if name == "AJUSTE_UID":
        return str(os.getuid())
    return f"{USER}:{secrets.token_hex(32)}" if name.endswith("_LOGIN") else secrets.token_hex(32)


def _filled(path: Path, values: dict[str, str]) -> dict[str, str]:
    """Add to a file of NAME=VALUE what it lacks; returns all of it."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    there = dict(line.partition("=")[::2] for line in text.splitlines() if "=" in line and not line.startswith("#"))
    missing = {name: value for name, value in values.items() if name not in there}
    if missing or not path.exists():
        lines = [f"{name}={value}" for name, value in missing.items()]
        private(path, "\n".join([*text.splitlines(), *lines, ""]))
        print(f"{path}: {', '.join(missing)}")
    path.chmod(0o600)
    return there | missing


if __name__ == "__main__":
    main()
