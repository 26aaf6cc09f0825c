"""Printed commands: a shell takes them apart into what was put in."""

import shlex
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retina_jax.config import shell
from retina_jax.config.flags import parse

REPOSITORY = Path(__file__).resolve().parents[2]
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"))


@given(st.lists(TEXT, max_size=4))
def test_a_command_round_trips(arguments):
    parts = shlex.split(shell.command("train", *arguments))
    program = shlex.split(shell.program())
    assert parts == [*program, "train", *arguments]


def test_the_program_is_what_a_shell_finds_beside_this_python(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "a folder" / "python"))
    monkeypatch.setattr(shell.shutil, "which", lambda name: None)
    assert shlex.split(shell.program()) == [sys.executable, "-m", "retina_jax.main"]
    monkeypatch.setattr(shell.shutil, "which", lambda name: "/elsewhere/retina-jax")
    assert shlex.split(shell.program()) == [sys.executable, "-m", "retina_jax.main"]
    beside = str(tmp_path / "a folder" / "retina-jax")
    monkeypatch.setattr(shell.shutil, "which", lambda name: beside)
    assert shell.program() == "retina-jax"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optimizer.learning_rate", 0.1 + 0.2),
        ("loss.gamma", 2.0),
        ("data.buckets", ((64, 96), (96, 64))),
        ("data.buckets", ()),
        ("data.train_short_sides", (64,)),
        ("anchors.octaves", (0.0, 1 / 3, 2 / 3)),
        ("data.dir", "/a folder/with 'quotes' and $HOME"),
        ("data.name", ""),
        ("data.flip", False),
        ("train.steps", 7),
    ],
)
def test_a_printed_field_sets_the_same_value(name, value):
    (flag,) = shlex.split(shell.field_flag(name, value))
    group, _, leaf = name.rpartition(".")
    config = parse([f"--config={REPOSITORY}/experiments/coco.py", flag], "").config
    assert config[group][leaf] == value
    assert type(config[group][leaf]) is type(value)
