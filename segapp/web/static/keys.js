// Keys for the whole page, except where text is typed or a button is pressed.

import { redo, undo } from "./brush.js";
import { byId } from "./dom.js";
import { clearRuler } from "./ruler.js";
import {
  setHeat, setOverlay, setSlice, setTool, sliceCount, stepSlice, STYLES, toggleCrosshair,
} from "./state.js";
import { resetView, zoomBy } from "./view.js";
import { choosePreset } from "./windowing.js";

export function resetViews(reader) {
  for (const pane of reader.panes) resetView(reader, pane);
  reader.tell("view");
}

export function watchKeys(reader) {
  const zoom = (factor) => {
    zoomBy(reader, reader.panes.find((pane) => pane.name === reader.active), factor);
    reader.tell("view");
  };
  const go = (move) => !reader.history.open && move(); // a stroke stays on its slice
  const step = (by) => go(() => stepSlice(reader, reader.active, by));
  const nextStyle = () => STYLES[(STYLES.indexOf(reader.style) + 1) % STYLES.length];
  const resize = (steps) => {
    byId("radius").valueAsNumber += steps * Number(byId("radius").step);
    byId("radius").dispatchEvent(new Event("input"));
  };
  const withLabels = (action) => () => reader.labels && action();
  const actions = {
    ArrowUp: () => step(-1),
    ArrowDown: () => step(1),
    PageUp: () => step(-1),
    PageDown: () => step(1),
    Home: () => go(() => setSlice(reader, reader.active, 0)),
    End: () => go(() => setSlice(reader, reader.active, sliceCount(reader, reader.active) - 1)),
    "+": () => zoom(1.25),
    "=": () => zoom(1.25),
    "-": () => zoom(0.8),
    "−": () => zoom(0.8),
    " ": withLabels(() => setOverlay(reader, { overlay: !reader.overlay })),
    o: withLabels(() => setOverlay(reader, { style: nextStyle() })),
    c: () => reader.confidence && setHeat(reader, !reader.heat),
    x: () => toggleCrosshair(reader),
    n: () => setTool(reader, "navigate"),
    b: () => setTool(reader, "brush"),
    e: () => setTool(reader, "eraser"),
    m: () => setTool(reader, "ruler"),
    Escape: () => clearRuler(reader),
    "[": () => resize(-1),
    "]": () => resize(1),
    r: () => resetViews(reader),
    "?": () => byId("help").showModal(),
  };
  for (let n = 0; n <= 5; n++) actions[n] = () => choosePreset(reader, n);

  document.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]") || event.altKey) return;
    if (isTyping(event)) return;
    if (event.ctrlKey || event.metaKey) {
      if (event.key.toLowerCase() !== "z" || reader.history.open) return;
      event.preventDefault();
      (event.shiftKey ? redo : undo)(reader);
      return;
    }
    const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });
}

/** Whether a key belongs to the control that has the focus. */
function isTyping({ target, key }) {
  if (!(target instanceof Element)) return false;
  if (target.id === "slider") return key.startsWith("ArrowL") || key.startsWith("ArrowR");
  if (target.matches("input[type=number], select, textarea")) return true;
  if (target.matches("input[type=range]")) return /^(Arrow|Page|Home|End)/.test(key);
  return target.matches("button, summary, input, a") && (key === " " || key === "Enter");
}
