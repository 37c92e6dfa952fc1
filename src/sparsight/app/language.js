// The second tab: a question about a picture, answered with all image tokens and with a few.
import { ask, byId, make, percent, snippet } from "./elements.js";
import { lettered, nameOf, Tab } from "./tab.js";

export class LanguageTab extends Tab {
  constructor() {
    super("language", { samples: "scenes", scores: false, chosen: () => this.suggest() });
    this.question = byId("question");
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

  async answer({ query, ...asked }) {
    this.status.textContent = "Asking …";
    const words = query.filter(([name]) => name !== "file");
    await this.show(await ask("ask", { ...asked, query: [["question", this.question.value], ...words] }), asked.signal);
  }

  async show(talk, signal) {
    const image = await this.decode(talk.picture, signal);
    if (!image) return;
    this.talk = talk;
    const [usual, ...others] = talk.replies;
    this.methods.complain(others.map((reply) => reply.error));
    const replies = lettered(others);
    this.stage.show(image, talk.grid, this.colours);
    this.setViews(replies.map((reply) => ({ letter: reply.letter, title: `${reply.letter}  ${nameOf(reply)}`, site: reply.site })));
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

/** An answer as it is compared: lists in any order. */
const spelled = (text) => text.split(",").map((part) => part.trim()).sort().join(", ");
