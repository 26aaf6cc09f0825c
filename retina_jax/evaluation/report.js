"use strict";
// Sorts tables, draws the chosen class's precision-recall curve, and shows the gallery.
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.querySelectorAll("thead th")];
    heads.forEach((head, column) => head.firstChild.addEventListener("click", () => {
      const falling = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", falling === 1 ? "ascending" : "descending");
      const value = (row) => {
        const text = row.children[column].textContent;
        const number = Number(text.replace(/[,%+]/g, "").replace("−", "-"));
        return column === 0 ? text : Number.isNaN(number) ? -Infinity : number;
      };
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => {
        const one = value(a), two = value(b);
        return falling * (column === 0 ? one.localeCompare(two) : one < two ? -1 : one > two ? 1 : 0);
      });
      table.tBodies[0].append(...rows);
    }));
  }

  const chosen = document.getElementById("curve-class");
  if (chosen) {
    const { curves, area } = read("curves");
    const line = document.querySelector("#curve-of-class .line");
    const follow = () => {
      const values = curves[chosen.selectedIndex];
      const [left, right, top, bottom] = area;
      line.setAttribute("d", values.map((value, k) =>
        `${k ? "L" : "M"}${left + (right - left) * k / (values.length - 1)} ${bottom - (bottom - top) * value}`).join(""));
    };
    chosen.addEventListener("change", follow);
    follow();
  }

  const source = document.getElementById("gallery-data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  source.remove(); // its text is not needed twice
  const [CORRECT, , , , , , IGNORED] = data.kinds.keys();
  const [FOUND, WRONGLY, MISSED, CROWD] = data.states.keys();
  const KINDS = data.kinds.map((name) => name), STATES = ["found", "wrongly", "missed", "crowd"];
  const SHOWN = 24;
  const control = (name) => document.getElementById(`filter-${name}`);
  const grid = document.getElementById("images"), count = document.getElementById("image-count");
  const dialog = document.getElementById("enlarged"), more = document.getElementById("more");
  let visible = [], shown = 0, current = 0, opener = null;

  const unpack = (flat) => {
    const boxes = [];
    for (let i = 0; i < flat.length; i += 7) {
      const [label, kind, score, x, y, w, h] = flat.slice(i, i + 7);
      boxes.push({ label, kind, score: score / 1000, x, y, w, h });
    }
    return boxes;
  };
  for (const image of data.images) {
    image.objects = unpack(image.objects);
    image.detections = unpack(image.detections);
  }
  const state = (object, least) =>
    object.kind === FOUND && object.score < least ? MISSED : object.kind;
  const detected = (image, least) => image.detections.filter((d) => d.score >= least);

  const counted = (image, least) => {
    const counts = {};
    const add = (name) => { counts[name] = (counts[name] || 0) + 1; };
    for (const o of image.objects) if (state(o, least) === MISSED) add("missed");
    for (const d of detected(image, least)) if (d.kind !== CORRECT && d.kind !== IGNORED) add(data.kinds[d.kind]);
    return counts;
  };
  const matches = (image, { label, kind, least, text }) => {
    if (text && !String(image.id).includes(text) && !image.name.toLowerCase().includes(text)) return false;
    const fits = (box) => label < 0 || box.label === label;
    const missed = image.objects.some((o) => fits(o) && state(o, least) === MISSED);
    const wrong = (name) => detected(image, least).some((d) => fits(d) && d.kind !== CORRECT && d.kind !== IGNORED && (name === "" || data.kinds[d.kind] === name));
    switch (kind) {
      case "": return label < 0 || image.objects.some(fits) || detected(image, least).some(fits);
      case "none": return !missed && !wrong("") && (label < 0 || image.objects.some(fits));
      case "any": return missed || wrong("");
      case "missed": return missed;
      default: return wrong(kind);
    }
  };

  const picture = (image, boxes, names, captions) => {
    const svg = draw("svg", { viewBox: `0 0 ${image.w} ${image.h}`, role: "img", "aria-label": `${boxes.length} boxes` });
    if (image.jpeg) svg.append(draw("image", { href: `data:image/jpeg;base64,${image.jpeg}`, width: image.w, height: image.h, preserveAspectRatio: "none" }));
    const size = Math.max(image.w, image.h) / 34;
    for (const box of [...boxes].reverse()) { // the best last, on top
      const x = box.x * image.w / 1000, y = box.y * image.h / 1000;
      const title = `${data.classes[box.label]}${box.score ? ` ${box.score.toFixed(2)}` : ""}: ${names(box)}`;
      const rect = draw("rect", { class: `box ${names(box)}`, x, y, width: box.w * image.w / 1000, height: box.h * image.h / 1000 });
      rect.append(draw("title", {}, title));
      svg.append(rect);
      if (captions) {
        const text = `${data.classes[box.label]}${captions === "scores" ? ` ${box.score.toFixed(2)}` : ""}`;
        const left = Math.max(0, Math.min(x, image.w - text.length * size * 0.6));
        svg.append(draw("text", { class: "caption", x: left + size * 0.2, y: Math.max(size, y - size * 0.25), style: `font-size:${size}px` }, text));
      }
    }
    return svg;
  };
  const pair = (image, least, large) => {
    const objectName = (o) => STATES[state(o, least)], detectionName = (d) => KINDS[d.kind];
    const found = detected(image, least);
    const captions = large && image.objects.length <= 15 && found.length <= 15;
    return [
      picture(image, image.objects, objectName, captions && "names"),
      picture(image, found, detectionName, captions && "scores"),
    ];
  };
  const about = (image, least) => {
    const parts = Object.entries(counted(image, least)).map(([name, n]) => `${n} ${name}`);
    return parts.length ? parts.join(", ") : "no errors";
  };

  const settings = () => ({
    label: Number(control("class").value), kind: control("kind").value,
    least: Number(control("score").value), text: control("text").value.trim().toLowerCase(),
  });
  const append = () => {
    const { least } = settings();
    for (const index of visible.slice(shown, shown + SHOWN)) {
      const image = data.images[index];
      const place = shown;
      const card = make("button", { type: "button", className: "image" });
      card.dataset.id = image.id;
      const couple = make("div", { className: "pair" }, ...pair(image, least, false));
      card.append(couple, make("div", { className: "about" },
        make("b", { textContent: `image ${image.id}` }), ` · error ${image.error.toFixed(2)} · ${about(image, least)}`));
      card.addEventListener("click", () => { opener = card; open(place); });
      grid.append(card);
      shown += 1;
    }
    more.hidden = shown >= visible.length;
  };
  const update = () => {
    const wanted = settings();
    document.getElementById("score-value").textContent = wanted.least.toFixed(2);
    visible = [];
    data.images.forEach((image, index) => { if (matches(image, wanted)) visible.push(index); });
    grid.replaceChildren();
    shown = 0;
    append();
    count.textContent = `${visible.length.toLocaleString("en")} of ${data.images.length.toLocaleString("en")} images`;
  };

  const rows = (boxes, names) => make("tbody", {}, ...boxes.map((box) => make("tr", {},
    make("th", { scope: "row", textContent: data.classes[box.label] }),
    make("td", { textContent: box.score ? box.score.toFixed(3) : "–" }),
    make("td", { textContent: names(box) }))));
  const listing = (title, boxes, names) => {
    const head = make("thead", {}, make("tr", {}, ...[title, "score", "kind"].map((text) => make("th", { scope: "col", textContent: text }))));
    return make("div", { className: "wide", tabIndex: 0 }, make("table", {}, head, rows(boxes, names)));
  };
  const open = (place) => {
    current = place;
    const image = data.images[visible[place]], { least } = settings();
    const [objects, found] = pair(image, least, true);
    const name = image.name ? ` (${image.name})` : "";
    document.getElementById("enlarged-title").textContent =
      `image ${image.id}${name}: error ${image.error.toFixed(2)}, ${about(image, least)}`;
    const note = (image.large ? "" : "Only a thumbnail of this image is stored. ") +
      (image.more ? `${image.more} detections with lower scores are not shown. ` : "");
    document.getElementById("enlarged-body").replaceChildren(
      make("div", { className: "pair" },
        make("div", {}, make("h4", { textContent: "ground truth" }), objects),
        make("div", {}, make("h4", { textContent: `detections that score at least ${least.toFixed(2)}` }), found)),
      make("p", { className: "faint", textContent: note }),
      make("div", { className: "pair" },
        listing("object", image.objects, (o) => data.states[state(o, least)]),
        listing("detection", detected(image, least), (d) => data.kinds[d.kind])));
    document.getElementById("previous").disabled = place === 0;
    document.getElementById("next").disabled = place + 1 >= visible.length;
    if (!dialog.open) dialog.showModal();
  };
  const step = (by) => {
    const place = current + by;
    if (place < 0 || place >= visible.length) return;
    open(place);
  };
  document.getElementById("previous").addEventListener("click", () => step(-1));
  document.getElementById("next").addEventListener("click", () => step(1));
  document.getElementById("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => { if (opener) opener.focus(); });

  let waiting = 0;
  const soon = () => { clearTimeout(waiting); waiting = setTimeout(update, 120); };
  for (const name of ["class", "kind"]) control(name).addEventListener("change", update);
  for (const name of ["score", "text"]) control(name).addEventListener("input", soon);
  more.addEventListener("click", append);
  new IntersectionObserver((entries) => { if (entries[0].isIntersecting && !more.hidden) append(); }, { rootMargin: "600px" }).observe(more);
  update();
})();
