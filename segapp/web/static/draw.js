// Which panes are drawn again after which change: at most once a screen refresh.

import { drawPane, fitPane } from "./pane.js";
import { followCursor } from "./view.js";

/** Draws the reader's panes whenever something they show has changed. */
export function startDrawing(reader) {
  let waiting = false;
  const draw = () => {
    waiting = false;
    for (const pane of reader.panes) drawPane(reader, pane);
  };
  reader.redraw = (...parts) => {
    for (const pane of reader.panes) for (const part of parts) pane.stale[part] = true;
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(draw);
  };
  const changes = {
    cursor: ["marks"], // a pane sees by itself when its slice is another
    window: ["image"],
    overlay: ["overlay", "view"],
    labels: ["overlay", "outline"],
    crosshair: ["marks"],
    tool: ["marks"],
    pointer: ["marks"],
    ruler: ["marks"],
    view: [],
  };
  for (const [kind, parts] of Object.entries(changes)) {
    reader.on(kind, () => reader.redraw(...parts));
  }
  reader.on("cursor", () => reader.panes.forEach((pane) => followCursor(reader, pane)));
  const sizes = new ResizeObserver(() => {
    for (const pane of reader.panes) fitPane(pane);
    draw(); // at once: a resized canvas is blank until it is drawn
  });
  for (const pane of reader.panes) sizes.observe(pane.element);
}
