// The page: its two tabs, each opened when it is first looked at.
import { alertUser, byId } from "./elements.js";
import { LanguageTab } from "./language.js";
import { VisionTab } from "./vision.js";

const vision = new VisionTab();
const language = new LanguageTab();
const tabs = { vision, language };
const opened = {};

async function open(name) {
  for (const one of Object.keys(tabs)) {
    const chosen = one === name;
    const button = byId(`tab-${one}`);
    button.setAttribute("aria-selected", String(chosen));
    button.tabIndex = chosen ? 0 : -1;
    byId(one).hidden = !chosen;
    tabs[one].sources.active = chosen;
  }
  alertUser();
  try {
    opened.vision ??= vision.open();
    await (name === "vision" ? opened.vision : (opened.language ??= opened.vision.then(() => language.open(vision.about))));
  } catch (error) {
    delete opened[name];
    tabs[name].fail(error.message);
  }
}

const buttons = [...document.querySelectorAll("[role=tab]")];
buttons.forEach((button, place) => {
  button.addEventListener("click", () => open(button.getAttribute("aria-controls")));
  button.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = buttons[(place + step + buttons.length) % buttons.length];
    next.focus();
    next.click();
  });
});

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => Object.values(tabs).forEach((tab) => tab.redraw()));
open("vision");
