() => {
  // Gradio's icon buttons have no accessible name: give them one, also when they appear later.
  const names = [
    ["#sc-prompt .submit-button", "Send"],
    ["#sc-prompt .stop-button", "Stop"],
    ["#sc-concepts .search-input", "Search the words"],
    [".edit-textarea", "Your message, edited"],
  ];
  const name = () => names.forEach(([selector, text]) =>
    document.querySelectorAll(selector).forEach((button) => {
      if (!button.getAttribute("aria-label")) button.setAttribute("aria-label", text);
    }));
  // Both empty columns call themselves a landmark, which they are not.
  const unmark = () => document.querySelectorAll(".placeholder-content[role]").forEach((e) => e.removeAttribute("role"));
  const mend = () => { name(); unmark(); };
  new MutationObserver(mend).observe(document.body, { childList: true, subtree: true });
  mend();
  document.documentElement.lang = "en";
}
