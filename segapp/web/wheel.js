// The mouse wheel over the picture moves through the slices, as readers are used to.
document.addEventListener(
  "wheel",
  (event) => {
    if (event.ctrlKey || !event.target.closest?.("#view")) return;
    const slider = document.querySelector("#slice input[type=range]");
    if (!slider || !event.deltaY) return;
    event.preventDefault();
    const now = Number(slider.value);
    const next = Math.min(Math.max(now + Math.sign(event.deltaY), slider.min), slider.max);
    if (next === now) return;
    slider.value = next;
    slider.dispatchEvent(new Event("input", { bubbles: true }));
  },
  { passive: false },
);
