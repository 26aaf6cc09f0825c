"""The program on real data: what it says, the flags that help, exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support import prepare_coco

REPOSITORY = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def run(program):
    return lambda *arguments: program("doctor", *arguments)


def test_the_script_runs_the_command(bccd_data, tmp_path):
    done = subprocess.run(
        [sys.executable, REPOSITORY / "scripts/doctor.py", CUSTOM, "--config.data.max_boxes=27",
         f"--config.data.dir={bccd_data}", f"--out={tmp_path}"],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "doctor.html").exists()


CUSTOM = "--config=experiments/custom.py:paper"


def test_blood_cells_and_the_flags_that_help(run, bccd_data, tmp_path):
    done = run(CUSTOM, f"--config.data.dir={bccd_data}", f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "Platelets" in done.stdout
    before = json.loads((tmp_path / "doctor.json").read_text())
    page = (tmp_path / "doctor.html").read_text()
    # four plots, six pictures, six of the worst and six as training sees them
    assert page.count("data:image/png;base64,") == 22
    platelets = before["splits"][0]["classes"][2]
    assert (platelets["name"], platelets["boxes"]) == ("Platelets", 209)
    assert platelets["foreground"] < 0.3

    # one field beside them: annotated once more by another focus of the same slide
    leaks = [f["message"] for f in before["findings"] if f["check"] == "leaks"]
    assert len(leaks) == 1
    assert "BloodImage_00037.jpg" in leaks[0]

    flags = before["suggestion"]["flags"].replace("'", "").split()
    done = run(CUSTOM, f"--config.data.dir={bccd_data}", f"--out={tmp_path}", *flags)
    after = json.loads((tmp_path / "doctor.json").read_text())
    assert done.returncode == 0
    assert after["splits"][0]["classes"][2]["foreground"] >= 0.9
    assert after["suggestion"] is None
    for promised, row in zip(list(before["suggestion"]["after"].values()),
                             after["splits"][0]["classes"], strict=False):  # fmt: skip
        assert row["foreground"] == promised
    assert not [f for f in after["findings"] if f["check"] == "anchor_recall"]


def test_exit_code_2_where_evaluation_is_training(run, bccd, tmp_path):
    files = [f"train={bccd / 'val.json'}", f"validation={bccd / 'val.json'}"]
    prepare_coco(bccd / "images", files, tmp_path / "data")
    done = run(CUSTOM, f"--config.data.dir={tmp_path / 'data'}", f"--out={tmp_path}")
    assert done.returncode == 2
    assert "error: every image of validation is also in train" in done.stdout
    assert (tmp_path / "doctor.html").exists()


def test_exit_code_2_for_too_many_boxes(run, bccd_data, tmp_path):
    done = run(CUSTOM, f"--config.data.dir={bccd_data}", f"--out={tmp_path}",
               "--config.data.max_boxes=27")  # fmt: skip
    assert done.returncode == 2
    assert "set --config.data.max_boxes=28" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "--config is missing"),
        ([CUSTOM, "--config.data.dir=/nowhere"], "config.data.dir='/nowhere' is not a folder"),
        ([CUSTOM, "--config.data.shrot_side=3"], "did you mean --config.data.short_side?"),
        ([CUSTOM, "--out=/dev/null/x"], "--out=/dev/null/x"),
    ],
)
def test_mistakes_are_one_line(run, arguments, named):
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert named in done.stderr
    assert done.stderr.count("\n") == 1
