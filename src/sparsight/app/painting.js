// Patches on canvases: which are left, which were merged, how they were scored.

const DROPPED = -1;
const FUSED = 1;
const GROUP = 2;
const THUMB = 200; // pixels of a picture too small for lines

/** The site that has worked last once a block is through, null before the first one. Blocks count from 0; -1 is before them. */
export function lastSite(sites, block) {
  return sites.filter((site) => site.layer <= block).at(-1) ?? null;
}

/** A canvas of the picture's shape. name: for those who do not see it; without one it is decoration. */
export function makeCanvas(image, side, name) {
  const canvas = document.createElement("canvas");
  const scale = side / Math.max(image.naturalWidth, image.naturalHeight);
  canvas.width = Math.round(image.naturalWidth * scale);
  canvas.height = Math.round(image.naturalHeight * scale);
  if (name) {
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", name);
  } else canvas.setAttribute("aria-hidden", "true");
  return canvas;
}

/** Paint what is left of the picture at a site: view is "kept" or "score"; site null is the whole picture. */
export function paint(canvas, image, grid, site, view, colours) {
  const pen = canvas.getContext("2d");
  pen.clearRect(0, 0, canvas.width, canvas.height);
  if (!site) pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  else if (site.side < 1) paintSmaller(pen, image, site.side);
  else if (view === "score" && site.score) paintScore(pen, image, grid, site, colours);
  else paintKept(pen, image, grid, site, colours);
}

function style(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** The picture with as many pixels as the model gets of it. */
function paintSmaller(pen, image, side) {
  const small = document.createElement("canvas");
  small.width = Math.max(1, Math.round(image.naturalWidth * side));
  small.height = Math.max(1, Math.round(image.naturalHeight * side));
  small.getContext("2d").drawImage(image, 0, 0, small.width, small.height);
  pen.imageSmoothingEnabled = false;
  pen.drawImage(small, 0, 0, pen.canvas.width, pen.canvas.height);
}

function edges(grid, canvas) {
  const places = (count, size) => Array.from({ length: count + 1 }, (_, place) => Math.round((place * size) / count));
  return { ys: places(grid[0], canvas.height), xs: places(grid[1], canvas.width) };
}

function paintKept(pen, image, grid, site, colours) {
  pen.drawImage(image, 0, 0, pen.canvas.width, pen.canvas.height);
  const veil = style("--veil");
  fill(pen, grid, (place) => {
    const kind = site.paint[place];
    if (kind === DROPPED) return [veil, 0.9];
    if (kind === FUSED) return [veil, 0.74];
    return kind >= GROUP ? [colours.groups[((kind - GROUP) * 3) % colours.groups.length], 0.62] : null;
  });
  fill(pen, grid, (place) => (site.paint[place] === FUSED ? [colours.fused, 0.34] : null));
  outline(pen, grid, site);
}

function paintScore(pen, image, grid, site, colours) {
  pen.filter = "grayscale(1)";
  pen.drawImage(image, 0, 0, pen.canvas.width, pen.canvas.height);
  pen.filter = "none";
  const veil = style("--veil");
  fill(pen, grid, (place) => (site.score[place] < 0 ? [veil, 0.94] : [shade(site.score[place] / 255, colours.heat), 0.8]));
}

function fill(pen, grid, colourOf) {
  const { ys, xs } = edges(grid, pen.canvas);
  for (let row = 0; row < grid[0]; row++) {
    for (let column = 0; column < grid[1]; column++) {
      const found = colourOf(row * grid[1] + column);
      if (!found) continue;
      [pen.fillStyle, pen.globalAlpha] = found;
      pen.fillRect(xs[column], ys[row], xs[column + 1] - xs[column], ys[row + 1] - ys[row]);
    }
  }
  pen.globalAlpha = 1;
}

/** Lines where patches of one token, or patches that are left, end. */
function outline(pen, grid, site) {
  if (pen.canvas.width < THUMB) return;
  const { ys, xs } = edges(grid, pen.canvas);
  const differ = (a, b) => site.paint[a] !== site.paint[b] || (site.paint[a] > 0 && site.owner[a] !== site.owner[b]);
  pen.strokeStyle = style("--edge");
  pen.lineWidth = Math.max(1, pen.canvas.width / 400);
  pen.beginPath();
  for (let row = 0; row < grid[0]; row++) {
    for (let column = 0; column < grid[1]; column++) {
      const place = row * grid[1] + column;
      if (column + 1 < grid[1] && differ(place, place + 1)) {
        pen.moveTo(xs[column + 1], ys[row]);
        pen.lineTo(xs[column + 1], ys[row + 1]);
      }
      if (row + 1 < grid[0] && differ(place, place + grid[1])) {
        pen.moveTo(xs[column], ys[row + 1]);
        pen.lineTo(xs[column + 1], ys[row + 1]);
      }
    }
  }
  pen.stroke();
}

/** A number in [0, 1] as a colour between the stops. */
function shade(level, stops) {
  const place = level * (stops.length - 1);
  const low = Math.min(Math.floor(place), stops.length - 2);
  const [from, to] = [stops[low], stops[low + 1]].map((stop) => [1, 3, 5].map((at) => parseInt(stop.slice(at, at + 2), 16)));
  return `rgb(${from.map((part, at) => Math.round(part + (to[at] - part) * (place - low))).join(" ")})`;
}

/** What the colours of the sites mean, as far as there are any. */
export function legend(sites, view, colours) {
  const found = [];
  const painted = (site) => view === "kept" || !site.score;
  const has = (test, shows = () => true) => sites.some((site) => site && site.side === 1 && shows(site) && site.paint.some(test));
  if (view === "score" && sites.some((site) => site?.score)) {
    found.push([`linear-gradient(90deg, ${colours.heat.join(",")})`, "score, from lowest to highest", "wide"]);
  }
  if (has((kind) => kind === DROPPED)) found.push(["var(--veil)", "dropped", "box"]);
  if (has((kind) => kind === FUSED, painted)) found.push([colours.fused, "fused into one token", ""]);
  if (has((kind) => kind >= GROUP, painted)) found.push([colours.groups[0], "merged with patches of the same colour", ""]);
  return found.map(([background, text, kind]) => {
    const item = document.createElement("li");
    const key = document.createElement("i");
    key.className = kind;
    key.style.background = background;
    item.append(key, text);
    return item;
  });
}
