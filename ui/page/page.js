() => {
  // What Gradio leaves out for people who use a keyboard or a screen reader; done again whenever the page changes.
  const names = [
    ["#sc-prompt .submit-button", "Send"],
    ["#sc-prompt .stop-button", "Stop"],
    ["#sc-concepts .search-input", "Search the words"],
    [".edit-textarea", "Your message, edited"],
  ];
  const set = (node, name, value) => { if (node.getAttribute(name) !== value) node.setAttribute(name, value); };
  const mend = () => {
    names.forEach(([selector, text]) => document.querySelectorAll(selector).forEach((node) => set(node, "aria-label", text)));
    // Both empty columns call themselves a landmark, which they are not.
    document.querySelectorAll(".placeholder-content[role]").forEach((node) => node.removeAttribute("role"));
    // Two logs of one name; and a log is read out when an answer is complete, not at every word.
    const busy = String(Boolean(document.querySelector("#sc-prompt .stop-button")));
    for (const [column, text] of [["#sc-chat", "Conversation with notes"], ["#sc-twin", "Conversation without notes"]]) {
      const log = document.querySelector(column + " [role=log]");
      if (log) { set(log, "aria-label", text); set(log, "aria-busy", busy); }
    }
    // Messages can be chosen, to see how they were read: with the keyboard, too.
    document.querySelectorAll("#sc-chat .message [data-testid], #sc-twin .message [data-testid]").forEach((node) => set(node, "tabindex", "0"));
  };
  new MutationObserver(mend).observe(document.body, { childList: true, subtree: true });
  mend();
  document.documentElement.lang = "en";
}
