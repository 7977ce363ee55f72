// What is shown and how: one object that all parts read, and who hears of its changes.

import { preferences } from "./dom.js";
import { PLANES, shownPlanes } from "./geometry.js";

export const STYLES = ["fill", "outline", "both"];

/** `meta` is meta.json; `image` a typed array of its shape. Labels and confidence come later. */
export function makeReader(meta, image) {
  const kept = preferences.read();
  const planes = shownPlanes(meta.shape);
  const main = planes.includes(meta.main) ? meta.main : planes[0];
  const listeners = new Map();
  return {
    meta,
    image,
    labels: null,
    confidence: null,
    reference: null,
    shape: meta.shape,
    spacing: meta.spacing_mm ?? [1, 1, 1],
    planes,
    main,
    active: main, // the pane under the pointer or with the focus: keys go there
    panes: [],
    cursor: meta.shape.map((n, axis) => clamp(meta.start?.[axis] ?? n >> 1, 0, n - 1)),
    window: [...meta.window],
    tool: "navigate",
    crosshair: planes.length > 1,
    colours: meta.classes.map((c) => c.colour),
    shown: meta.classes.map((_, label) => label > 0),
    overlay: true,
    opacity: clamp(Number(kept.opacity ?? 0.45), 0, 1) || 0,
    style: STYLES.includes(kept.style) ? kept.style : "fill",
    heat: false,
    comparing: false,
    compareLabel: null, // null: all foreground
    brush: { label: 1, radius: 1 },
    ruler: null, // {pane, slice, from, to}: see ruler.js
    pointer: null, // {pane, row, col} in slice units, while over a pane
    on(kind, listener) {
      listeners.set(kind, [...(listeners.get(kind) ?? []), listener]);
    },
    tell(kind) {
      for (const listener of listeners.get(kind) ?? []) listener();
    },
  };
}

export const clamp = (x, low, high) => Math.min(high, Math.max(low, x));

export const sliceOf = (reader, name) => reader.cursor[PLANES[name].axis];
export const sliceCount = (reader, name) => reader.shape[PLANES[name].axis];

export function moveCursor(reader, index) {
  const next = index.map((x, axis) => clamp(x, 0, reader.shape[axis] - 1));
  if (next.every((x, axis) => x === reader.cursor[axis])) return;
  reader.cursor = next;
  reader.tell("cursor");
}

export function setSlice(reader, name, slice) {
  const next = [...reader.cursor];
  next[PLANES[name].axis] = slice;
  moveCursor(reader, next);
}

export const stepSlice = (reader, name, step) =>
  setSlice(reader, name, sliceOf(reader, name) + step);

export function setWindow(reader, low, high) {
  if (!Number.isFinite(low) || !Number.isFinite(high) || !(high > low)) return;
  reader.window = [low, high];
  reader.tell("window");
}

export function setTool(reader, tool) {
  if (!reader.labels && (tool === "brush" || tool === "eraser")) return;
  reader.tool = tool;
  reader.tell("tool");
}

export function setMain(reader, name) {
  reader.main = reader.active = name;
  reader.tell("main");
}

/** Changes any of overlay, opacity, style, heat, comparing, compareLabel. */
export function setOverlay(reader, changes) {
  Object.assign(reader, changes);
  if (changes.comparing) reader.heat = false; // one of the two can be drawn
  if (changes.heat) reader.comparing = false;
  const { opacity, style } = reader;
  if ("opacity" in changes || "style" in changes) preferences.write({ opacity, style });
  reader.tell("overlay");
}

/** What the model is unsure of is part of the overlay: asked for, it is shown. */
export const setHeat = (reader, heat) =>
  setOverlay(reader, { heat, overlay: reader.overlay || heat });

/** Whoever paints sees it: what would hide the brush's class is turned off. */
export function showPainted(reader) {
  const label = reader.tool === "brush" ? reader.brush.label : 0;
  if (reader.overlay && !reader.heat && (!label || reader.shown[label])) return;
  if (label) reader.shown[label] = true;
  setOverlay(reader, { overlay: true, heat: false });
}

export function toggleCrosshair(reader) {
  reader.crosshair = !reader.crosshair;
  reader.tell("crosshair");
}
