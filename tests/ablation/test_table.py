"""Outcomes that are kept: taken again for the same fields, refused for others."""

import json

import pytest

from retina_jax.ablation.table import OUTCOME, Outcome, check_made_with, scores_of
from retina_jax.config import default_config, leaves
from retina_jax.config.values import comparable, differences
from retina_jax.errors import UserError


@pytest.fixture
def fields():
    return leaves(default_config())


def test_an_outcome_is_taken_again_for_the_same_fields(tmp_path, fields):
    assert Outcome.read(tmp_path, fields) is None
    given = Outcome({"AP": 0.3}, fields=fields)
    given.write(tmp_path)
    assert Outcome.read(tmp_path, fields).scores == given.scores


def test_the_scores_of_a_run_that_ended_early_are_its_best(tmp_path):
    for step, ap in ((100, 0.3), (200, 0.4), (300, None)):
        folder = tmp_path / "eval" / str(step)
        folder.mkdir(parents=True)
        scores = {"AP": ap, "AP50": ap, "AP75": ap, "step": step}
        (folder / "metrics.json").write_text(json.dumps(scores))
    (tmp_path / "metrics.jsonl").write_text('{"step": 300, "images_per_second": 4.0}\n')
    (tmp_path / "config.json").write_text('{"train": {"batch_size": 8}}')
    assert scores_of(tmp_path, 1000) == {"AP": 0.4, "AP50": 0.4, "AP75": 0.4, "step_seconds": 2}
    assert scores_of(tmp_path, 100)["AP"] == 0.3


def test_other_flags_are_named_with_both_values(tmp_path, fields):
    Outcome(None, "stopped: step 3: loss nan", fields).write(tmp_path)
    now = {**fields, "train.steps": 5, "data.buckets": ((64, 64),)}
    with pytest.raises(UserError, match=r"outcome\.json was made with other flags") as caught:
        Outcome.read(tmp_path, now)
    for part in (
        "train.steps=90000, now 5", "data.buckets=[[800, 1344], [1344, 800]], now [[64, 64]]",
        "set another --out",
    ):  # fmt: skip
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_many_other_flags_are_counted(tmp_path, fields):
    now = dict.fromkeys(fields, -1)
    differ = len(differences(comparable(fields), comparable(now)))
    assert differ > len(fields) - 5  # some are compared by what follows from them
    with pytest.raises(UserError, match=rf"; and {differ - 3} more\); set another --out"):
        check_made_with(tmp_path, fields, now)


def test_a_field_that_has_come_since_had_its_default(tmp_path, fields):
    before = {name: value for name, value in fields.items() if name != "loss.alpha"}
    check_made_with(tmp_path, {**before, "loss.gone": 1}, fields)
    with pytest.raises(UserError, match=r"loss\.alpha=0\.25, now 0\.5"):
        check_made_with(tmp_path, before, {**fields, "loss.alpha": 0.5})


def test_an_outcome_that_does_not_say_its_flags_is_not_trusted(tmp_path, fields):
    (tmp_path / OUTCOME).write_text(json.dumps({"scores": None, "stopped": "stopped: step 3"}))
    with pytest.raises(UserError, match="does not store the flags it was made with; set another"):
        Outcome.read(tmp_path, fields)


def test_a_run_that_was_begun_with_other_flags_is_not_gone_on_with(tmp_path, fields):
    config = default_config()
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert Outcome.read(tmp_path, fields) is None
    with pytest.raises(UserError, match=r"\(loss\.gamma=2\.0, now 1\.0\)"):
        Outcome.read(tmp_path, {**fields, "loss.gamma": 1.0})
