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
  if (word && word.getAttribute("aria-expanded") !== "true") open(word, true);
});

element.addEventListener("focusin", (event) => {
  const word = event.target.closest(".sc-word, .sc-token");
  if (!word) return;
  tell(word);
  if (word.matches(".sc-word") && word.matches(":focus-visible")) open(word, true);
});

element.addEventListener("keydown", (event) => {
  const all = words();
  const at = all.indexOf(event.target);
  const steps = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 };
  if (at >= 0 && event.key in steps) {
    event.preventDefault();
    all[Math.max(0, Math.min(all.length - 1, steps[event.key]))].focus();
  } else if (event.key === "Escape") {
    open(null, false);
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
      action: button.dataset.action,
      concept: button.dataset.concept,
      sense: select ? select.value : button.dataset.sense || "",
    });
  }
});

// Of all words only one is in the tab order when nothing is flagged; the arrow keys reach the others.
function enter() {
  const first = element.querySelector(".sc-tokens .sc-token");
  if (first && !element.querySelector(".sc-word")) first.tabIndex = 0;
}
watch("value", enter);
enter();
