const button = document.getElementById("show-code");
button.addEventListener("click", () => {
  const show = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", String(show));
  document.querySelectorAll("details.code").forEach((details) => { details.open = show; });
});

// Beside the text the contents stay open; above it, on a narrow screen, they start folded.
const toc = document.querySelector("details.toc");
const wide = window.matchMedia("(min-width: 68rem)");
const fold = () => { toc.open = wide.matches; };
wide.addEventListener("change", fold);
fold();
toc.addEventListener("click", (event) => { if (event.target.closest("a") && !wide.matches) toc.open = false; });

// A table or figure that is cut at the window's edge says how much of it is hidden.
const boxes = [...document.querySelectorAll("div.scroll, .picture")];
boxes.forEach((box) => {
  const hint = document.createElement("p");
  hint.className = "hint";
  box.after(hint);
});
const measure = () => boxes.forEach((box) => {
  const table = box.querySelector("table");
  const hidden = (table ?? box).scrollWidth - box.clientWidth;
  box.classList.toggle("cut", hidden > 1);
  if (hidden <= 1) return;
  if (!table) {
    box.nextElementSibling.textContent = "→ more to the right; a click shows the whole";
    return;
  }
  const edge = box.getBoundingClientRect().right;
  const heads = [...table.querySelectorAll("thead tr:last-child > *")];
  const more = heads.filter((cell) => cell.getBoundingClientRect().right > edge + 1).length;
  box.nextElementSibling.textContent = more ? `→ ${more} more ${more === 1 ? "column" : "columns"} to the right` : "← scrolled to the end";
});
window.addEventListener("resize", measure);
boxes.forEach((box) => box.addEventListener("scroll", measure, { passive: true }));

// Columns sort by their first number, or by their words.
const key = (cell) => {
  const text = cell.textContent.trim().replace(/[−–]/g, "-").replace(/,(?=\d{3})/g, "");
  const number = parseFloat(text.replace(/^[<>≈±]\s*/, ""));
  return Number.isNaN(number) ? text.toLowerCase() : number;
};
document.querySelectorAll("figure.table table").forEach((table) => {
  const body = table.tBodies[0];
  const heads = [...table.querySelectorAll("thead tr:last-child > *")];
  if (!body || body.rows.length < 3) return;
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.className = "sort";
    button.type = "button";
    button.title = "Sort by this column";
    button.append(...head.childNodes);
    if (!button.textContent.trim()) { button.setAttribute("aria-label", "Sort by name"); button.textContent = "↕"; }
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].map((row) => [key(row.cells[column]), row]);
      rows.sort(([a], [b]) => (typeof a === typeof b ? (a > b) - (a < b) : typeof a === "number" ? -1 : 1));
      if (down) rows.reverse();
      body.append(...rows.map(([, row]) => row));
    });
  });
});
measure();
document.fonts?.ready.then(measure);

// A click enlarges a figure.
const zoom = document.getElementById("zoom");
document.querySelectorAll("figure :is(svg.whole, img, .panels svg)").forEach((picture) => {
  picture.addEventListener("click", () => {
    const whole = picture.closest("figure").querySelector("svg.whole") ?? picture;
    const copy = whole.cloneNode(true);
    copy.removeAttribute("style");
    copy.querySelectorAll("[id$='-all']").forEach((part) => part.removeAttribute("id"));
    zoom.lastElementChild.replaceChildren(copy);
    zoom.showModal();
  });
});
zoom.addEventListener("click", (event) => { if (event.target === zoom || event.target.closest("svg, img")) zoom.close(); });
