"use strict";
// What needs a script: finding a layer or tensor by its name, sorting layers, and opening the part that a link leads to.
for (const line of document.querySelectorAll(".filter")) {
  line.hidden = false;
  const input = line.querySelector("input");
  const kind = input.dataset.filter;
  input.addEventListener("input", () => {
    const wanted = input.value.toLowerCase();
    for (const item of document.querySelectorAll(`[data-${kind}]`)) {
      item.hidden = !item.dataset[kind].toLowerCase().includes(wanted);
    }
    if (wanted) line.parentElement.querySelectorAll("details.more").forEach((more) => { more.open = true; });
  });
}
// Layers by a column, over both tables: numbers worst first, names by the alphabet; again the other way round.
const heads = [...document.querySelectorAll("#layers [data-sort]")];
for (const head of heads) {
  const button = document.createElement("button");
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    const column = Number(head.dataset.sort);
    const bodies = [...document.querySelectorAll("#layers tbody")];
    const sizes = bodies.map((body) => body.rows.length);
    const rows = bodies.flatMap((body) => [...body.rows]).map((row) => {
      const text = row.cells[column].textContent.trim();
      return { row, text, number: column < 3 ? NaN : parseFloat(text.replace("\u2212", "-")) };
    });
    const known = rows.filter((item) => column < 3 || !Number.isNaN(item.number));
    const order = column < 3 ? (a, b) => a.text.localeCompare(b.text) : (a, b) => a.number - b.number;
    known.sort((a, b) => (down ? order(b, a) : order(a, b)));
    const sorted = known.concat(rows.filter((item) => !known.includes(item))).map((item) => item.row);
    bodies.forEach((body, place) => body.append(...sorted.splice(0, sizes[place])));
    for (const other of heads) {
      if (other.dataset.sort === head.dataset.sort) other.setAttribute("aria-sort", down ? "descending" : "ascending");
      else other.removeAttribute("aria-sort");
    }
  });
}
function reveal() {
  const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
  const more = target && target.closest("details");
  if (more && !more.open) {
    more.open = true;
    target.scrollIntoView();
  }
}
addEventListener("hashchange", reveal);
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
reveal();
