"""The page: nothing escapes, nothing is loaded from elsewhere, and it works in a browser."""

import json
import re

import pytest
from browser import CHROMIUM, Page
from served import NumberedEngine, ask, serving

from retina_jax.data.images import PictureError
from retina_jax.serving.limits import Limits
from retina_jax.serving.page import page
from retina_jax.training.workdir import Classes

HOSTILE = '</script><b onclick="x()">&amp;'


class PageEngine(NumberedEngine):
    """Takes the number of an image from its name."""

    def read(self, name, encoded, most_pixels):
        if not name.endswith(".png"):
            raise PictureError("cannot be decoded: not an image")
        return 0, (name, int(name.partition(".")[0]))


@pytest.fixture(scope="module")
def site():
    with serving(PageEngine()) as running:
        yield running


def test_texts_of_the_model_are_escaped():
    engine = NumberedEngine()
    engine.name = HOSTILE
    engine.classes = Classes((HOSTILE, "dog"), (1, 2))
    content = page(engine, Limits())
    assert HOSTILE not in content
    assert "<b onclick" not in content
    (settings,) = re.findall(
        r'<script type="application/json" id="settings">(.*?)</script>', content
    )
    assert json.loads(settings)["classes"][0]["name"] == HOSTILE


def test_the_page_may_load_nothing_from_elsewhere(site):
    status, headers, content = ask(site.port, path="/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    content = content.decode()
    assert "default-src 'none'" in content
    assert "connect-src 'self'" in content
    assert set(re.findall(r"https?://[\w./]+", content)) == {"http://www.w3.org/2000/svg"}


ADD = """(async () => {
  const canvas = document.createElement("canvas");
  canvas.width = 640; canvas.height = 480;
  canvas.getContext("2d").fillRect(0, 0, 320, 480);
  const blob = await new Promise((done) => canvas.toBlob(done));
  const dropped = new DataTransfer();
  for (const name of %s) dropped.items.add(new File([blob], name));
  %s
})()"""
CHOOSE = """const input = document.getElementById("files");
  input.files = dropped.files; input.dispatchEvent(new Event("change"));"""
DROP = """document.dispatchEvent(new DragEvent("drop",
  { dataTransfer: dropped, bubbles: true, cancelable: true }));"""
STATUS = "document.getElementById('status').textContent"
CAPTIONS = "[...document.querySelectorAll('.images .caption')].map(text => text.textContent)"


def change(page, name, value):
    page.run(
        f"(() => {{ const c = document.getElementById('{name}'); c.value = '{value}';"
        " for (const e of ['input', 'change']) c.dispatchEvent(new Event(e)); })()"
    )


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_images_are_detected_filtered_enlarged_and_saved(site):
    with Page(f"http://127.0.0.1:{site.port}/") as page:
        page.run(ADD % (json.dumps(["3.png", "4.png", "bad.txt"]), CHOOSE))
        page.wait_for(f"{STATUS}.startsWith('3 of 3 images')")
        assert page.run(STATUS) == "3 of 3 images, 2 detections, 1 failed"  # from 0.4 on
        assert page.run(CAPTIONS) == ["dog 0.90", "cat 0.90"]
        boxes = "[...document.querySelectorAll('.images .drawn')].map(box => box.outerHTML)"
        assert 'x="3" y="0" width="1" height="1"' in page.run(boxes)[0]
        failed = page.run("document.querySelector('.image.failed').textContent")
        assert failed == "bad.txt · image 1 (bad.txt) cannot be decoded: not an image"

        change(page, "score", "0.2")
        assert page.run(CAPTIONS) == ["cat 0.30", "dog 0.90", "cat 0.30", "cat 0.90"]
        change(page, "class", "1")
        assert page.run(STATUS) == "3 of 3 images, 1 detection, 1 failed"
        page.run("const make = URL.createObjectURL;"
                 " URL.createObjectURL = (blob) => { window.saved = blob; return make(blob); };"
                 " HTMLAnchorElement.prototype.click = () => {};"
                 " document.getElementById('download').click()")  # fmt: skip
        saved = json.loads(page.run("window.saved.text()"))
        assert (saved["model"], saved["threshold"], saved["class"]) == ("numbered", 0.2, "dog")
        assert [len(image["detections"]) for image in saved["images"]] == [1, 0]
        assert saved["images"][0]["detections"][0]["box"] == [3, 0, 4, 1]
        change(page, "class", "-1")

        page.run("document.querySelector('.image').focus()")
        page.press("Enter")
        page.wait_for("document.getElementById('enlarged').open")
        title = "document.getElementById('enlarged-title').textContent"
        assert page.run(title) == "3.png (1 of 2)"
        rows = "[...document.querySelectorAll('#enlarged-body tbody tr')].map(r => r.textContent)"
        assert page.run(rows) == ["dog0.9003.00.04.01.0", "cat0.3000.00.02.02.0"]
        page.press("ArrowRight")
        assert page.run(title) == "4.png (2 of 2)"
        assert page.run("document.getElementById('next').disabled")
        page.press("Escape")
        page.wait_for("!document.getElementById('enlarged').open")
        page.wait_for("document.activeElement.textContent.includes('4.png · 640×480')")

        page.run("document.getElementById('clear').click()")
        assert page.run("document.querySelectorAll('.image').length") == 0
        assert page.run("document.activeElement.id") == "files"
        page.run(ADD % (json.dumps(["8.png"]), DROP))
        page.wait_for(f"{STATUS} === '1 of 1 image, 2 detections'")
        assert len(page.problems) == 1  # of the bad file
        assert "422" in page.problems[0]
        hosts = {a for a in page.requests if not a.startswith(("blob:", "data:", "about:"))}
        assert all(a.startswith(f"http://127.0.0.1:{site.port}/") for a in hosts)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_on_a_phone_in_the_dark(site):
    address = f"http://127.0.0.1:{site.port}/"
    with Page(address, width=390, height=844, dark=True, phone=True) as page:
        page.run(ADD % (json.dumps(["3.png"]), CHOOSE))
        page.wait_for(f"{STATUS}.startsWith('1 of 1')")
        assert page.run("document.documentElement.scrollWidth") <= 390
        assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(18, 23, 29)"
        assert page.problems == []
