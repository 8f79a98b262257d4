"""Study red-team-full: an attacker model rewrites, artifacts/studies/red-team-full/rewrite.json."""

from studies.labelled import run
from studies.redteam import Study, write
from tasks.redteam.rewrite import RewriteConfig, rewritten, success


def main() -> None:
    study = Study()
    config = study.config(RewriteConfig, "rewrite")
    target = study.speaker(study.params["model"], "rewrite")
    same = config.attacker == study.params["model"]
    attacker = target if same else study.speaker(config.attacker, "rewrite")
    found = rewritten(attacker, target, config, study.compute, study.behaviours)
    hits = [sum(success(found, tries)) for tries in range(1, config.tries + 1)]
    write("rewrite.json", {"behaviours": found, "hits": hits, "rows": len(found)})
    print(f"rewrite: {hits[-1]} of {len(found)} behaviours within {config.tries} tries")


if __name__ == "__main__":
    run(main)
