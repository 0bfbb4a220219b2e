"use strict";
// The graph around a layer: what lies a few steps up and down, laid out by dagre. A click on a node moves there.
{
  const nodes = JSON.parse(document.getElementById("graph-nodes").textContent)
    .map(([name, type, runs, reads]) => ({ name, type, runs, reads, readers: [] }));
  nodes.forEach((node, at) => node.reads.forEach(([source]) => nodes[source].readers.push(at)));
  const places = new Map(nodes.map((node, at) => [node.name, at]));
  const [dialog, box, steps, back] = ["", "-box", "-steps", "-back"].map((part) => document.getElementById(`graph${part}`));
  const most = 30; // nodes of a side: a tensor may have hundreds of readers
  const visited = [];

  function collect(centre, next) {
    const found = new Set();
    let edge = [centre];
    for (let step = 0; step < Number(steps.value); step += 1) {
      edge = [...new Set(edge.flatMap(next))].filter((at) => at !== centre && !found.has(at));
      edge.forEach((at) => found.add(at));
    }
    return [...found];
  }
  const make = (name, attributes, text) => {
    const item = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) item.setAttribute(key, value);
    if (text !== undefined) item.textContent = text;
    return item;
  };
  const shorten = (name) => (name.length > 26 ? `\u2026${name.slice(-25)}` : name);
  const describe = (node) => [node.type, node.runs].filter(Boolean).join(" \u00b7 ");
  const colour = (runs) => (/INT|FP8|FP4/.test(runs) ? "codes" : /16/.test(runs) ? "half" : /32/.test(runs) ? "single" : "unknown");

  function layOut(shown) {
    const graph = new dagre.graphlib.Graph({ multigraph: true });
    graph.setGraph({ nodesep: 18, ranksep: 30, edgesep: 12, marginx: 10, marginy: 10 });
    for (const at of shown) {
      const letters = Math.max(shorten(nodes[at].name).length, describe(nodes[at]).length);
      graph.setNode(String(at), { width: 7.3 * letters + 18, height: 42 });
    }
    for (const at of shown) {
      for (const [source, tensor, amax] of nodes[at].reads) {
        const label = amax && `\u00b1${amax}`;
        const room = { width: 6.7 * label.length + 4, height: label ? 14 : 0, labelpos: "c" };
        if (shown.has(source)) graph.setEdge(String(source), String(at), { tensor, label, ...room }, tensor);
      }
    }
    dagre.layout(graph);
    return graph;
  }
  function drawEdge({ points, x, y, tensor, label }) {
    const [first, ...rest] = points;
    const bends = rest.slice(0, -1).map((point, at) => `Q${point.x} ${point.y} ${(point.x + rest[at + 1].x) / 2} ${(point.y + rest[at + 1].y) / 2}`);
    const end = rest[rest.length - 1];
    const group = make("g", {});
    group.append(make("title", {}, tensor));
    group.append(make("path", { class: "edge", d: `M${first.x} ${first.y}${bends.join("")}L${end.x} ${end.y}`, "marker-end": "url(#graph-arrow)" }));
    if (label) {
      const width = 6.7 * label.length + 4;
      group.append(make("rect", { class: "behind", x: x - width / 2, y: y - 7, width, height: 14 }), make("text", { class: "range", x, y: y + 4 }, label));
    }
    return group;
  }
  function drawNode(at, { x, y, width, height }, centre) {
    const node = nodes[at];
    const title = `${node.name}, ${describe(node)}`;
    const group = make("g", { class: `${colour(node.runs)}${at === centre ? " centre" : ""}`, role: "button", tabindex: 0, "aria-label": title });
    group.append(make("title", {}, title), make("rect", { x: x - width / 2, y: y - height / 2, width, height, rx: 7 }));
    group.append(make("text", { x, y: y - 3 }, shorten(node.name)), make("text", { class: "type", x, y: y + 13 }, describe(node)));
    const move = () => { if (at !== centre) show(at, true); };
    group.addEventListener("click", move);
    group.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      move();
    });
    return group;
  }
  function show(centre, isNew) {
    if (isNew) visited.push(centre);
    back.disabled = visited.length < 2;
    const sides = [collect(centre, (at) => nodes[at].reads.map(([source]) => source)), collect(centre, (at) => nodes[at].readers)];
    const shown = new Set([centre, ...sides.flatMap((side) => side.slice(0, most))]);
    const left = new Set(sides.flat()).size + 1 - shown.size;
    document.getElementById("graph-title").textContent = nodes[centre].name;
    document.getElementById("graph-facts").textContent = describe(nodes[centre]) + (left ? ` (${left} more nodes are not drawn)` : "");
    const graph = layOut(shown);
    const { width, height } = graph.graph();
    const svg = make("svg", { class: "drawn", width, height, viewBox: `0 0 ${width} ${height}` });
    const arrow = make("marker", { id: "graph-arrow", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" });
    arrow.append(make("path", { d: "M0 0L8 4L0 8z" }));
    svg.append(arrow, ...graph.edges().map((edge) => drawEdge(graph.edge(edge))));
    const drawn = new Map(graph.nodes().map((id) => [Number(id), drawNode(Number(id), graph.node(id), centre)]));
    svg.append(...drawn.values());
    box.replaceChildren(svg);
    if (!dialog.open) dialog.showModal();
    const { x, y } = graph.node(String(centre));
    box.scrollTo({ left: x - box.clientWidth / 2, top: y - box.clientHeight / 2, behavior: "instant" });
    drawn.get(centre).focus({ preventScroll: true });
  }
  steps.addEventListener("input", () => show(visited[visited.length - 1], false));
  back.addEventListener("click", () => {
    visited.pop();
    show(visited[visited.length - 1], false);
  });
  document.getElementById("graph-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => visited.splice(0));
  for (const item of document.querySelectorAll("#layers tbody th.name, #placement .names .name, .readers .name")) {
    const at = places.get(item.textContent);
    if (at === undefined) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "around";
    button.setAttribute("aria-label", `Graph around ${nodes[at].name}`);
    const icon = make("svg", { width: 14, height: 14, viewBox: "0 0 14 14", "aria-hidden": "true" });
    icon.append(make("path", { d: "M5 1h4v3H5zM1 10h4v3H1zM9 10h4v3H9zM7 4v3M3 10V7h8v3" }));
    button.append(icon);
    button.addEventListener("click", () => show(at, true));
    item.append(button);
  }
}
