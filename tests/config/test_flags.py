"""Flags: both spellings, older names, required ones, and experiments of the installation."""

from pathlib import Path

import pytest

from retina_jax.config.flags import ArgumentParser, Flag, parse
from retina_jax.config.values import leaves
from retina_jax.errors import UserError
from retina_jax.jobs.import_weights import FLAGS as IMPORT_FLAGS

REPOSITORY = Path(__file__).resolve().parents[2]
SHAPES = f"--config={REPOSITORY}/experiments/shapes.py"


@pytest.mark.parametrize(
    "flags",
    [
        ["--config.train.batch-size=4"],
        ["--config.train.batch_size=4"],
        ["-config.train.batch-size=4"],
        ["--config.train.batch-size", "4"],
        ["--config.train.batch_size", "4"],
    ],
    ids="dash underscore one-dash dash-apart underscore-apart".split(),
)
def test_a_field_is_set_by_either_spelling(flags):
    parsed = parse([SHAPES, *flags], "")
    assert parsed.config.train.batch_size == 4
    assert parsed.overrides == {"train.batch_size": 4}
    assert parsed.config_file == f"{REPOSITORY}/experiments/shapes.py"
    changed = {n: v for n, v in leaves(parsed.config).items()
               if v != leaves(parse([SHAPES], "").config)[n]}  # fmt: skip
    assert changed == {"train.batch_size": 4}


def test_a_value_keeps_its_dashes_and_underscores():
    parsed = parse([SHAPES, "--config.data.dir=/a-b/c_d", "--config.data.name", "e-f_g"], "")
    assert (parsed.config.data.dir, parsed.config.data.name) == ("/a-b/c_d", "e-f_g")


def test_values_are_of_their_fields_type():
    parsed = parse(
        [SHAPES, "--config.loss.gamma=1", "--config.data.buckets=((64,96),(96,64))",
         "--noconfig.data.flip", "--config.model.remat"], ""
    )  # fmt: skip
    assert parsed.config.loss.gamma == 1.0
    assert isinstance(parsed.config.loss.gamma, float)
    assert parsed.config.data.buckets == ((64, 96), (96, 64))
    assert parsed.config.data.flip is False
    assert parsed.config.model.remat is True
    assert parsed.config.is_locked


OWN = (
    Flag("out", "a folder", example="runs/x", also="workdir"),
    Flag("keep_all", "a count", 3, least=1),
    Flag("only", "a name", ""),
    Flag("names", "some names", []),
)


@pytest.mark.parametrize("spelt", ["--keep-all=5", "--keep_all=5", "-keep-all=5"])
def test_a_commands_own_flags(spelt):
    flags = parse([SHAPES, "--out=o", spelt, "--names=a,b"], "", OWN).flags
    assert vars(flags) == {"out": "o", "keep_all": 5, "only": "", "names": ["a", "b"]}


@pytest.mark.parametrize("flags", [["--workdir=w"], ["--workdir", "w"], ["-workdir=w"]])
def test_an_older_name_still_works(flags):
    assert parse([SHAPES, *flags], "", OWN).flags.out == "w"
    weights = ["--weights=a.pth", *flags]
    assert parse([SHAPES, *weights], "", IMPORT_FLAGS).flags.out == "w"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--out is missing; set --out=runs/x"),
        (["--out="], "--out is missing; set --out=runs/x"),
        (["--out=o", "--keep_all=0"], "--keep_all=0 must be 1 or more; set --keep_all=1"),
        (["--out=o", "--keep_all=x"], "keep_all"),
        (["--out=o", "word"], "unexpected argument 'word'; write flags as --flag=value"),
        (["--out=o", "--outs=o"], "outs"),
        (["--out=o", "--config.train.stepz=1"], "did you mean --config.train.steps?"),
        (["--out=o", "--config.xyz.uvw=1"], "--config.xyz.uvw is not a config field; --help lists"),
        (["--out=o", "--config.data.flip=maybe"], "--config.data.flip=maybe is not of type bool"),
        (["--out=o", "--config.coder.weights=(1,"], "is not of type tuple; for example, set "),
        (["--out=o", "--config.train.steps=0"], "config.train.steps=0 must be above 0"),
    ],
)
def test_mistakes_are_told_in_one_line(flags, message):
    with pytest.raises(UserError) as caught:
        parse([SHAPES, *flags], "", OWN)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_an_experiment_raises_is_told_with_its_line(tmp_path):
    broken = tmp_path / "own.py"
    broken.write_text("def get_config():\n    raise ValueError('no such size')\n")
    with pytest.raises(UserError, match=r"--config: no such size \(own\.py, line 2\)"):
        parse([f"--config={broken}"], "")
    broken.write_text("def get_config():\n    return 1 / 0\n")
    with pytest.raises(UserError, match=r"ZeroDivisionError: .* \(own\.py, line 2\); correct it"):
        parse([f"--config={broken}"], "")
    (tmp_path / "config.json").write_text('{"train": true}')
    with pytest.raises(UserError, match=r"name 'true' is not defined \(config\.json, line 1\)"):
        parse([f"--config={tmp_path}/config.json"], "")
    with pytest.raises(UserError, match=r"coco_detectron2\.py:2x must be :1x or :3x"):
        parse([f"--config={REPOSITORY}/experiments/coco_detectron2.py:2x"], "")


def test_help_is_printed_and_nothing_is_parsed(capsys):
    assert parse(["--config=nowhere.py", "--help"], "what it does", OWN) is None
    shown = capsys.readouterr().out
    assert shown.startswith("what it does\n")
    assert "  --out\n      a folder (required)" in shown
    assert "  --keep_all=3\n      a count" in shown
    assert "  --config.loss.gamma=2.0\n" in shown


def test_experiments_come_from_the_installation_where_the_working_folder_has_none(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    parsed = parse(["--config=experiments/coco_detectron2.py:3x"], "")
    assert parsed.config.train.steps == 270_000
    assert parse(["--config", "experiments/shapes.py"], "").config.data.name == "shapes"
    (tmp_path / "experiments").mkdir()
    own = (REPOSITORY / "experiments/shapes.py").read_text().replace('"shapes"', '"own"')
    (tmp_path / "experiments/shapes.py").write_text(own)
    assert parse(["--config=experiments/shapes.py"], "").config.data.name == "own"


def test_a_missing_experiment_names_those_there_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for flags in (["--config=experiments/coc.py"], ["--config", "experiments/coc.py"]):
        with pytest.raises(UserError, match=r"coc\.py: no such file; available: .*ents/coco\.py"):
            parse(flags, "")


@pytest.mark.parametrize("spelt", ["--follow_links", "--follow-links", "-follow_links"])
def test_commands_without_a_config_take_either_spelling(spelt):
    parser = ArgumentParser(prog="retina-jax x")
    parser.add_argument("--follow-links", action="store_true")
    parser.add_argument("--out")
    expected = dict(follow_links=True, out="a_b-c")
    if spelt.startswith("--"):
        assert vars(parser.parse_args([spelt, "--out=a_b-c"])) == expected
        assert vars(parser.parse_args([spelt, "--out", "a_b-c"])) == expected
    else:
        with pytest.raises(UserError, match="retina-jax x --help lists the flags"):
            parser.parse_args([spelt])
    with pytest.raises(UserError, match="retina-jax x --help lists the flags"):
        parser.parse_args(["--follow"])
