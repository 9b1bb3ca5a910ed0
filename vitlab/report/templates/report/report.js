const button = document.getElementById("show-code");
button.addEventListener("click", () => {
  const show = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", String(show));
  document.querySelectorAll("details.code").forEach((details) => { details.open = show; });
});

// Beside the text the contents stay open; above it, on a narrow screen, they start folded.
const toc = document.querySelector("details.toc");
const wide = window.matchMedia("(min-width: 68rem)");
const fold = () => { toc.open = wide.matches; };
wide.addEventListener("change", fold);
fold();
toc.addEventListener("click", (event) => { if (event.target.closest("a") && !wide.matches) toc.open = false; });
