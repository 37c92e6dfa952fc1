// Where a picture comes from: the samples, a file that is chosen, dropped or pasted.
import { alertUser, make, newId } from "./elements.js";

export class Sources {
  /** kind: of the samples in their address; changed() is called when another picture is chosen. */
  constructor(root, kind, changed) {
    this.root = root;
    this.kind = kind;
    this.changed = changed;
    this.group = newId();
    this.file = null;
    this.active = false;
  }

  show(samples, limits, first) {
    this.limits = limits;
    this.samples = new Map(samples.map((sample) => [sample.name, sample]));
    this.list = make("div", { className: "samples", role: "radiogroup", "aria-label": "Sample pictures" });
    for (const sample of samples) this.list.append(this.option(sample.name, sample.label, `samples/${this.kind}/${sample.name}`, sample.name === first));
    const input = make("input", { type: "file", accept: "image/*", "aria-label": "A picture of your own" });
    input.addEventListener("change", () => {
      if (input.files.length) this.take(input.files[0]);
      input.value = "";
    });
    const drop = make("label", { className: "drop" }, input, make("span", {}, make("b", {}, "Your own picture"), make("small", {}, "choose, drop or paste it")));
    this.root.append(this.list, drop);
    this.listen(drop);
    this.reveal();
  }

  /** Scroll the samples, where they are one row, to the chosen one. */
  reveal() {
    const chosen = this.list.querySelector("label:has(input:checked)");
    this.list.scrollLeft = chosen.offsetLeft - (this.list.clientWidth - chosen.offsetWidth) / 2;
  }

  option(name, label, address, checked) {
    const input = make("input", { type: "radio", name: this.group, value: name, checked });
    input.addEventListener("change", () => this.changed());
    const image = make("img", { src: address, alt: "", loading: "lazy", width: 64, height: 64 });
    image.addEventListener("error", () => image.replaceWith(make("i", {}, label.split(".").pop().slice(0, 4))));
    return make("label", { className: "sample", title: label }, input, image, make("span", { className: "hidden" }, label));
  }

  listen(drop) {
    let depth = 0; // dragenter and dragleave come for every element on the way
    const over = (step) => {
      depth = Math.max(0, depth + step);
      drop.classList.toggle("over", depth > 0 && this.active);
    };
    addEventListener("dragenter", () => over(1));
    addEventListener("dragleave", () => over(-1));
    addEventListener("dragover", (event) => event.preventDefault());
    addEventListener("drop", (event) => {
      event.preventDefault();
      over(-depth);
      if (this.active && event.dataTransfer.files.length) this.take(event.dataTransfer.files[0]);
    });
    addEventListener("paste", (event) => {
      if (this.active && event.clipboardData?.files.length) this.take(event.clipboardData.files[0]);
    });
  }

  /** A file of the user's own, which stays in the browser and goes along with every question. */
  take(file) {
    if (file.size > this.limits.bytes) {
      alertUser(`${file.name} has ${(file.size / 2 ** 20).toFixed(1)} MiB; the page takes pictures of at most ${Math.round(this.limits.bytes / 2 ** 20)} MiB`);
      return;
    }
    if (this.address) URL.revokeObjectURL(this.address);
    this.file = file;
    this.address = URL.createObjectURL(file);
    this.list.querySelector(".own")?.remove();
    const own = this.option("", file.name, this.address, true);
    own.classList.add("own");
    this.list.prepend(own);
    this.reveal();
    this.changed();
  }

  /** Words for the address, and the bytes that go along. */
  get chosen() {
    const name = this.list.querySelector("input:checked").value;
    return name ? { query: [["sample", name]], body: "" } : { query: [["file", this.file.name]], body: this.file };
  }

  /** A message about the picture, with the file's name if it is the user's own. */
  blame(message) {
    return this.sample || !/image|upload/.test(message) ? message : `${this.file.name}: ${message}`;
  }

  get sample() {
    return this.samples.get(this.list.querySelector("input:checked").value) ?? null;
  }
}
