"""The data card of a version, by huggingface_hub's own DatasetCard: every set behind the model, its digest and licence.

    data_card(records).content
"""

from pathlib import Path

from ajuste.tracking.cards.lineage import Used
from ajuste.tracking.cards.marks import number, points, table
from ajuste.tracking.cards.records import Records

TEMPLATE = Path(__file__).with_name("_data_card.md")
ROLES = {"trains": "read by the training stages", "judges": "read by the evaluations",
         "beside": "read to be compared with (decontamination, copies, quality) by"}  # fmt: skip


def data_card(records: Records):
    """The DatasetCard of the sets behind a version."""
    from huggingface_hub import DatasetCard, DatasetCardData

    name = f"{records.name}/{records.version}"
    trained = [one for one in records.sets if one.trains]
    data = DatasetCardData(pretty_name=f"Data of {name}", license="other", license_name="see-each-set",
                           tags=["ajuste", *sorted({one.kind for one in records.sets})])
    what = (f"What `{name}` was trained on ({len(trained)} of the sets below), judged by and compared with. No row is "
            "in this card or beside it.") if records.sets else (
        "dvc.lock names no set of data/ or sources/ above the stage that made this version: nothing can be said of its "
        "data.")  # fmt: skip
    sections = [(one.path, _of(one)) for one in records.sets]
    sections += [("Snapshot", [points(_snapshot(records))])]
    return DatasetCard.from_template(data, template_path=str(TEMPLATE), title=name, what=what, sections=sections)


def _snapshot(records: Records) -> list[str]:
    tags = records.tags
    data = tags.get("data")
    return [f"data.dvc named `{data}`" if data else "the raw data was not under DVC when the version was registered",
            f"the code that read it is commit `{tags['git_commit']}`" if tags.get("git_commit") else
            "the code that read it was not in git"]


def _of(one: Used) -> list[str]:
    """The parts of a set's section."""
    parts = [points([
        f"kind: {one.kind}", f"DVC's digest of all its files: `{one.digest}`", f"licence: {one.licence}",
        *(f"{words} {', '.join(f'`{stage}`' for stage in getattr(one, role))}" for role, words in ROLES.items()
          if getattr(one, role)),
    ])]  # fmt: skip
    if one.files:
        parts.append(table(["file", "source", "sha256 of the package"],
                           [[f"`{file.path}`", f"`{file.source or 'not recorded'}`",
                             f"`{file.sha256}`" if file.sha256 else "it came in no pinned package"]
                            for file in one.files]))
    if one.rows:
        parts.append(table(["rows", "number"], [[name.replace("_", " "), number(count)]
                                                for name, count in one.rows.items()]))
    else:
        parts.append("Its rows are not counted by a stage above this version.")
    return parts
