"""Check a prepared data set, and how well a config's anchors cover its boxes.

usage: retina-jax doctor --config=experiments/custom.py --config.data.dir=DIR [--out=doctor]
           [--config.path.to.field=value ...]

Reads every record and reports duplicates, boxes outside the image or with zero area, wrong units,
classes without boxes, images that are in both splits, classes that the anchors cannot match (with
the flags that fix this), and padding. Writes OUT/doctor.html (one page with plots) and
OUT/doctor.json. Exits with code 2 if a model could not learn anything useful from the data.
"""

from __future__ import annotations

from pathlib import Path

from retina_jax.config.flags import Flag, parse
from retina_jax.errors import check_local

OUT = Flag("out", "folder for doctor.html and doctor.json", "doctor")
_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def main(argv: list[str]) -> int:
    parsed = parse(argv, __doc__, [OUT])
    if parsed is None:
        return 0
    from rich.console import Console
    from rich.text import Text

    from retina_jax.doctor import report as pages
    from retina_jax.progress import Reporter
    from retina_jax.runs.doctor import doctor

    check_local(parsed.flags.out, "--out")
    out = Path(parsed.flags.out).expanduser()
    report = doctor(parsed.config, out, Reporter.on_stderr())
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 140  # a file does not wrap
    for table in pages.text_tables(report):
        console.print(table)
    for finding in report.findings:
        line = Text.assemble((f"{finding.level}: ", _STYLES[finding.level]), finding.message)
        console.print(line, soft_wrap=True)
    counted = pages.count_text(report.findings)
    console.print(f"{counted}; report: {out / 'doctor.html'}", soft_wrap=True, markup=False)
    return 2 if report.failed() else 0
