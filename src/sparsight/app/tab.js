// What both tabs do alike: ask the server one thing at a time, and show the picture that comes with the answer.
import { alertUser, byId, settled } from "./elements.js";
import { Methods } from "./methods.js";
import { Sources } from "./sources.js";
import { Stage } from "./stage.js";

const WAIT = 250;

/** A tab gives answer({query, body, method, signal}), which asks the server and shows what comes. */
export class Tab {
  /** samples: their kind; scores: whether the picture can show them; chosen(): called when another picture is taken. */
  constructor(name, { samples, scores, chosen = () => {} }) {
    this.root = byId(name);
    this.see = this.root.querySelector(".see");
    this.status = this.see.querySelector(".status");
    const later = settled(() => this.run(), WAIT);
    const again = () => {
      this.asking?.abort(); // what was asked before is given up at once
      this.busy(true);
      later();
    };
    this.sources = new Sources(byId(`${name}-pictures`), samples, () => {
      chosen();
      again();
    });
    this.methods = new Methods(byId(`${name}-methods`), again);
    this.stage = new Stage(byId(`${name}-stage`), { scores });
  }

  busy(on) {
    this.see.setAttribute("aria-busy", String(on));
  }

  /** Ask for everything anew, unless a control says why not. An error is one line on the page. */
  async run() {
    this.asking?.abort();
    const { signal } = (this.asking = new AbortController());
    const faults = this.methods.chosen.map((picker) => picker.fault);
    this.methods.complain(faults);
    if (faults.some(Boolean)) return this.busy(false);
    const { query, body } = this.sources.chosen;
    this.busy(true);
    try {
      await this.answer({ query: [...query, ...this.methods.recipes.map((recipe) => ["recipe", recipe])], body, method: "POST", signal });
    } catch (error) {
      if (signal.aborted) return;
      this.fail(this.sources.blame(error.message));
      this.see.classList.add("stale");
    } finally {
      if (!signal.aborted) this.busy(false);
    }
  }

  fail(message) {
    this.busy(false);
    this.status.textContent = "";
    alertUser(message);
  }

  /** The picture of an answer, decoded; null if something else was asked meanwhile. */
  async decode(address, signal) {
    const image = new Image();
    image.src = address;
    await image.decode();
    if (signal.aborted) return null;
    alertUser();
    this.see.classList.remove("stale");
    return image;
  }

  /** Two views of the picture in large; the whole picture beside a single one. */
  setViews(views) {
    const whole = { letter: "", title: "whole picture", site: null };
    this.stage.set(views.length === 2 ? views : [whole, views[0] ?? whole]);
  }
}

/** Recipes that were refused are left out; the others know their letter. */
export const lettered = (sides) => sides.map((side, place) => ({ ...side, letter: "AB"[place] })).filter((side) => !side.error);

export const nameOf = (side) => side.recipe.split(":")[0];
