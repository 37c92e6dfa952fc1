// Methods and their parameters: controls made of what the registry says, read back as recipes.
import { make, newId } from "./elements.js";

const WORDS = { keep: "share kept", tokens: "tokens kept", remove: "tokens removed" };
const LETTERS = ["A", "B"];

/** One or two methods. changed() is called whenever a recipe is another one. */
export class Methods {
  constructor(root, changed) {
    this.root = root;
    this.changed = changed;
    this.more = make("input", { type: "checkbox", role: "switch" });
    this.more.addEventListener("change", () => {
      this.pickers[1].root.hidden = !this.more.checked;
      changed();
    });
  }

  /** Fill in what there is to choose from. first: the recipes to begin with; where: words for the parameter `layers`. */
  show(methods, { depth, patches, first }) {
    this.pickers = LETTERS.map((letter, place) => new Picker(letter, methods, depth, patches, this.changed, first[place]));
    const toggle = make("label", { className: "switch" }, this.more, make("span", {}, "Compare with a second method"));
    this.pickers[1].root.hidden = !this.more.checked;
    this.root.replaceChildren(this.pickers[0].root, toggle, this.pickers[1].root);
  }

  get chosen() {
    return this.pickers.filter((picker) => !picker.root.hidden);
  }

  get recipes() {
    return this.chosen.map((picker) => picker.recipe);
  }

  /** What the server says against each recipe, empty where it is fine. */
  complain(errors) {
    this.chosen.forEach((picker, place) => picker.complain(errors[place] ?? ""));
  }
}

class Picker {
  constructor(letter, methods, depth, patches, changed, first) {
    this.methods = new Map(methods.map((method) => [method.name, method]));
    this.depth = depth;
    this.patches = patches;
    this.changed = changed;
    this.select = this.list(methods);
    this.about = make("p", { className: "note about", id: newId() });
    this.select.setAttribute("aria-describedby", this.about.id);
    this.controls = make("div", { className: "controls" });
    this.problem = make("p", { className: "problem", role: "alert", hidden: true });
    this.select.setAttribute("aria-label", `Method ${letter}`);
    this.root = make(
      "fieldset", { className: `card method ${letter.toLowerCase()}` }, make("legend", {}, make("b", {}, letter), " Method"),
      this.select, this.about, this.controls, this.problem,
    );
    this.select.addEventListener("change", () => {
      this.choose(this.select.value);
      changed();
    });
    this.begin(first);
  }

  list(methods) {
    const able = methods.filter((method) => !method.unfit);
    const unfit = methods.filter((method) => method.unfit);
    const groups = [...new Set(able.map((method) => method.group))];
    const option = (method) =>
      make("option", { value: method.name, disabled: Boolean(method.unfit), title: method.unfit || method.summary }, method.name);
    const found = groups.map((group) => {
      const options = able.filter((method) => method.group === group).map(option);
      return group ? make("optgroup", { label: group }, options) : options;
    });
    if (unfit.length) found.push(make("optgroup", { label: "not in this model" }, unfit.map(option)));
    return make("select", {}, found);
  }

  /** Take up a recipe such as name:key=value,key=value. */
  begin(recipe) {
    const [name, body = ""] = recipe.split(/:(.*)/s);
    const usable = this.methods.get(name) && !this.methods.get(name).unfit;
    this.select.value = usable ? name : this.select.querySelector("option:not(:disabled)")?.value;
    const given = usable ? Object.fromEntries(body.split(",").filter(Boolean).map((part) => part.split("="))) : {};
    this.choose(this.select.value, given);
  }

  choose(name, given = {}) {
    const method = this.methods.get(name);
    this.method = method;
    this.about.replaceChildren(`${method.summary[0].toUpperCase()}${method.summary.slice(1)}.`, make("br"), make("small", {}, method.source));
    const layers = method.controls.filter((control) => control.kind === "layers");
    const others = method.controls.filter((control) => control.kind !== "layers");
    const built = (control) => this.build(control, given[control.name] ?? control.value);
    this.budget = method.word ? this.makeBudget(method, given) : null;
    this.fields = new Map(method.controls.map((control) => [control.name, built(control)]));
    const parts = [this.budget?.root, ...layers.map((control) => this.fields.get(control.name).root)];
    if (others.length) {
      const changedOnes = others.filter((control) => given[control.name] !== undefined).length;
      const inside = others.map((control) => this.fields.get(control.name).root);
      const words = others.length === 1 ? "1 more setting" : `${others.length} more settings`;
      parts.push(make("details", { open: changedOnes > 0 }, make("summary", {}, words), make("div", { className: "others" }, inside)));
    }
    this.controls.replaceChildren(...parts.filter(Boolean));
    this.complain("");
  }

  makeBudget(method, given) {
    const word = Object.keys(WORDS).find((key) => given[key] !== undefined) ?? method.word;
    const unit = make("select", { "aria-label": "How the budget is given" }, Object.entries(WORDS).map(([value, text]) => make("option", { value }, text)));
    const text = make("input", { type: "text", className: "amount", "aria-label": "Budget", inputMode: "decimal", autocomplete: "off" });
    const range = make("input", { type: "range", "aria-label": "Budget slider" });
    const follow = () => {
      const number = Number(text.value);
      if (text.value && Number.isFinite(number)) range.value = number;
    };
    const scale = () => Object.assign(range, unit.value === "keep" ? { min: 0.05, max: 1, step: 0.05 } : { min: 1, max: this.patches, step: 1 });
    unit.value = word;
    text.value = given[word] ?? method.budget;
    scale();
    follow();
    unit.addEventListener("change", () => {
      const usual = { keep: "0.5", tokens: String(Math.ceil(this.patches / 4)), remove: "16" };
      text.value = unit.value === method.word ? method.budget : usual[unit.value];
      scale();
      follow();
      this.changed();
    });
    range.addEventListener("input", () => {
      text.value = String(Number(Number(range.value).toFixed(2)));
      this.changed();
    });
    text.addEventListener("input", () => {
      follow();
      this.changed();
    });
    const root = make("div", { className: "budget", role: "group", "aria-label": "How many tokens stay" }, make("div", { className: "line" }, unit, text), range);
    return { root, read: () => (text.value.trim() ? `${unit.value}=${text.value.trim()}` : null) };
  }

  build(control, value) {
    if (control.kind === "layers") return this.makeLayers(control, value);
    const input = this.input(control, value);
    const read = control.kind === "flag" ? () => String(input.checked) : () => input.value.trim();
    input.addEventListener(control.kind === "choice" || control.kind === "flag" ? "change" : "input", this.changed);
    const row = control.kind === "flag" ? [input, make("span", {}, control.name)] : [make("span", {}, control.name), input];
    return { root: make("label", { className: `field ${control.kind}` }, row), read, usual: control.usual };
  }

  input(control, value) {
    if (control.kind === "choice") return make("select", { value }, control.choices.map((one) => make("option", { selected: one === value }, one)));
    if (control.kind === "flag") return make("input", { type: "checkbox", checked: value === "true" });
    const number = control.kind === "whole" || (control.kind === "number" && Number.isFinite(Number(value)));
    const step = control.kind === "whole" || Math.abs(value) >= 10 ? "1" : "0.1";
    return make("input", { type: number ? "number" : "text", step: number ? step : null, value, autocomplete: "off" });
  }

  /** One box for each block, and one for the place before all of them. */
  makeLayers(control, value) {
    const blocks = Array.from({ length: this.depth }, (_, block) => block);
    const named = { all: blocks, early: blocks.slice(0, 6) };
    const on = new Set(value === "input" ? [] : named[value] ?? value.split("/").map(Number));
    const boxes = blocks.map((block) => make("input", { type: "checkbox", checked: on.has(block), "aria-label": `Block ${block}` }));
    const input = make("input", { type: "checkbox", checked: value === "input", "aria-label": "Before the first block" });
    boxes.forEach((box) =>
      box.addEventListener("change", () => {
        input.checked = false;
        this.changed();
      }),
    );
    input.addEventListener("change", () => {
      if (input.checked) boxes.forEach((box) => (box.checked = false));
      this.changed();
    });
    const chip = (box, text) => make("label", { className: "chip" }, box, make("span", {}, text));
    const chips = [chip(input, "input"), ...boxes.map((box, block) => chip(box, String(block)))];
    const root = make("fieldset", { className: "layers" }, make("legend", {}, "Blocks where tokens leave"), make("div", { className: "chips" }, chips));
    const read = () => {
      if (input.checked) return "input";
      const chosen = blocks.filter((block) => boxes[block].checked);
      return chosen.length === blocks.length ? "all" : chosen.join("/");
    };
    return { root, read, usual: null, needed: "choose at least one block" };
  }

  /** The recipe as text. Parameters at their defaults are left out, layers never are. */
  get recipe() {
    const parts = [this.budget?.read()];
    for (const [name, field] of this.fields) {
      const value = field.read();
      if (value !== field.usual && value !== "") parts.push(`${name}=${value}`);
    }
    const body = parts.filter(Boolean).join(",");
    return body ? `${this.method.name}:${body}` : this.method.name;
  }

  /** What is wrong before the server is asked. */
  get fault() {
    return [...this.fields.values()].map((field) => (field.needed && !field.read() ? field.needed : "")).find(Boolean) ?? "";
  }

  complain(text) {
    this.problem.hidden = !text;
    this.problem.textContent = text;
  }
}
