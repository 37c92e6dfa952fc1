"use strict";
// Sorts and filters tables, says what a mark stands for, picks series by their legend, opens pictures large.
const after = (node, name, props) => node.appendChild(Object.assign(document.createElement(name), props));
const pressed = (node, act) => {
  node.addEventListener("click", act);
  node.addEventListener("keydown", event => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); act(event); }
  });
};

// ---- tables: a click on a head sorts all rows down, up, and back into their groups
const text = cell => [...cell.childNodes].filter(node => node.nodeName !== "SMALL").map(node => node.textContent).join("").trim();
const number = cell => {
  const found = text(cell).replaceAll("\u2212", "-").match(/[-+]?\d+(\.\d+)?(e[-+]?\d+)?/gi);
  return found ? Number(found.at(text(cell).includes("\u2192") ? -1 : 0)) : NaN;
};
for (const table of document.querySelectorAll("table.rows")) {
  const heads = [...table.tHead.rows[0].cells];
  const homes = [...table.tBodies].filter(body => body.className !== "first").map(body => [body, [...body.rows]]);
  const rows = homes.flatMap(([, inside]) => inside.filter(row => row.className !== "group"));
  if (rows.length < 2) continue;
  for (const [, inside] of homes)
    if (inside[0].className === "group") for (const row of inside.slice(1)) row.cells[0].dataset.group = text(inside[0].cells[0]);
  const flat = after(table, "tbody", {});
  let column = -1, sign = 0, words = [], count;
  const show = () => {
    const seen = new Set();
    for (const row of rows) {
      const name = [row.textContent, row.cells[0].title, row.cells[0].dataset.group].join(" ").toLowerCase();
      const again = sign && seen.has(row.textContent);  // a baseline that stands in several groups
      row.hidden = again || !words.every(word => name.includes(word));
      seen.add(row.textContent);
    }
    for (const [body, inside] of homes) body.hidden = Boolean(sign) || inside.every(row => row.hidden || row.className === "group");
    if (count) count.textContent = words.length ? `${rows.filter(row => !row.hidden).length} of ${rows.length} rows` : "";
  };
  const sort = place => {
    const cells = rows.map(row => row.cells[place]), words = place === 0 || !cells.some(cell => /^[-+\u2212]?[\d.]/.test(text(cell)));
    const first = words ? 1 : -1;
    sign = column !== place ? first : sign === first ? -first : sign === -first ? 0 : first;
    column = place;
    heads.forEach((head, index) => head.ariaSort = index !== column || !sign ? "none" : sign > 0 ? "ascending" : "descending");
    if (!sign) for (const [body, inside] of homes) body.append(...inside);
    else flat.append(...[...rows].sort((one, other) => {
      const [a, b] = [one, other].map(row => row.cells[column]);
      if (words) return sign * text(a).localeCompare(text(b), undefined, {numeric: true});
      const [x, y] = [number(a), number(b)];
      return isNaN(x) || isNaN(y) ? isNaN(x) - isNaN(y) : sign * (x - y);
    }));
    table.classList.toggle("sorted", Boolean(sign));
    show();
  };
  heads.forEach((head, place) => {
    const button = Object.assign(document.createElement("button"), {type: "button", title: "Sort"});
    button.append(...head.childNodes);
    head.append(button);
    head.ariaSort = "none";
    button.addEventListener("click", () => sort(place));
  });
  if (rows.length < 5) continue;
  const bar = Object.assign(document.createElement("p"), {className: "filter"});
  const input = after(bar, "input", {type: "search", placeholder: "Filter rows by words in them", ariaLabel: "Filter rows"});
  count = after(bar, "span", {ariaLive: "polite"});
  input.addEventListener("input", () => { words = input.value.toLowerCase().split(/\s+/).filter(Boolean); show(); });
  table.closest(".scroll").before(bar);
}

// ---- plots: what a mark stands for, beside the pointer
const tip = after(document.body, "div", {id: "tip", hidden: true});
for (const title of document.querySelectorAll("figure svg title")) {
  title.parentNode.dataset.tip = title.textContent;
  title.remove();
}
for (const part of document.querySelectorAll(".bar i")) { part.dataset.tip = part.title; part.removeAttribute("title"); }
const point = event => {
  const mark = event.target.closest("[data-tip]");
  tip.hidden = !mark;
  if (!mark) return;
  tip.textContent = mark.dataset.tip;
  const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
  tip.style.left = `${Math.max(8, Math.min(event.clientX + 14, room))}px`;
  tip.style.top = `${event.clientY + 18 + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 12 : event.clientY + 18}px`;
};
document.addEventListener("pointermove", point);
document.addEventListener("pointerdown", point);
document.addEventListener("scroll", () => { tip.hidden = true; }, true);

// ---- legends: a click picks a series; the others fade
for (const section of document.querySelectorAll("section")) {
  const entries = [...section.querySelectorAll(".legend [data-series]")], picked = new Set();
  if (entries.length < 2) continue;
  const paint = () => {
    for (const node of section.querySelectorAll("[data-series]")) {
      node.classList.toggle("faded", picked.size > 0 && !picked.has(node.dataset.series));
      if (node.tagName === "LI") node.ariaPressed = String(picked.has(node.dataset.series));
    }
  };
  for (const entry of entries) {
    Object.assign(entry, {tabIndex: 0, role: "button", ariaPressed: "false"});
    pressed(entry, () => { picked.delete(entry.dataset.series) || picked.add(entry.dataset.series); paint(); });
  }
}

// ---- pictures: a click opens one large; arrow keys go to its neighbours
const large = after(document.body, "dialog", {}), pictures = [...document.querySelectorAll(".thumb, .original, figure > picture")];
let open = 0;
const enlarge = place => {
  open = (place + pictures.length) % pictures.length;
  const node = pictures[open], copy = node.cloneNode(true), figure = document.createElement("figure");
  for (const name of ["tabindex", "role", "title"]) copy.removeAttribute(name);
  figure.append(copy);
  after(figure, "figcaption", {textContent: node.dataset.name});
  large.replaceChildren(figure);
  if (!large.open) large.showModal();
};
pictures.forEach((node, place) => {
  const inside = node.querySelector("img[alt]");
  node.dataset.name = node.title || node.ariaLabel || (inside ? inside.alt : "");
  Object.assign(node, {tabIndex: 0, role: "button", ariaLabel: `${node.dataset.name}, open large`});
  pressed(node, () => enlarge(place));
});
large.addEventListener("click", () => large.close());
large.addEventListener("keydown", event => {
  if (event.key === "ArrowRight") enlarge(open + 1);
  if (event.key === "ArrowLeft") enlarge(open - 1);
});
