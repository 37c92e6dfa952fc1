// The second tab: a question about a picture, answered with all image tokens and with a few.
import { alertUser, ask, byId, make, percent, settled, snippet } from "./elements.js";
import { Methods } from "./methods.js";
import { Sources } from "./sources.js";
import { Stage } from "./stage.js";

const WAIT = 250;

export class LanguageTab {
  constructor() {
    this.root = byId("language");
    this.see = this.root.querySelector(".see");
    this.status = this.see.querySelector(".status");
    this.question = byId("question");
    const later = settled(() => this.run(), WAIT);
    const again = () => {
      this.asking?.abort();
      this.busy(true);
      later();
    };
    this.sources = new Sources(byId("language-pictures"), "scenes", () => {
      this.suggest();
      again();
    });
    this.methods = new Methods(byId("language-methods"), again);
    this.stage = new Stage(byId("language-stage"), { scores: false });
    byId("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      this.run();
    });
  }

  /** limits, colours: as the first tab has them. */
  async open({ limits, colours }) {
    this.colours = colours;
    this.status.textContent = "Loading the language model; the first time this takes some seconds …";
    this.about = await ask("language");
    const { grid, methods, depth, first, words } = this.about;
    this.sources.show(this.about.samples, limits, this.about.sample);
    this.methods.show(methods, { depth, patches: grid[0] * grid[1], first });
    byId("words-title").textContent = `The ${words.length} words that the model knows`;
    byId("words").textContent = words.join(", ");
    this.suggest();
    this.question.value = this.sources.sample.questions[0].text;
    await this.run();
  }

  /** Questions about the sample that the package has answers to. */
  suggest() {
    const usual = [{ text: "what is in the picture ?" }, { text: "how many objects are there ?" }];
    const asked = this.sources.sample?.questions ?? usual;
    const buttons = asked.map(({ text }) => {
      const button = make("button", { type: "button" }, text);
      button.addEventListener("click", () => {
        this.question.value = text;
        this.run();
      });
      return button;
    });
    byId("hints").replaceChildren(...buttons);
  }

  async run() {
    this.asking?.abort();
    const { signal } = (this.asking = new AbortController());
    const faults = this.methods.chosen.map((picker) => picker.fault);
    this.methods.complain(faults);
    if (faults.some(Boolean)) return this.busy(false);
    const { query, body } = this.sources.chosen;
    const recipes = this.methods.recipes.map((recipe) => ["recipe", recipe]);
    const words = query.filter(([name]) => name === "sample");
    this.busy(true);
    this.status.textContent = "Asking …";
    try {
      const talk = await ask("ask", { query: [["question", this.question.value], ...words, ...recipes], body, method: "POST", signal });
      await this.show(talk, signal);
    } catch (error) {
      if (error.name === "AbortError") return;
      this.status.textContent = "";
      this.see.classList.add("stale");
      alertUser(this.sources.blame(error.message));
    } finally {
      if (!signal.aborted) this.busy(false);
    }
  }

  busy(on) {
    this.see.setAttribute("aria-busy", String(on));
  }

  async show(talk, signal) {
    const image = new Image();
    image.src = talk.picture;
    await image.decode();
    if (signal.aborted) return;
    alertUser();
    this.see.classList.remove("stale");
    this.talk = talk;
    const [usual, ...others] = talk.replies;
    this.methods.complain(others.map((reply) => reply.error));
    const replies = others.map((reply, place) => ({ ...reply, letter: "AB"[place] })).filter((reply) => !reply.error);
    this.stage.show(image, talk.grid, this.colours);
    const whole = { letter: "", title: "whole picture", site: null };
    const sides = replies.map((reply) => ({ letter: reply.letter, title: `${reply.letter}  ${nameOf(reply)}`, site: reply.site }));
    this.stage.set(sides.length === 2 ? sides : [whole, sides[0] ?? whole]);
    this.showUnknown(talk.unknown);
    this.showAnswers(usual, replies);
    byId("language-code").replaceChildren(
      ...replies.map((reply) => {
        const which = replies.length > 1 ? ` for ${reply.letter}` : "";
        return make("div", { className: "code" }, snippet(`Python${which}`, reply.python), snippet(`Command line${which}`, reply.command));
      }),
    );
    this.status.textContent = [`Unpruned: ${usual.text}.`, ...replies.map((reply) => `${nameOf(reply)}: ${reply.text}.`)].join(" ");
  }

  showUnknown(unknown) {
    const words = unknown.map((word) => `“${word}”`).join(", ");
    byId("unknown").textContent = unknown.length ? `The model does not know ${words}, so it reads ${unknown.length > 1 ? "them" : "it"} as a blank.` : "";
  }

  showAnswers(usual, replies) {
    const known = this.sources.sample?.questions.find((one) => one.text === this.talk.question)?.answer ?? null;
    const total = this.talk.grid[0] * this.talk.grid[1];
    const cards = [{ ...usual, letter: "" }, ...replies].map((reply) => {
      const right = known === null ? null : spelled(reply.text) === spelled(known);
      const verdict = right === null ? null : make("small", { className: right ? "same" : "other" }, right ? "✓ right" : "✗ wrong");
      const title = reply.letter ? [make("b", {}, reply.letter), ` ${nameOf(reply)}`] : "Unpruned";
      const facts = `${reply.tokens} of ${total} image tokens (${percent(reply.tokens / total, 0)}), ${reply.milliseconds.toFixed(0)} ms`;
      return make("article", { "data-letter": reply.letter }, make("h2", {}, title), make("p", { className: "said" }, reply.text || "(nothing)"), verdict, make("p", { className: "note" }, facts));
    });
    const note = known === null ? "" : `The right answer: ${known}.`;
    byId("language-results").replaceChildren(make("div", { className: "answers" }, cards), make("p", { className: "note" }, note));
  }

  redraw() {
    this.stage.draw();
  }
}

const nameOf = (reply) => reply.recipe.split(":")[0];
/** An answer as it is compared: lists in any order. */
const spelled = (text) => text.split(",").map((part) => part.trim()).sort().join(", ");
