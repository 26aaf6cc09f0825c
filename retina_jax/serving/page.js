"use strict";
// Sends images to the server, draws what it finds over them, and filters without asking again.
(() => {
  const by = (id) => document.getElementById(id);
  const settings = JSON.parse(by("settings").textContent);
  const AT_ONCE = 3, TRIES = 20;
  const items = []; // { file, url, card, answer, error }
  const queue = [];
  let running = 0, current = null, opener = null;

  const chosen = () => ({ least: Number(by("score").value), label: Number(by("class").value) });
  const shown = (answer) => {
    const { least, label } = chosen();
    return answer.detections.filter((d) => d.score > least && (label < 0 || d.label === label));
  };
  const plural = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;

  // ---- drawing
  const picture = (item, letters) => { // letters: font sizes that the long side is long
    const { width, height } = item.answer, found = shown(item.answer);
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${item.file.name}: ${plural(found.length, "detection")}` });
    svg.append(draw("image", { href: item.url, width, height, preserveAspectRatio: "none" }));
    const size = Math.max(Math.max(width, height) / letters, 4);
    const boxes = [...found].reverse(); // the best last, on top
    const placed = boxes.map(({ box: [x1, y1, x2, y2], ...rest }) => ({ x: x1, y: y1, width: Math.max(0, x2 - x1), height: Math.max(0, y2 - y1), ...rest }));
    for (const { x, y, width, height, label, score, name } of placed) {
      svg.append(draw("rect", { class: "halo", x, y, width, height }));
      const rect = draw("rect", { class: "drawn", x, y, width, height, stroke: settings.classes[label].colour });
      rect.append(draw("title", {}, `${name} ${score.toFixed(2)}`));
      svg.append(rect);
    }
    if (found.length <= 30) for (const { x, y, score, name } of placed) {
      const text = `${name} ${score.toFixed(2)}`;
      const left = Math.max(0, Math.min(x, width - text.length * size * 0.66));
      svg.append(draw("text", { class: "caption", x: left + size * 0.15, y: Math.max(size, y - size * 0.3), style: `font-size:${size}px` }, text));
    }
    return svg;
  };
  const render = (item) => {
    const { card, file, answer, error } = item;
    card.classList.toggle("failed", Boolean(error));
    card.disabled = !answer;
    const name = make("b", { textContent: file.name });
    if (!answer) {
      card.replaceChildren(make("div", { className: "about" }, name, ` · ${error || item.note || "waiting"}`));
      return;
    }
    const about = `${answer.width}×${answer.height} · ${plural(shown(answer).length, "detection")}`;
    card.replaceChildren(picture(item, 30), make("div", { className: "about" }, name, ` · ${about}`));
  };
  const done = () => items.filter((item) => item.answer);
  const summary = () => {
    const finished = done(), failed = items.filter((item) => item.error).length;
    const count = finished.reduce((sum, item) => sum + shown(item.answer).length, 0);
    const parts = [];
    if (items.length) parts.push(`${finished.length + failed} of ${plural(items.length, "image")}`, plural(count, "detection"));
    if (failed) parts.push(`${failed} failed`);
    by("status").textContent = parts.join(", ");
    by("download").disabled = !finished.length;
    by("clear").disabled = !items.length;
  };
  const update = () => {
    by("score-value").textContent = chosen().least.toFixed(2);
    for (const item of done()) render(item);
    if (current) enlarge(current);
    summary();
  };

  // ---- asking the server
  const wait = (seconds) => new Promise((go) => setTimeout(go, 1000 * seconds));
  const ask = async (item) => {
    if (item.file.size > settings.mebibytes * 2 ** 20) throw new Error(`larger than ${settings.mebibytes} MiB`);
    const form = new FormData();
    form.append("image", item.file, item.file.name);
    for (let tried = 0; ; tried += 1) {
      let response;
      try {
        response = await fetch("detect", { method: "POST", body: form });
      } catch {
        throw new Error("the server cannot be reached");
      }
      const content = await response.json();
      if (response.ok) return content.images[0];
      const later = (response.status === 429 || response.status === 503) && tried < TRIES;
      if (!later) throw new Error(content.error);
      item.note = content.error;
      render(item);
      await wait(Number(response.headers.get("Retry-After")) || 1);
    }
  };
  const pump = async () => {
    if (running >= AT_ONCE || !queue.length) return;
    const item = queue.shift();
    running += 1;
    item.note = "detecting";
    render(item);
    try {
      item.answer = await ask(item);
    } catch (error) {
      item.error = error.message;
    }
    running -= 1;
    if (items.includes(item)) { render(item); summary(); }
    pump();
  };
  const add = (files) => {
    for (const file of files) {
      const item = { file, url: URL.createObjectURL(file) };
      item.card = make("button", { type: "button", className: "image", disabled: true });
      item.card.addEventListener("click", () => { opener = item.card; enlarge(item); });
      items.push(item);
      queue.push(item);
      by("images").append(item.card);
      render(item);
    }
    summary();
    for (let k = 0; k < AT_ONCE; k += 1) pump();
  };

  by("files").addEventListener("change", () => { add(by("files").files); by("files").value = ""; });
  for (const kind of ["dragenter", "dragover"]) document.addEventListener(kind, (event) => {
    event.preventDefault();
    by("drop").classList.add("over");
  });
  for (const kind of ["dragleave", "drop"]) document.addEventListener(kind, (event) => {
    event.preventDefault();
    if (kind === "drop" || !event.relatedTarget) by("drop").classList.remove("over");
    if (kind === "drop") add(event.dataTransfer.files);
  });
  document.addEventListener("paste", (event) => add([...event.clipboardData.files]));
  by("score").addEventListener("input", update);
  by("class").addEventListener("change", update);
  by("clear").addEventListener("click", () => {
    for (const item of items) URL.revokeObjectURL(item.url);
    items.length = queue.length = 0;
    by("images").replaceChildren();
    summary();
    by("files").focus();
  });
  by("download").addEventListener("click", () => {
    const { least, label } = chosen();
    const content = {
      model: settings.model, threshold: least, class: label < 0 ? null : settings.classes[label].name,
      images: done().map((item) => ({ ...item.answer, detections: shown(item.answer) })),
    };
    const url = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }));
    make("a", { href: url, download: "detections.json" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  });

  // ---- one image, large
  const dialog = by("enlarged");
  const enlarge = (item) => {
    current = item;
    const all = done(), place = all.indexOf(item);
    by("enlarged-title").textContent = `${item.file.name} (${place + 1} of ${all.length})`;
    by("previous").disabled = place <= 0;
    by("next").disabled = place >= all.length - 1;
    const rows = shown(item.answer).map((d) => {
      const mark = make("i");
      mark.style.background = settings.classes[d.label].colour;
      const cells = [d.score.toFixed(3), ...d.box.map((v) => v.toFixed(1))];
      return make("tr", {}, make("td", {}, mark, d.name), ...cells.map((text) => make("td", { textContent: text })));
    });
    const heads = ["class", "score", "x1", "y1", "x2", "y2"].map((text) => make("th", { textContent: text, scope: "col" }));
    const table = make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows));
    by("enlarged-body").replaceChildren(picture(item, innerWidth > 640 ? 55 : 30), make("div", { className: "wide" }, table));
    if (!dialog.open) dialog.showModal();
  };
  const step = (by_) => {
    const all = done(), next = all[all.indexOf(current) + by_];
    if (next) { opener = next.card; enlarge(next); }
  };
  by("previous").addEventListener("click", () => step(-1));
  by("next").addEventListener("click", () => step(1));
  by("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  dialog.addEventListener("close", () => { current = null; if (opener) opener.focus(); });

  by("curl").textContent = `curl -F image=@street.jpg '${location.origin}${location.pathname}detect?threshold=0.5'`;
  summary();
})();
