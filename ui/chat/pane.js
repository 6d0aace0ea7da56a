// The reading pane: one card at a time, by pointer, touch or keyboard. Runs once; the pane's content is replaced under it.
// Gradio gives `element` (this pane) and `trigger` (an event for Python).
const words = () => [...element.querySelectorAll(".sc-word, .sc-token")].filter((w) => !w.closest(".sc-word") || w.matches(".sc-word"));

function open(button, shown) {
  element.querySelectorAll(".sc-word").forEach((other) => {
    const mine = other === button && shown;
    other.setAttribute("aria-expanded", String(mine));
    const card = element.querySelector("#" + other.getAttribute("aria-controls"));
    if (card) card.hidden = !mine;
  });
}

function tell(target) {
  const tip = element.querySelector(".sc-tip");
  const token = target.matches(".sc-token") ? target : target.querySelector(".sc-token");
  if (tip && token) tip.textContent = token.textContent.trim() + ": " + token.dataset.tip;
}

element.addEventListener("mouseover", (event) => {
  const token = event.target.closest(".sc-token");
  if (token) tell(token);
  const word = event.target.closest(".sc-word");
  const used = element.querySelector(".sc-card:not([hidden])")?.contains(document.activeElement);
  if (word && !used && word.getAttribute("aria-expanded") !== "true") open(word, true);
});

element.addEventListener("focusin", (event) => {
  const word = event.target.closest(".sc-word, .sc-token");
  if (!word) return;
  tell(word);
  if (word.matches(".sc-word") && word.matches(":focus-visible")) open(word, true);
});

element.addEventListener("keydown", (event) => {
  const all = words();
  const at = all.indexOf(event.target.closest(".sc-word") ?? event.target);
  const steps = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 };
  if (at >= 0 && event.key in steps) {
    event.preventDefault();
    all[Math.max(0, Math.min(all.length - 1, steps[event.key]))].focus();
  } else if (event.key === "Escape") {
    const word = element.querySelector('.sc-word[aria-expanded="true"]');
    open(null, false);
    if (word && event.target.closest(".sc-card")) word.focus({ focusVisible: false });
  }
});

element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.matches(".sc-word")) {
    open(button, true);
  } else if (button.dataset.feature) {
    trigger("feature", { index: Number(button.dataset.feature) });
  } else if (button.dataset.action) {
    const select = button.closest(".sc-chooser")?.querySelector("select");
    trigger("choose", {
      turn: Number(button.closest("[data-turn]").dataset.turn),
      action: button.dataset.action,
      concept: button.dataset.concept,
      sense: select ? select.value : button.dataset.sense || "",
    });
  }
});

// Words with several senses are buttons in the tab order; the arrow keys reach all others. Without buttons the first word is.
function enter() {
  const first = element.querySelector(".sc-tokens .sc-token");
  if (first && !element.querySelector(".sc-word")) first.tabIndex = 0;
}

// A choice replaces the pane: whoever had the keyboard in it finds it there again.
let inside = false;
document.addEventListener("focusin", (event) => { inside = element.contains(event.target); });
watch("value", () => {
  enter();
  if (inside && !element.contains(document.activeElement)) {
    const word = element.querySelector('.sc-word[aria-expanded="true"], .sc-word, .sc-token, button');
    if (word) word.focus();
  }
});
enter();
