"use strict";
// What needs a script: finding layers by name, type and format, and tensors by name; sorting layers; and opening the part that a link leads to.
for (const line of document.querySelectorAll(".filter")) {
  line.hidden = false;
  const controls = [...line.querySelectorAll("[data-filter]")];
  const items = [...document.querySelectorAll(`[data-${controls[0].dataset.filter}]`)];
  const fits = (item, control) => {
    const value = item.dataset[control.dataset.filter];
    return control.tagName === "SELECT" ? value === control.value : value.toLowerCase().includes(control.value.toLowerCase());
  };
  const filter = () => {
    const set = controls.filter((control) => control.value);
    for (const item of items) item.hidden = !set.every((control) => fits(item, control));
    line.querySelector("output").value = set.length ? `${items.filter((item) => !item.hidden).length} of ${items.length}` : "";
    if (set.length) line.parentElement.querySelectorAll("details.more").forEach((more) => { more.open = true; });
  };
  controls.forEach((control) => control.addEventListener("input", filter));
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
