// The first tab: a picture, a vision model and one or two methods.
import { amount, ask, byId, make, percent, snippet } from "./elements.js";
import { lastSite, makeCanvas, paint } from "./painting.js";
import { lettered, nameOf, Tab } from "./tab.js";

const STEP = 650;

export class VisionTab extends Tab {
  constructor() {
    super("vision", { samples: "photos", scores: true });
    this.model = byId("vision-model");
    this.model.addEventListener("change", () => {
      this.equip();
      this.run();
    });
    byId("play").addEventListener("click", () => (this.timer ? this.pause() : this.play()));
    this.block = null;
  }

  async open() {
    this.about = await ask("vision");
    byId("version").textContent = `Sparsight ${this.about.version}`;
    this.model.replaceChildren(...this.about.models.map((model) => make("option", { value: model.name }, model.name)));
    this.model.parentElement.hidden = this.about.models.length < 2;
    this.sources.show(this.about.samples, this.about.limits, "okapi");
    this.equip();
    await this.run();
  }

  get chosenModel() {
    return this.about.models.find((model) => model.name === this.model.value);
  }

  /** Put up the methods of the chosen model. */
  equip() {
    const { methods, depth, grid, first } = this.chosenModel;
    this.block = null;
    this.methods.show(methods, { depth, patches: grid[0] * grid[1], first });
  }

  run() {
    this.pause();
    return super.run();
  }

  /** First what the methods do, then what it costs. */
  async answer({ query, ...asked }) {
    const model = ["model", this.model.value];
    this.status.textContent = "Running the model …";
    await this.show(await ask("look", { ...asked, query: [model, ...query] }), asked.signal);
    if (asked.signal.aborted) return;
    if (!this.fine.length) return void (this.status.textContent = "");
    this.status.textContent = "Measuring the time …";
    const words = query.filter(([name]) => name !== "recipe").concat(this.fine.map((side) => ["recipe", side.recipe]));
    const [usual, ...costs] = await ask("measure", { ...asked, query: [model, ...words] });
    this.fine.forEach((side, place) => (side.cost = costs[place]));
    this.seen.cost = usual;
    this.showResults();
    this.status.textContent = this.summary();
  }

  async show(seen, signal) {
    const image = await this.decode(seen.picture, signal);
    if (!image) return;
    this.seen = seen;
    this.image = image;
    this.methods.complain(seen.sides.map((side) => side.error));
    this.fine = lettered(seen.sides);
    if (this.block === null || this.block >= seen.depth) this.block = seen.depth - 1;
    this.stage.show(image, seen.grid, this.about.colours);
    this.showBlock(this.block);
    this.showStrip();
    this.showSites();
    this.showResults();
    this.showCode();
  }

  /** The sides of the large picture once a block is through. */
  showBlock(block) {
    this.block = block;
    const sides = this.fine.map((side) => ({ letter: side.letter, title: `${side.letter}  ${nameOf(side)}`, site: lastSite(side.sites, block) }));
    this.setViews(sides);
  }

  redraw() {
    if (!this.seen) return;
    this.stage.draw();
    this.showStrip();
    this.showSites();
  }

  showStrip() {
    const steps = Array.from({ length: this.seen.depth + 1 }, (_, place) => place - 1).map((block) => {
      const input = make("input", { type: "radio", name: "block", value: block, checked: block === this.block });
      input.addEventListener("change", () => this.showBlock(block));
      const rows = this.fine.map((side) => {
        const site = lastSite(side.sites, block);
        const canvas = makeCanvas(this.image, 112);
        paint(canvas, this.image, this.seen.grid, site, "kept", this.about.colours);
        const count = site?.tokens ?? this.patches;
        const works = side.sites.some((one) => one.layer === block || (block < 0 && one.layer < 0));
        return make("span", { className: `step ${works ? "works" : ""}`, "data-letter": side.letter }, canvas, make("b", {}, String(count)));
      });
      const name = block < 0 ? "input" : `block ${block}`;
      const words = this.fine.map((side) => `${lastSite(side.sites, block)?.tokens ?? this.patches} tokens with ${nameOf(side)}`).join(", ");
      input.setAttribute("aria-label", `${name}: ${words}`);
      return make("label", {}, input, make("span", { className: "name" }, block < 0 ? "input" : String(block)), rows);
    });
    const letters = this.fine.map((side) => make("b", { "data-letter": side.letter }, side.letter));
    byId("strip").replaceChildren(make("div", { className: "letters", "aria-hidden": "true" }, make("span"), letters), ...steps);
    reveal(byId("strip").querySelector("label:has(input:checked)"));
  }

  get patches() {
    return this.seen.grid[0] * this.seen.grid[1];
  }

  play() {
    const button = byId("play");
    button.textContent = "Pause";
    button.setAttribute("aria-pressed", "true");
    let block = this.block >= this.seen.depth - 1 ? -1 : this.block + 1;
    const step = () => {
      const input = byId("strip").querySelectorAll("input")[block + 1];
      input.checked = true;
      reveal(input.parentElement);
      this.showBlock(block);
      block += 1;
      if (block >= this.seen.depth) this.pause();
    };
    this.timer = setInterval(step, STEP);
    step();
  }

  pause() {
    clearInterval(this.timer);
    this.timer = 0;
    byId("play").textContent = "Play";
    byId("play").setAttribute("aria-pressed", "false");
  }

  showSites() {
    const row = (side) => {
      const figures = side.sites.map((site) => {
        const name = site.layer < -1 ? "the picture" : site.layer < 0 ? "input" : `block ${site.layer}`;
        const views = (site.score ? ["score", "kept"] : ["kept"]).map((view) => {
          const words = view === "score" ? `Scores at ${name} by ${nameOf(side)}` : `Patches left at ${name} by ${nameOf(side)}: ${site.tokens} tokens`;
          const canvas = makeCanvas(this.image, 256, words);
          paint(canvas, this.image, this.seen.grid, site, view, this.about.colours);
          return canvas;
        });
        const words = [make("b", {}, name), `${site.tokens} tokens, ${percent(site.tokens / this.patches, 0)}`];
        return make("figure", {}, make("div", { className: "pair" }, views), make("figcaption", {}, words));
      });
      return make("div", { className: "row", "data-letter": side.letter }, make("h3", {}, make("b", {}, side.letter), ` ${side.recipe}`), make("div", { className: "figures" }, figures));
    };
    byId("sites").replaceChildren(...this.fine.map(row));
  }

  showResults() {
    const columns = [{ letter: "", title: "Unpruned", classes: this.seen.classes, cost: this.seen.cost, tokens: this.patches }];
    for (const side of this.fine) {
      columns.push({ letter: side.letter, title: nameOf(side), classes: side.classes, cost: side.cost, tokens: side.sites.at(-1)?.tokens ?? this.patches });
    }
    const head = columns.map((column) => make("th", { scope: "col", "data-letter": column.letter }, column.letter ? make("b", {}, column.letter) : null, ` ${column.title}`));
    const rows = [make("tr", {}, make("th", { scope: "row" }, "Prediction"), columns.map((column) => this.prediction(column)))];
    const line = (name, read) => rows.push(make("tr", {}, make("th", { scope: "row" }, name), columns.map((column) => make("td", {}, read(column)))));
    line("Tokens at the end", ({ tokens }) => [make("b", {}, String(tokens)), small(tokens === this.patches ? "all" : percent(tokens / this.patches, 0))]);
    line("Multiply-adds", ({ cost }) => (cost ? [make("b", {}, amount(cost.macs)), small(this.share(cost))] : "…"));
    line("Time", ({ cost }) => (cost ? [make("b", {}, `${number(cost.milliseconds)} ms`), small(this.speed(cost))] : "…"));
    const note = this.seen.cost ? `Median of ${this.seen.cost.runs} runs of one picture each, taken in turn on this machine.` : "";
    byId("vision-results").replaceChildren(make("table", {}, make("thead", {}, make("tr", {}, make("td"), head)), make("tbody", {}, rows)), make("p", { className: "note" }, note));
  }

  share(cost) {
    return cost === this.seen.cost ? "" : `${percent(cost.macs / this.seen.cost.macs, 0)} of them`;
  }

  speed(cost) {
    return cost === this.seen.cost ? "" : `${cost.speedup.toFixed(2)}× as fast`;
  }

  prediction(column) {
    if (!column.classes.length) return make("td", {}, "no classifier");
    const [best] = this.seen.classes;
    const same = column.classes[0].name === best.name;
    const bars = column.classes.slice(0, 3).map((one) => {
      const bar = make("i", {});
      bar.style.width = `${100 * one.probability}%`;
      return make("li", {}, make("span", {}, spaced(one.name)), make("u", { "aria-hidden": "true" }, bar), make("em", {}, percent(one.probability)));
    });
    const verdict = column.letter ? make("small", { className: same ? "same" : "other" }, same ? "✓ same class" : `✗ was ${spaced(best.name)}`) : null;
    return make("td", { "data-letter": column.letter }, make("ol", { className: "classes" }, bars), verdict);
  }

  summary() {
    if (!this.seen.classes.length) return "Done.";
    const said = this.fine.map((side) => `${spaced(side.classes[0].name)} with ${nameOf(side)}`);
    return `${spaced(this.seen.classes[0].name)} unpruned, ${said.join(", ")}.`;
  }

  showCode() {
    const blocks = this.fine.map((side) => {
      const which = this.fine.length > 1 ? ` for ${side.letter}` : "";
      return make("div", { className: "code" }, snippet(`Python${which}`, side.python), snippet(`Command line${which}`, side.command));
    });
    byId("vision-code").replaceChildren(...blocks);
  }
}

/** Scroll the strip, and nothing else, until a step can be seen. */
function reveal(step) {
  const strip = step.parentElement;
  strip.scrollLeft = Math.max(Math.min(strip.scrollLeft, step.offsetLeft - 30), step.offsetLeft + step.offsetWidth - strip.clientWidth + 6);
}

const spaced = (name) => name.replaceAll("_", " ");
const small = (text) => (text ? make("small", {}, text) : "");
const number = (value) => (value < 10 ? value.toFixed(2) : value < 100 ? value.toFixed(1) : value.toFixed(0));
