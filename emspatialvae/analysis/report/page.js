"use strict";
// Everything here is a convenience: without it the page shows the same.

// A click on a column's head sorts its table, a second one the other way round.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    if (![...body.rows].some((row) => row.cells[column].dataset.sort !== undefined)) return;
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      // A cell without a number comes last either way.
      const key = (row) => {
        const text = row.cells[column].dataset.sort;
        return text === undefined ? Infinity : down ? -Number(text) : Number(text);
      };
      body.append(...[...body.rows].sort((a, b) => key(a) - key(b) || 0));
    });
  });
}

// A button that copies a command; the old way, because the new one is refused to pages opened from a plain http server.
for (const code of document.querySelectorAll(".command code")) {
  const button = document.createElement("button");
  button.className = "copy";
  button.type = "button";
  button.textContent = "Copy";
  button.addEventListener("click", () => {
    getSelection().selectAllChildren(code);
    button.textContent = document.execCommand("copy") ? "Copied" : "Selected: press Ctrl+C";
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
  code.closest(".command").append(button);
}

// Particles under the pointer.
for (const figure of document.querySelectorAll(".cloud")) {
  const data = JSON.parse(figure.querySelector("script").textContent), said = figure.querySelector(".said");
  const unpack = (text) => {
    if (text === null || typeof text === "object") return text;
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    return Uint16Array.from({ length: bytes.length / 2 }, (_, i) => bytes[2 * i] + 256 * bytes[2 * i + 1]);
  };
  const [x, y, group, path] = [data.x, data.y, data.group, data.path].map(unpack);
  const numbers = data.numbers.split("\n"), order = [...x.keys()].sort((a, b) => x[a] - x[b]);
  const pictures = new Map([...document.querySelectorAll("#classes tbody tr")].map((row) => [row.cells[0].textContent, row.querySelector("img")]));
  const canvas = document.createElement("canvas"), dark = matchMedia("(prefers-color-scheme: dark)");
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `Particles over ${data.axes.join(" and ")}; arrow keys go from one to the next`);
  figure.prepend(canvas);
  figure.hidden = false;
  let place = [], at = -1, kept = false;

  function draw() {
    const ratio = devicePixelRatio || 1, width = canvas.clientWidth, height = Math.round(width * 0.72), edge = 34;
    const scale = Math.min((width - 2 * edge) / data.span[0], (height - 2 * edge) / data.span[1]);
    const left = (width - scale * data.span[0]) / 2, bottom = (height + scale * data.span[1]) / 2;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const pen = canvas.getContext("2d"), colours = getComputedStyle(document.documentElement);
    pen.scale(ratio, ratio);
    place = [...x.keys()].map((i) => [left + (x[i] / 65535) * data.span[0] * scale, bottom - (y[i] / 65535) * data.span[1] * scale]);
    const size = x.length > 5000 ? 1.6 : x.length > 500 ? 2.6 : 5;
    for (let i = 0; i < x.length; i++) {
      pen.fillStyle = group ? `hsl(${(group[i] * 137.5) % 360} 70% ${dark.matches ? 62 : 40}%)` : colours.getPropertyValue("--link");
      pen.fillRect(place[i][0] - size / 2, place[i][1] - size / 2, size, size);
    }
    pen.fillStyle = colours.getPropertyValue("--text");
    pen.font = "13px system-ui, sans-serif";
    pen.fillText(`${data.axes[0]} \u2192`, width - pen.measureText(`${data.axes[0]} \u2192`).width - 8, height - 8);
    pen.fillText(`\u2191 ${data.axes[1]}`, 8, 18);
    if (at < 0) return;
    pen.strokeStyle = pen.fillStyle;
    pen.lineWidth = 2;
    pen.beginPath();
    pen.arc(...place[at], 7, 0, 2 * Math.PI);
    pen.stroke();
  }

  function show(i) {
    if (i === at) return;
    at = i;
    said.replaceChildren();
    if (at >= 0) {
      const name = numbers[at] ? `${numbers[at]}@${data.paths[path[at]]}` : data.paths[path[at]];
      const z = [x, y].map((values, k) => (data.low[k] + (values[at] / 65535) * data.span[k]).toFixed(2));
      const picture = group && pictures.get(String(group[at]));
      if (picture) said.append(picture.cloneNode());
      said.append(`${name}${group ? `, class ${group[at]}` : ""} (${z.join(", ")})`);
    }
    draw();
  }

  function nearest(event) {
    const box = canvas.getBoundingClientRect(), px = event.clientX - box.left, py = event.clientY - box.top;
    let best = -1, least = 400;
    place.forEach(([cx, cy], i) => {
      const distance = (cx - px) ** 2 + (cy - py) ** 2;
      if (distance < least) [best, least] = [i, distance];
    });
    return best;
  }

  canvas.addEventListener("pointermove", (event) => { if (!kept) show(nearest(event)); });
  canvas.addEventListener("pointerleave", () => { if (!kept) show(-1); });
  canvas.addEventListener("click", (event) => {
    const i = nearest(event);
    kept = i >= 0 && !(kept && i === at);
    show(i);
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    kept = true;
    show(order[(order.indexOf(at) + step + order.length) % order.length]);
  });
  dark.addEventListener("change", draw);
  new ResizeObserver(draw).observe(figure);
}
