"""Study red-team-full: random search for a suffix, artifacts/studies/red-team-full/search.json."""

from studies.labelled import run
from studies.redteam import Study, write
from tasks.redteam.search import SearchConfig, searched


def main() -> None:
    study = Study()
    config = study.config(SearchConfig, "search")
    speaker = study.speaker(study.params["model"], "search")
    found = searched(*speaker, config, study.compute, study.behaviours)
    tried = 2 + config.steps * config.candidates
    write("search.json", {"behaviours": found, "prompts_each": tried, "words": config.words})
    print(f"search: {len(found)} behaviours, {tried} prompts each")


if __name__ == "__main__":
    run(main)
