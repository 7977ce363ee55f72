"""The model card: what a model is for, what it learned from, how good it is, in Markdown."""

from __future__ import annotations

from segapp.checkpoint import ModelInfo


def card_text(info: ModelInfo) -> str:
    """The card of a model (Mitchell et al. 2019), from what its file says about itself."""
    val, network = info.metrics, info.architecture
    cut = f", {info.pruned.amount:.0%} of its {info.pruned.what} cut" if info.pruned else ""
    scores = val.get("classes", {})
    rows = [
        f"| {c.name} | {c.value} | {_figure(scores, c.name, 'iou')} "
        f"| {_figure(scores, c.name, 'dice')} |"
        for c in info.classes
    ]
    counts = ", ".join(f"{len(hashes)} {split}" for split, hashes in info.data.images.items())
    reads = info.preprocessing.model_dump_json(exclude_defaults=True)
    measured = "on the validation split, on which this state was also chosen"
    if val.get("every", 1) > 1:
        measured += f" (1 in {val['every']} of its slices or images)"
    lines = [
        f"# Segmentation of {', '.join(c.name for c in info.classes[1:]) or info.classes[0].name}",
        "",
        f"A {network.name} over {network.encoder}{cut}, written by segapp "
        f"{info.versions.get('segapp', '?')} on {info.created}.",
        "",
        "## What it gives",
        "",
        "| class | mask value | IoU | Dice |",
        "|---|---|---|---|",
        *rows,
        "",
        f"Figures are those {measured}: mIoU {val.get('miou')}, Dice {val.get('dice')}. They say",
        "little about scans from elsewhere: measure it on labelled scans of your own before use.",
        "",
        "## What it takes",
        "",
        f"- Channels: {info.preprocessing.channels}; slices: {info.preprocessing.slice_axis}.",
        f"- Preprocessing: `{reads}`",
        f"- Training scans: {info.training or 'not recorded'}. Others get a warning.",
        "",
        "## What it learned from",
        "",
        f"- Data: {info.data.root}; cases: {counts}.",
        f"- Starting weights: {info.starting_weights}.",
        "",
        "## Limits and licence",
        "",
        info.licence_notes,
        "",
    ]
    return "\n".join(lines)


def _figure(scores: dict, name: str, key: str) -> str:
    value = scores.get(name, {}).get(key)
    return "–" if value is None else f"{value:.4f}"
