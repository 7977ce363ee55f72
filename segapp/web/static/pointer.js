// Mouse, pen and touch on a pane.

import { cancelStroke, endStroke, paint, startStroke } from "./brush.js";
import { indexAt } from "./geometry.js";
import { clearRuler, rulerLength, startRuler, stretchRuler } from "./ruler.js";
import { moveCursor, setMain, setWindow, showPainted, sliceOf, stepSlice } from "./state.js";
import { panBy, toSlice, voxelAt, zoomBy } from "./view.js";

/** What a press of this button with the chosen tool does. */
function actionOf(event, tool) {
  if (event.button === 1 || (event.button === 0 && event.shiftKey)) return "move";
  if (event.button === 2) return "window";
  return event.button === 0 ? tool : null;
}

/** Intensity for a pixel of a window drag: finer in a narrow window, coarser in a wide scan. */
function windowUnit(reader) {
  const [automatic, current] = [reader.meta.window, reader.window].map(([low, high]) => high - low);
  return Math.sqrt(Math.max(automatic, current / 100) * current) / 400;
}

export function watchPane(reader, pane) {
  const { canvas } = pane;
  const touches = new Map(); // pointer id → [x, y]
  let drag = null;
  let hovered = null; // [x, y] of the pointer: what lies there changes with the view

  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const point = (event) => {
    hovered = place(event);
    const [row, col] = toSlice(reader, pane, ...hovered);
    reader.pointer = { pane, row, col };
    reader.active = pane.name;
    reader.tell("pointer");
    return [row, col];
  };
  reader.on("view", () => {
    if (reader.pointer?.pane !== pane) return;
    const [row, col] = toSlice(reader, pane, ...hovered);
    reader.pointer = { pane, row, col };
    reader.tell("pointer");
  });

  const actions = {
    navigate: (event) => {
      const [row, col] = point(event);
      const slice = sliceOf(reader, pane.name);
      const at = [Math.floor(row), Math.floor(col)];
      moveCursor(reader, indexAt(pane.plane, reader.shape, slice, ...at));
    },
    move: (_, dx, dy) => {
      panBy(reader, pane, dx, dy);
      reader.tell("view");
    },
    window: (_, dx, dy) => {
      const [low, high] = reader.window;
      const width = Math.max(drag.unit / 10, high - low + dx * drag.unit);
      const centre = (low + high) / 2 + dy * drag.unit;
      setWindow(reader, centre - width / 2, centre + width / 2);
    },
    brush: (event) => stroke(event),
    eraser: (event) => stroke(event),
    ruler: (event) => {
      const at = point(event);
      if (drag.at) stretchRuler(reader, at);
      else startRuler(reader, pane, at);
      drag.at = at;
    },
  };
  const stroke = (event) => {
    const to = point(event);
    paint(reader, drag.at ?? to, to);
    drag.at = to;
  };

  const finish = () => {
    if (drag && reader.history.open) endStroke(reader);
    if (drag?.action === "ruler" && !rulerLength(reader)) clearRuler(reader); // a click
    drag = null;
  };

  canvas.addEventListener("pointerdown", (event) => {
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    touches.set(event.pointerId, place(event));
    reader.active = pane.name;
    if (touches.size > 1) {
      // A second finger: a pinch from here on, and what the first has painted was not meant.
      cancelStroke(reader);
      drag = null;
      return;
    }
    const action = actionOf(event, reader.tool);
    if (!action) return;
    event.preventDefault();
    drag = { action, last: place(event), at: null, unit: windowUnit(reader) };
    if (action === "brush" || action === "eraser") showPainted(reader);
    if (action === "brush") startStroke(reader, pane, reader.brush.label);
    if (action === "eraser") startStroke(reader, pane, 0);
    if (action !== "move" && action !== "window") actions[action](event, 0, 0);
  });

  canvas.addEventListener("pointermove", (event) => {
    if (touches.size > 1 && touches.has(event.pointerId)) return pinch(event);
    point(event);
    if (!drag) return;
    // Between two frames the pointer may have gone a long way round.
    const steps = drag.action in { brush: 1, eraser: 1 } ? event.getCoalescedEvents?.() : null;
    for (const step of steps?.length ? steps : [event]) {
      const [x, y] = place(step);
      actions[drag.action](step, x - drag.last[0], y - drag.last[1]);
      drag.last = [x, y];
    }
  });

  const pinch = (event) => {
    const spread = () => {
      const [a, b] = [...touches.values()];
      const far = Math.hypot(a[0] - b[0], a[1] - b[1]);
      return { far, x: (a[0] + b[0]) / 2, y: (a[1] + b[1]) / 2 };
    };
    const before = spread();
    touches.set(event.pointerId, place(event));
    const after = spread();
    if (before.far > 0 && after.far > 0) {
      zoomBy(reader, pane, after.far / before.far, after.x, after.y);
    }
    panBy(reader, pane, after.x - before.x, after.y - before.y);
    reader.tell("view");
  };

  const release = (event) => {
    touches.delete(event.pointerId);
    finish();
  };
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);
  canvas.addEventListener("pointerleave", () => {
    if (drag || reader.pointer?.pane !== pane) return;
    reader.pointer = null;
    reader.tell("pointer");
  });
  canvas.addEventListener("pointerenter", () => {
    // Keys go where the pointer is, unless a number is being typed.
    if (document.activeElement?.matches("input[type=number]")) return;
    canvas.focus({ preventScroll: true });
  });
  canvas.addEventListener("focus", () => (reader.active = pane.name));
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("dblclick", () => {
    if (reader.tool === "navigate") setMain(reader, pane.name);
  });
  pane.enlarge.addEventListener("click", () => setMain(reader, pane.name));

  pane.element.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      if (!event.deltaY) return;
      if (event.ctrlKey) {
        zoomBy(reader, pane, event.deltaY < 0 ? 1.15 : 1 / 1.15, ...place(event));
        reader.tell("view");
      } else if (!reader.history.open) {
        stepSlice(reader, pane.name, Math.sign(event.deltaY));
      }
      if (reader.pointer) point(event);
    },
    { passive: false },
  );
}

/** The voxel that the readout speaks of: under the pointer, else at the crosshair. */
export function voxelInView(reader) {
  const { pointer } = reader;
  return (pointer && voxelAt(reader, pointer.pane, pointer.row, pointer.col)) ?? reader.cursor;
}
