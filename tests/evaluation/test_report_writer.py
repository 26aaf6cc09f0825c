"""Reports beside training: written after an evaluation, and never worth a run."""

import json
import threading

import pytest

from retina_jax.evaluation import report_writer
from retina_jax.evaluation.report_writer import ReportWriter, read_curves, write_report


@pytest.fixture
def notes():
    return []


@pytest.fixture
def arguments(reported):
    return reported.truth, reported.detections, reported.metrics, reported.evaluation


def test_a_report_is_written_beside(reported, arguments, notes, tmp_path):
    writer = ReportWriter(reported.split, notes.append)
    folder = tmp_path / "run" / "eval" / "400"
    writer.start(folder, *arguments)
    counted = []
    writer.wait(counted.append)
    assert sum(counted) == writer.parts == len(reported.split) + 2
    assert not writer.pending
    assert "<title>run, 400</title>" in (folder / "report.html").read_text()
    writer.abandon()
    assert notes == []


def test_without_an_evaluation_of_hotcoco_it_evaluates_itself(reported, arguments, tmp_path):
    own = write_report(tmp_path / "one" / "400", reported.split, *arguments)
    again = write_report(tmp_path / "two" / "400", reported.split, *arguments[:3])
    assert own.read_text() == again.read_text()


def test_a_failure_is_one_line(reported, arguments, notes, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise ValueError("two\nlines")

    monkeypatch.setattr(report_writer, "gallery", fails)
    writer = ReportWriter(reported.split, notes.append)
    writer.start(tmp_path, *arguments)
    writer.wait()
    assert notes == [f"{tmp_path}/report.html could not be written (ValueError: two lines)"]
    monkeypatch.undo()
    writer.start(tmp_path, *arguments)  # the next one is not affected
    writer.wait()
    assert (tmp_path / "report.html").exists()
    writer.abandon()


def test_a_program_that_ends_does_not_wait(reported, arguments, notes, tmp_path, monkeypatch):
    begun = threading.Event()

    def slow(split, errors, advance, threads):
        begun.set()
        assert writer._abandoned.wait(30)
        advance()

    monkeypatch.setattr(report_writer, "gallery", slow)
    writer = ReportWriter(reported.split, notes.append)
    writer.start(tmp_path, *arguments)
    assert begun.wait(30)
    writer.wait(stops=lambda: True)
    assert writer.pending
    writer.abandon()
    assert notes == [f"{tmp_path}/report.html is unfinished; retina-jax evaluate writes it"]
    assert not (tmp_path / "report.html").exists()


def test_curves_are_read_from_what_there_is(tmp_path):
    assert read_curves(tmp_path) == report_writer.Curves([], [])
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n[3]\n{"step": 2, "lo')
    for name, content in (("20", {"step": 20}), ("3", {"step": 3}), ("20-data", {"step": 20})):
        path = tmp_path / "eval" / name / "metrics.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content))
    (tmp_path / "eval" / "4").mkdir()
    (tmp_path / "eval" / "4" / "metrics.json").write_text("{")
    curves = read_curves(tmp_path)
    assert curves.log == [{"step": 1, "loss": 2}]
    assert [e["step"] for e in curves.evaluations] == [3, 20]


def test_a_run_has_reports(finished_run):
    (page,) = finished_run.glob("eval/*/report.html")
    text = page.read_text()
    assert "Learning rate" in text
    assert "run, 4" in text
