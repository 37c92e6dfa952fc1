// Elements of the page, and questions to the server.

/** An element with properties, attributes (aria-, data-, role, for) and children; what is null is left out. */
export function make(tag, properties = {}, ...children) {
  const found = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined) continue;
    if (/^(aria-|data-|role$|for$)/.test(name)) found.setAttribute(name, value);
    else found[name] = value;
  }
  found.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== ""));
  return found;
}

export const byId = (id) => document.getElementById(id);

let made = 0;
/** A new id, for labels and what they name. */
export const newId = () => `e${++made}`;

/** Run the last call of a burst, once nothing has come for a while. */
export function settled(run, milliseconds) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => run(...given), milliseconds);
  };
}

/** JSON from the server; an Error with its one line where it refuses. */
export async function ask(path, { query = [], body, signal, method } = {}) {
  const words = new URLSearchParams(query).toString();
  let answer;
  try {
    answer = await fetch(words ? `${path}?${words}` : path, { method: method ?? (body === undefined ? "GET" : "POST"), body, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer; is it still running?");
  }
  const found = await answer.json().catch(() => null);
  if (!answer.ok || found === null) throw new Error(found?.error ?? `The server answered with status ${answer.status}.`);
  return found;
}

/** One line at the top of the page; none takes it away. */
export function alertUser(text = "") {
  const place = byId("alert");
  place.hidden = !text;
  place.textContent = text;
}

/** Text to copy, under a heading, with a button that does it. */
export function snippet(name, text) {
  const button = make("button", { type: "button", className: "copy", "aria-label": `Copy the ${name}` }, "Copy");
  button.addEventListener("click", async () => {
    const done = await copy(text);
    button.textContent = done ? "Copied" : "Select it by hand";
    setTimeout(() => (button.textContent = "Copy"), 1600);
  });
  return make("div", { className: "snippet" }, make("div", { className: "title" }, make("h3", {}, name), button), make("pre", { tabIndex: 0 }, text));
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}

export const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;

/** A count in the unit that gives it one to three digits before the point. */
export function amount(count) {
  for (const [size, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (count >= size) return `${(count / size).toFixed(2)} ${unit}`;
  }
  return String(count);
}
