"""The page itself: nothing escapes, nothing is loaded, and it works in a browser."""

import html.parser
import json
import re

import numpy as np
import pytest
from browser import CHROMIUM, Page
from reported import HOSTILE

from retina_jax.evaluation import report_charts as charts
from retina_jax.evaluation import report_page
from retina_jax.evaluation.coco import METRICS
from retina_jax.evaluation.report_gallery import gallery
from retina_jax.evaluation.report_numbers import numbers_of

CURVES = report_page.Curves(
    [{"step": s, "loss": 2 / s, "loss_classification": 1 / s, "loss_box": None,
      "learning_rate": 0.01} for s in range(1, 30)],
    [{"step": 10, "AP": 0.1, "AP50": None, "AP75": 0.2}, {"step": 20, "AP": 0.2}],
)  # fmt: skip


@pytest.fixture(scope="module")
def content(reported):
    numbers = numbers_of(reported.truth, reported.errors, reported.evaluation)
    images = gallery(reported.split, reported.errors)
    for image in images["images"][1:]:
        image["large"] = 0
    return report_page.page(f"run {HOSTILE}", numbers, reported.metrics, CURVES, images)


class Elements(html.parser.HTMLParser):
    """The elements of a page, and the text outside scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self._open = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, text):
        if self._open[-1:] not in (["script"], ["style"]):
            self.text += text


def test_texts_from_data_are_escaped(content):
    page = Elements(content)
    scripts = [a for tag, a in page.elements if tag == "script"]
    assert [a.get("id") for a in scripts] == ["gallery-data", "curves", None]
    assert not {name for _, a in page.elements for name in a if name.startswith("on")}
    assert page.text.count(HOSTILE) > 5  # as text
    blocks = re.findall(r'<script type="application/json" id="[\w-]+">(.*?)</script>', content)
    images, curves = map(json.loads, blocks)
    assert images["classes"][0] == HOSTILE
    assert all(HOSTILE in image["name"] for image in images["images"])
    assert len(curves["curves"]) == len(images["classes"])


def test_nothing_is_loaded_from_elsewhere(content):
    page = Elements(content)
    loading = [v for _, a in page.elements for n, v in a.items() if n in ("src", "href", "data")]
    assert all(value.startswith("#part-") for value in loading)
    policy = next(a["content"] for _, a in page.elements if "http-equiv" in a)
    assert policy.startswith("default-src 'none'; img-src data:;")
    addresses = set(re.findall(r"https?://[\w./]+", content))
    assert addresses <= {"http://www.w3.org/2000/svg"}  # a name, in the script


def test_all_metrics_and_parts_are_there(content):
    text = Elements(content).text
    for name in METRICS:
        assert name in text
    for part in (
        "Precision and recall",
        "Kinds of error (TIDE)",
        "Confusion matrix",
        "Scores",
        "Reliability of scores",
        "Sizes",
        "Learning rate",
        "Evaluations",
        "Images",
    ):
        assert part in text  # fmt: skip


def test_a_page_of_nothing_can_be_made(reported):
    """No detections, no log: a report of a network that finds nothing."""
    from retina_jax.evaluation import coco
    from retina_jax.evaluation.report_errors import errors_of

    evaluation = coco.evaluate_boxes(reported.truth, [])
    errors = errors_of(reported.truth, [], evaluation)
    numbers = numbers_of(reported.truth, errors, evaluation)
    metrics = reported.metrics | dict.fromkeys(METRICS) | {"detections": 0}
    images = gallery(reported.split, errors)
    page = report_page.page("r", numbers, metrics, report_page.Curves([], []), images)
    assert "Training" not in Elements(page).text
    assert "nan" not in Elements(page).text.lower()


def test_ticks_are_round_and_few():
    assert charts.ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert charts.ticks(0, 90_000) == [0, 20_000, 40_000, 60_000, 80_000]
    assert charts.ticks(0.5, 0.95) == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9])
    assert charts.ticks(3, 3) == [3]


def test_lines_have_gaps_for_nan_and_few_points():
    gap = charts.lines({"a": ([0, 1, 2, 3], [1, np.nan, 1, 2])}, "x", "y", "t")
    path = re.search(r'class="line c0" d="([^"]*)"', gap)[1]
    assert path.count("M") == 2
    long = charts.lines({"a": (np.arange(100_000), np.ones(100_000))}, "x", "y", "t")
    assert len(long) < 10_000


@pytest.fixture(scope="module")
def address(content, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(content, encoding="utf-8")
    return path.as_uri()


def shown(page):
    """Ids of the images in the gallery, when the filters have settled (they wait for 120 ms)."""
    page.run("new Promise(done => setTimeout(done, 250))")
    ids = "[...document.querySelectorAll('.image')].map(card => Number(card.dataset.id))"
    return page.run(ids)


def choose(page, name, value):
    page.run(
        f"(() => {{ const c = document.getElementById('filter-{name}'); c.value = '{value}';"
        " for (const e of ['input', 'change']) c.dispatchEvent(new Event(e)); })()"
    )
    return shown(page)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_filters_enlarging_and_sorting_in_a_browser(address, reported):
    """Against the errors themselves; a console error or a request elsewhere fails it."""
    threshold = 0.3

    def ids(fits):
        return {e.image_id for e in reported.errors if fits(e)}

    with Page(address) as page:
        assert len(shown(page)) == len(reported.split)
        everything = choose(page, "score", threshold)
        assert len(everything) == len(reported.split)
        missed = choose(page, "kind", "missed")
        assert set(missed) == ids(
            lambda e: ((e.object_states != 3) & (e.object_states != 1)
                       & (e.object_scores < threshold)).any()
        )  # fmt: skip
        background = choose(page, "kind", "background")
        assert set(background) == ids(lambda e: ((e.kinds == 5) & (e.scores >= threshold)).any())
        of_class = choose(page, "class", 1)
        assert set(of_class) == ids(
            lambda e: ((e.kinds == 5) & (e.labels == 1) & (e.scores >= threshold)).any()
        )
        choose(page, "kind", "")
        choose(page, "class", -1)
        assert choose(page, "text", "& 3.png") == [int(reported.split.image_ids[3])]
        order = choose(page, "text", "")

        page.run("document.querySelector('.image').focus()")
        page.press("Enter")
        page.wait_for("document.getElementById('enlarged').open")
        title = "document.getElementById('enlarged-title').textContent"
        assert page.run(title).startswith(f"image {order[0]} ({HOSTILE}")
        page.press("ArrowRight")
        assert page.run(title).startswith(f"image {order[1]} ")
        assert "thumbnail" in page.run("document.getElementById('enlarged-body').textContent")
        page.press("ArrowLeft")
        assert page.run("document.getElementById('previous').disabled")
        page.press("Escape")
        page.wait_for("!document.getElementById('enlarged').open")
        page.wait_for(f"document.activeElement.dataset.id === '{order[0]}'")

        page.run("document.querySelector('table.sortable th:nth-child(2) button').click()")
        column = "[...document.querySelectorAll('table.sortable tbody td:nth-child(2)')]"
        values = page.run(f"{column}.map(cell => Number(cell.textContent))")
        assert values == sorted(values)
        assert len(values) == len(reported.split.class_names)
        curve = "document.querySelector('#curve-of-class .line').getAttribute('d')"
        first = page.run(curve)
        page.run("(() => { const c = document.getElementById('curve-class'); c.selectedIndex = 2;"
                 " c.dispatchEvent(new Event('change')); })()")  # fmt: skip
        assert page.run(curve) != first
        assert page.run("document.title").startswith("run <script>")
        assert page.problems == []
        assert {a.split(":")[0] for a in page.requests} <= {"file", "data", "about"}


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_on_a_phone_in_the_dark(address):
    with Page(address, width=390, height=844, dark=True, phone=True) as page:
        assert shown(page)
        assert page.run("document.documentElement.scrollWidth") <= 390
        assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(18, 23, 29)"
        assert page.problems == []
