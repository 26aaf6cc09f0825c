"""The web page that shows detections in dropped images; it loads nothing from other servers."""

from __future__ import annotations

import importlib.resources

from retina_jax.draw import colour
from retina_jax.evaluation.report_charts import escape
from retina_jax.evaluation.report_page import embedded, head, script
from retina_jax.prediction.request import DRAWN_FROM
from retina_jax.serving.engine import Engine
from retina_jax.serving.limits import Limits

_POLICY = (
    "default-src 'none'; img-src blob: data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'"
)
"""Allows the page to contact only its own server."""


def page(engine: Engine, limits: Limits) -> str:
    """The whole page; all text that comes from data is escaped."""
    names = engine.classes.names
    settings = {
        "model": engine.name,
        "classes": [
            {"name": name, "colour": colour(label)}
            for label, name in enumerate(engine.classes.names)
        ],
        "least": engine.threshold,
        "mebibytes": limits.body,
    }
    start = max(engine.threshold, DRAWN_FROM)
    options = "".join(
        f'<option value="{k}">{escape(name)}</option>' for k, name in enumerate(names)
    )
    title = f"{engine.name}: detect objects"
    return f"""{head(title, _file("page.css"), _POLICY)}
<link rel="icon" href="data:,">
<h1>Detect objects</h1>
<p class="faint">Model {escape(engine.name)}, {len(names)} classes. Images are sent
only to this server and are not stored.</p>
<noscript><p>This page needs JavaScript; the API does not.</p></noscript>
<main>
<label class="drop" id="drop"><input type="file" id="files" multiple
 accept="image/*,.jp2,.j2k,.tif,.tiff"><span><b>Choose images</b> or drop them here</span>
<span class="faint">Up to {limits.body:g} MiB and {limits.megapixels:g} megapixels
each</span></label>
<div class="filters" role="group" aria-label="filters">
<label>Minimum score<span><input type="range" id="score" min="{engine.threshold:g}" max="1"
 step="0.01" value="{start:g}"> <output id="score-value" for="score">{start:.2f}</output></span>
</label>
<label>Class<select id="class"><option value="-1">all classes</option>{options}</select></label>
<button type="button" class="button" id="download" disabled>Download JSON</button>
<button type="button" class="button" id="clear" disabled>Remove images</button>
<span id="status" role="status"></span></div>
<div class="images" id="images"></div>
<section aria-labelledby="api"><h2 id="api">API</h2>
<p>Detect objects from a shell or a program; the response is JSON:</p>
<pre class="wide"><code id="curl"></code></pre>
<p><a href="openapi.json">openapi.json</a> describes the API, <a href="health">health</a> shows
whether the server is ready, with request counts and latencies.</p></section>
</main>
<dialog id="enlarged" aria-labelledby="enlarged-title"><header><h3 id="enlarged-title"></h3>
<button type="button" class="button" id="previous" aria-keyshortcuts="ArrowLeft">← Previous</button>
<button type="button" class="button" id="next" aria-keyshortcuts="ArrowRight">Next →</button>
<button type="button" class="button" id="close" aria-keyshortcuts="Escape">Close</button></header>
<div id="enlarged-body"></div></dialog>
{embedded("settings", settings)}
{script(_file("page.js"))}</body></html>
"""


def _file(name: str) -> str:
    return (importlib.resources.files(__package__) / name).read_text(encoding="utf-8")
