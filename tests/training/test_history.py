"""Early ends and decays from (step, AP) alone: by hand, and as counters would decide."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retina_jax.training.history import History

APS = st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.4]), max_size=30)
PATIENCE = st.integers(1, 6)


def history_of(aps, plateau=None):
    """The history of evaluations every ten steps; ``plateau``: patience of the decays."""
    history = History()
    for step, ap in enumerate(aps, 1):
        history = history.evaluated(10 * step, ap)
        if plateau and history.decay_due(plateau):
            history = history.decayed(10 * step)
    return history


@pytest.mark.parametrize(
    ("aps", "best", "since"),
    [
        ([], None, 0),
        ([0.0, 0.0, 0.0], None, 0),  # nothing found yet: nothing to improve on
        ([0.0, 0.3], (20, 0.3), 0),
        ([0.3, 0.3, 0.3], (10, 0.3), 2),  # an equal AP is no better
        ([0.3, 0.2, 0.31, 0.0], (30, 0.31), 1),
    ],
)
def test_the_best_and_the_evaluations_since(aps, best, since):
    history = history_of(aps)
    assert (history.best, history.since_best()) == (best, since)
    assert not history.ends(0)
    assert history.ends(since) == (since > 0)
    assert not history.ends(since + 1)


def test_a_plateau_counts_anew_after_a_decay_and_after_a_best():
    assert history_of([0.3] * 8, plateau=2).decays == (30, 50, 70)
    assert history_of([0.3, 0.2, 0.2, 0.2, 0.4, 0.4, 0.4], plateau=2).decays == (30, 70)
    # the decays do not restart the count of early stopping
    assert history_of([0.3] * 6, plateau=2).since_best() == 5


@given(APS, PATIENCE)
def test_an_early_end_is_that_of_a_counter(aps, patience):
    best, bad, history = 0.0, 0, History()
    for step, ap in enumerate(aps, 1):
        bad = 0 if ap > best or best == 0 else bad + 1
        best = max(best, ap)
        history = history.evaluated(step, ap)
        assert history.ends(patience) == (bad >= patience)


@given(APS, PATIENCE)
def test_decays_are_those_of_a_counter(aps, patience):
    """The rule of torch's ReduceLROnPlateau(mode="max", threshold=0), whose patience is 1 less."""
    best, bad, decays = 0.0, 0, []
    for step, ap in enumerate(aps, 1):
        bad = 0 if ap > best or best == 0 else bad + 1
        best = max(best, ap)
        if bad == patience:
            decays.append(10 * step)
            bad = 0
    assert history_of(aps, patience).decays == tuple(decays)


@given(APS, PATIENCE, st.integers(0, 30))
def test_a_history_that_is_stored_and_read_goes_on_as_it_was(aps, patience, cut):
    whole = history_of(aps, patience)
    begun = history_of(aps[:cut], patience)
    history = History.from_json(json.loads(json.dumps(begun.to_json())))
    assert history == begun
    for step, ap in enumerate(aps[cut:], min(cut, len(aps)) + 1):
        history = history.evaluated(10 * step, ap)
        if history.decay_due(patience):
            history = history.decayed(10 * step)
    assert history == whole
    if aps:  # a kill between the evaluation and its record: it is added again
        assert whole.evaluated(*whole.evaluations[-1]) == whole


@given(APS, PATIENCE)
def test_only_the_order_of_steps_matters(aps, patience):
    near = history_of(aps, patience)
    far = History()
    for step, ap in enumerate(aps, 1):
        far = far.evaluated(step**3, ap)
        if far.decay_due(patience):
            far = far.decayed(step**3)
    assert [step**3 for step in (s // 10 for s in near.decays)] == list(far.decays)
    assert near.ends(patience) == far.ends(patience)


def test_notes_of_earlier_versions_are_an_empty_history():
    assert History.from_json(None) == History()
