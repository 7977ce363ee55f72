"""A run that several processes open together, and open again after one of them was lost."""

from __future__ import annotations

from pathlib import Path

from segapp.errors import ConfigError
from segapp.files import write_text
from segapp.plan import Plan, make_plan, open_run, reopen_run, withdraw_run
from segapp.settings import Settings
from segapp.together import Together, launch_name, restarted

_MARK = ".launch"  # in the run folder: which launch began the run


def open_together(settings: Settings, resume: bool, together: Together) -> Plan | None:
    """`open_run`, or `reopen_run` with `resume`, in the first process; the others plan the same.

    Where a launcher started all processes anew because one was lost, the run that this very launch
    had begun goes on; a folder that holds another run is refused as ever. None for a run that is
    finished. Raises what these raise, and ConfigError where processes see other data or settings.
    """
    out = settings.train.out
    assert out is not None, "load_settings makes sure of it"
    if settings.train.folds and not settings.train.fold and together.several:
        raise ConfigError("train.folds: folds are trained by one process each, not by several")
    resume = resume or (together.first and together.several and restarted() and _began(out))
    resume = bool(together.of_first(resume)[0])
    if together.first:
        plan = reopen_run(settings) if resume else open_run(settings)
    else:
        finished = resume and (out / "metrics.json").is_file()
        plan = None if finished else make_plan(settings)
    told = "finished" if plan is None else plan.record.model_dump_json() + plan.settings.to_yaml()
    try:
        together.require_same("the data, or a setting,", told)
    except BaseException:
        if plan and together.first:
            withdraw_run(plan)  # as it was found
        raise
    if plan and together.first and together.several:
        write_text(out / _MARK, launch_name())
    return plan


def _began(out: Path) -> bool:
    """Whether this launch began the run in the folder, before it was started anew."""
    mark = out / _MARK
    if not mark.is_file() or mark.read_text(encoding="utf-8") != launch_name():
        return False
    if (out / "config.yaml").is_file():
        return True
    mark.unlink(missing_ok=True)  # ended before there was a run
    return False
