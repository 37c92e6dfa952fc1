// The picture in large, with two views of it side by side and a slider between them.
import { make } from "./elements.js";
import { legend, makeCanvas, paint } from "./painting.js";

const SIDE = 672;

export class Stage {
  constructor(root, { scores }) {
    this.root = root;
    this.cut = make("input", { type: "range", min: 0, max: 100, step: 1, value: 50, className: "cut" });
    this.cut.addEventListener("input", () => this.slide());
    this.names = ["left", "right"].map((side) => make("span", { className: `pill ${side}` }));
    this.frame = make("div", { className: "frame" });
    this.key = make("ul", { className: "legend" });
    this.view = "kept";
    this.views = make("div", { className: "views", role: "radiogroup", "aria-label": "What to show on the picture", hidden: !scores });
    for (const [value, text] of [["kept", "Kept patches"], ["score", "Scores"]]) {
      const input = make("input", { type: "radio", name: `${root.id}-view`, checked: value === this.view });
      input.addEventListener("change", () => {
        this.view = value;
        this.draw();
      });
      this.views.append(make("label", {}, input, make("span", {}, text)));
    }
    root.replaceChildren(this.frame, make("figcaption", {}, this.views, this.key));
  }

  /** Show a picture. sides: left and right, {name, letter, sites}, without sites the whole picture. */
  show(image, grid, colours) {
    Object.assign(this, { image, grid, colours });
    this.canvases = ["left", "right"].map(() => makeCanvas(image, SIDE));
    const handle = make("div", { className: "handle", "aria-hidden": "true" });
    this.frame.style.aspectRatio = `${image.naturalWidth} / ${image.naturalHeight}`;
    this.frame.replaceChildren(...this.canvases, ...this.names, this.cut, handle);
    this.slide();
  }

  /** sides: of left and right {letter, title, site}; site null is the whole picture. */
  set(sides) {
    this.sides = sides;
    this.cut.setAttribute("aria-label", `Divide the picture between ${sides[0].title} and ${sides[1].title}`);
    sides.forEach((side, place) => {
      this.names[place].textContent = side.title;
      this.names[place].dataset.letter = side.letter;
    });
    this.draw();
  }

  draw() {
    if (!this.sides || !this.image) return;
    this.sides.forEach((side, place) => paint(this.canvases[place], this.image, this.grid, side.site, this.view, this.colours));
    this.key.replaceChildren(...legend(this.sides.map((side) => side.site), this.view, this.colours));
  }

  slide() {
    this.frame.style.setProperty("--cut", `${this.cut.value}%`);
    this.cut.setAttribute("aria-valuetext", `${this.cut.value} % of the picture on the left`);
  }
}
