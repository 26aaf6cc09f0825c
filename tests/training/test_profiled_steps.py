"""Which steps a profile records: as asked, but never a compilation or an evaluation."""

import pytest

from retina_jax.errors import UserError
from retina_jax.training.profiled_steps import ProfiledSteps


def test_a_count_or_a_first_and_a_last_step():
    assert ProfiledSteps.parse("10") == ProfiledSteps(10)
    assert ProfiledSteps.parse("100:110") == ProfiledSteps(11, 100)
    assert ProfiledSteps.parse("7:7") == ProfiledSteps(1, 7)


@pytest.mark.parametrize("text", ["", "0", "-3", "10:5", "0:4", "1:2:3", "ten", "1.5", ":4", "4:"])
def test_anything_else_is_refused_in_a_line(text):
    with pytest.raises(UserError, match=f"--profile={text} selects no steps; set --profile=10 for"):
        ProfiledSteps.parse(text)


def test_steps_beyond_the_run_are_refused():
    ProfiledSteps(11, 100).check(110)
    with pytest.raises(UserError, match=r"=100:110 exceeds config.train.steps=109; "):
        ProfiledSteps(11, 100).check(109)
    with pytest.raises(UserError, match=r"=10 exceeds .* set --config.train.steps=10 or more"):
        ProfiledSteps(10).check(9)


def place(asked, begun=0, steps=1000, shapes=(), every=0, **more):
    """``shapes``: by step, "wide" elsewhere; ``every``: steps between evaluations."""
    shapes = dict(shapes)
    steps, note = asked.place(
        begun,
        steps,
        lambda step: shapes.get(step, "wide"),
        lambda step: bool(every) and step % every == 0,
        **more,
    )
    return (steps[0], steps[-1]) if steps else None, note


def test_a_count_begins_when_the_run_is_warm():
    assert place(ProfiledSteps(5)) == ((11, 15), "")
    assert place(ProfiledSteps(5), begun=200) == ((211, 215), "")
    assert place(ProfiledSteps(5), steps=8) == ((4, 8), ""), "a short run has no time for that"
    assert place(ProfiledSteps(5), steps=6) == ((2, 6), "")


def test_a_step_that_compiles_is_left_out():
    assert place(ProfiledSteps(11, 100)) == ((100, 110), "")
    assert place(ProfiledSteps(5), shapes={12: "tall"}) == ((13, 17), "")
    assert place(ProfiledSteps(5), shapes={4: "tall", 12: "tall"}) == ((11, 15), "")
    found, note = place(ProfiledSteps(11, 100), shapes={104: "tall", 106: "tall"})
    assert found == (105, 115)
    assert "recording steps 105 to 115 instead of steps 100 to 110" in note
    # after a rollback, a program that was compiled before
    found = place(ProfiledSteps(11, 100), shapes={104: "tall"}, compiled={"wide", "tall"})
    assert found == ((100, 110), "")
    found, note = place(ProfiledSteps(2, 1))
    assert found == (2, 3)
    assert "recording steps 2 to 3 instead of steps 1 to 2" in note


def test_an_evaluation_may_only_follow():
    assert place(ProfiledSteps(5), every=15) == ((11, 15), "")
    assert place(ProfiledSteps(5), every=14) == ((15, 19), "")
    found, note = place(ProfiledSteps(5), every=4)
    assert found is None
    assert "no 5 steps in a row without a compilation or an evaluation" in note


def test_a_resumed_run_records_what_is_left():
    found, note = place(ProfiledSteps(11, 100), begun=110)
    assert found is None
    assert (
        note
        == "--profile: the run continues after step 110, so steps 100 to 110 cannot be recorded"
    )
    found, note = place(ProfiledSteps(11, 100), begun=104)
    assert found == (106, 111)
    assert "recording steps 106 to 111 instead of steps 100 to 110" in note
    assert place(ProfiledSteps(5), begun=1000)[0] is None
