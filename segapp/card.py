"""The model card: what a model is for, what it learned from, how good it is, in Markdown."""

from __future__ import annotations

from dataclasses import dataclass

from segapp.checkpoint import ModelInfo
from segapp.finding import counted
from segapp.quality import distrust, review_limit

_MOST_NAMED = 8


@dataclass(frozen=True)
class Section:
    """A part of a card. table: rows of cells, the headings first, () for none; facts: pairs of what
    is told about and what is said; text: a paragraph, "" for none."""

    title: str
    facts: tuple[tuple[str, str], ...] = ()
    table: tuple[tuple[str, ...], ...] = ()
    text: str = ""


@dataclass(frozen=True)
class Card:
    """What is said about a model, for any form that shows it."""

    title: str
    lead: str
    sections: tuple[Section, ...]


def model_card(info: ModelInfo) -> Card:
    """The card of a model (Mitchell et al. 2019), from what its file says about itself."""
    network = info.architecture
    cut = f", {info.pruned.amount:.0%} of its {info.pruned.what} cut" if info.pruned else ""
    what = f"{network.members} networks, each a" if network.members > 1 else "A"
    return Card(
        title=f"Segmentation of {structures(info)}",
        lead=f"{what} {network.name} over {network.encoder}{cut}, written by segapp "
        f"{info.versions.get('segapp', '?')}{f' on {info.created[:10]}' if info.created else ''}.",
        sections=(
            *(_use(info), _gives(info), _judges(info)),
            *(_takes(info), _learned(info), _limits(info)),
        ),
    )


def card_text(info: ModelInfo) -> str:
    """The card in Markdown."""
    card = model_card(info)
    lines = [f"# {card.title}", "", card.lead, ""]
    for section in card.sections:
        lines += [f"## {section.title}", ""]
        if section.table:
            rows = [f"| {' | '.join(map(_cell, row))} |" for row in section.table]
            lines += [rows[0], "|" + "---|" * len(section.table[0]), *rows[1:], ""]
        if section.facts:
            lines += [*(f"- **{name}:** {said}" for name, said in section.facts), ""]
        if section.text:
            lines += [section.text, ""]
    return "\n".join(lines)


def _use(info: ModelInfo) -> Section:
    like = "scans like its training scans" + (f" ({info.training})" if info.training else "")
    return Section(
        "Intended use",
        facts=(
            ("For", f"outlining {structures(info)} in {like}, in research, where somebody looks "
             "at the results."),
            ("Not for", "diagnosis, treatment or any other decision about a patient. Research use, "
             "not a medical device."),
        ),
    )  # fmt: skip


def _gives(info: ModelInfo) -> Section:
    val = info.metrics
    scores = val.get("classes", {})
    rows = tuple(
        (c.name, str(c.value), _figure(scores, c.name, "iou"), _figure(scores, c.name, "dice"))
        for c in info.classes
    )
    measured = "on the validation split, on which this state was also chosen"
    if val.get("every", 1) > 1:
        measured += f" (1 in {val['every']} of its slices or images)"
    if info.architecture.members > 1:
        measured = "the folds' mean, each on the patients that it did not learn from"
    text = "The model file holds no validation figures: "
    if val.get("miou") is not None:
        n = f", over {val['n']} case{'' if val['n'] == 1 else 's'}" if "n" in val else ""
        text = f"Figures are those {measured}: mIoU {_said(val['miou'])}, "
        text += f"Dice {_said(val.get('dice'))}{n}. They say little about scans from elsewhere: "
    text += "measure the model on labelled scans of your own before use."
    heading = ("class", "mask value", "IoU", "Dice")
    return Section("What it gives", table=(heading, *rows), text=text)


def _judges(info: ModelInfo) -> Section:
    """What the model says of its own results."""
    title, quality = "How it judges its results", info.quality
    if quality is None:
        return Section(title, text="It does not: every result has the status ok.")
    guessed = ", guessed from names"
    if quality.patients == quality.cases:
        guessed = ", each case counted as a patient of its own"
    guessed = "" if quality.patients_declared else guessed
    by = f"from {counted(quality.cases, 'validation case')} of "
    by += f"{counted(quality.patients, 'patient')}{guessed}"
    facts = [
        ("Temperature", f"{info.temperature:.2f} divides its logits, so that they say how sure.")
    ]
    if info.architecture.members > 1:
        facts = [("Temperature", "none: it averages its folds, by whose results it is judged.")]
    facts.append(("Judged", f"{by}."))
    marks = ["it is unlike the training scans"] if quality.novelty else []
    marks.append(f"its estimated Dice is below {review_limit(quality):.2f}")
    if quality.finds_always:
        marks.append("nothing is found in it")
    where = f"where {', or '.join(marks)}."
    if doubt := distrust(quality):
        where = f"always: {doubt}."
    facts.append(("Marks a scan for review", where))
    promised = min(margin.promised for margin in quality.margins)
    few = ", as few patients can promise no more" if 0 < promised < 0.9 else ""
    share = f"hold a class's true size in {promised:.0%} of scans like those of validation{few}."
    facts.append(
        ("Ranges of sizes", share if promised else "none: too few patients in validation.")
    )
    return Section(title, facts=tuple(facts))


def _takes(info: ModelInfo) -> Section:
    prep = info.preprocessing
    reads = prep.model_dump_json(exclude_defaults=True)
    return Section(
        "What it takes",
        facts=(
            ("Channels", f"{prep.channels}; cut into {prep.slice_axis} slices."),
            ("Training scans", f"{info.training or 'not recorded'}. Others get a warning."),
            ("Preprocessing", f"`{reads}`"),
        ),
    )


def _learned(info: ModelInfo) -> Section:
    sizes = {split: len(info.data.images.get(split, ())) for split in ("train", "val", "test")}
    said = (f"{sizes['train']} to learn from", f"{sizes['val']} to choose by")
    said += (f"{sizes['test']} kept apart as test",) if sizes["test"] else ()
    counts = ", ".join(said) if info.data.images else ""
    earlier = set(info.data.earlier)
    before = f"; and {len(earlier)} that the model it went on from learned from" if earlier else ""
    others = (image for s in ("val", "test") for image in info.data.images.get(s, ()))
    if known := len(earlier.intersection(others)):
        before += f", {known} of which are among those to choose by or kept apart here"
    return Section(
        "What it learned from",
        facts=(
            ("Data", f"{info.data.root}; cases: {counts or 'not recorded'}{before}."),
            ("Starting weights", f"{info.starting_weights}."),
            ("Licences", info.licence_notes),
            ("The data's licence", "not recorded here: see what came with the data set, and "
             "whether it lets you pass on what was learned from it."),
        ),
    )  # fmt: skip


def _limits(info: ModelInfo) -> Section:
    seen = "other scanners, sites, protocols, ages or diseases than those of its training data"
    scores = info.metrics.get("classes", {})
    missing = [c.name for c in info.classes if scores.get(c.name, {}).get("iou") is None]
    facts = [
        ("Not tested on", f"{seen}, nor on groups of patients apart. It may fail there, and not "
         "every failure is marked."),
        ("Always answers", "every pixel gets one of its classes, whatever the scan shows."),
    ]  # fmt: skip
    if scores and missing:
        facts.append(("Not measured", f"{', '.join(missing)}: in no validation mask or result."))
    if info.preprocessing.context:
        facts.append(("Slice by slice", "it sees a slice and its neighbours, not the whole scan."))
    else:
        facts.append(("Slice by slice", "it sees one slice at a time, not the whole scan."))
    return Section("Limits", facts=tuple(facts))


def structures(info: ModelInfo) -> str:
    """What the model outlines, in words; the first of many classes stand for all."""
    names = [c.name for c in info.classes[1:]] or [info.classes[0].name]
    more = len(names) - _MOST_NAMED
    return ", ".join(names if more <= 1 else [*names[:_MOST_NAMED], f"{more} others"])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _figure(scores: dict, name: str, key: str) -> str:
    return _said(scores.get(name, {}).get(key))


def _said(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
