"use strict";
// What needs a script: finding a layer or tensor by its name, and opening the part that a link leads to.
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
