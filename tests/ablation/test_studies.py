"""Studies: rows that are fields of the config, named as the paper's."""

import pytest

from retina_jax.ablation.studies import NAMES, study
from retina_jax.ablation.table import Outcome, comma_separated, markdown, table_rows
from retina_jax.config import default_config, leaves, validate
from retina_jax.errors import UserError


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_valid_fields_and_differ(name):
    rows = study(name, default_config()).rows
    known = leaves(default_config())
    for row in rows:
        config = default_config()
        for field, value in row.fields.items():
            assert type(value) is type(known[field])
            config.update_from_flattened_dict({field: value})
        validate(config)
    assert len({row.slug() for row in rows}) == len(rows) == len({row.name for row in rows})
    assert all("/" not in row.slug() and " " not in row.slug() for row in rows)


def test_rows_of_the_same_fields_share_their_runs():
    slugs = [
        {r.slug() for r in study(n, default_config()).rows} for n in ("alpha", "focal", "ohem")
    ]
    assert len(slugs[0] & slugs[1]) == 1  # α 0.75 is γ 0
    assert len(slugs[1] & slugs[2]) == 1  # γ 2


def test_an_unknown_study_names_those_there_are():
    with pytest.raises(UserError, match=r"--study=gama must be one of prior, alpha, focal"):
        study("gama", default_config())


def test_a_table_has_means_spreads_and_what_diverged():
    one, two = study("prior", default_config()).rows
    scores = [{"AP": ap, "AP50": 0.5, "AP75": 0.2, "step_seconds": 0.1} for ap in (0.30, 0.32)]
    outcomes = [Outcome(s) for s in scores]
    rows = [
        (one, [Outcome(None, "stopped: step 3: loss nan")] * 2, {}),
        (two, outcomes, {"anchors": "9"}),
    ]
    header, cells = table_rows(rows)
    assert header == [
        "setting",
        "AP",
        "AP50",
        "AP75",
        "runs",
        "ms per step",
        "anchors",
        "paper's AP",
    ]
    assert cells[0] == ["CE, prior 0.5", "–", "–", "–", "0, 2 diverged", "–", "–", "–"]
    assert cells[1][1:] == ["31.0 ± 1.4", "50.0 ± 0.0", "20.0 ± 0.0", "2", "100", "9", "30.2"]
    text = markdown("title", header, cells)
    assert text.splitlines()[4].startswith("| CE, prior 0.5 | – |")
    assert comma_separated(header, cells).splitlines()[2].startswith('"CE, prior 0.01",31.0 ± 1.4')
