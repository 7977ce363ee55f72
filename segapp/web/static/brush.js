// Brush and eraser: a stroke changes labels of one slice and can be undone as a whole.

import { sliceLayout } from "./geometry.js";
import { setSlice, sliceOf } from "./state.js";

const MOST_STROKES = 200;

export function makeHistory() {
  return { done: [], undone: [], open: null };
}

/** A stroke that writes `label`: the flat indices it changed and what stood there. */
export function startStroke(reader, pane, label) {
  reader.history.open = { label, indices: [], before: [], pane, slice: sliceOf(reader, pane.name) };
}

/**
 * Paints every voxel whose centre lies within the radius of the segment between two points
 * ([row, col], fractional), and the voxel under the second point however small the radius.
 */
export function paint(reader, from, to) {
  const stroke = reader.history.open;
  const { plane } = stroke.pane;
  const { rows, cols, start, rowStep, colStep } = sliceLayout(plane, reader.shape, stroke.slice);
  const [down, across] = [reader.spacing[plane.rows], reader.spacing[plane.cols]];
  const { radius } = reader.brush;
  const put = (row, col) => {
    const at = start + row * rowStep + col * colStep;
    if (reader.labels[at] === stroke.label) return;
    stroke.indices.push(at);
    stroke.before.push(reader.labels[at]);
    reader.labels[at] = stroke.label;
  };
  const [y0, x0] = [from[0] * down, from[1] * across];
  const [dy, dx] = [to[0] * down - y0, to[1] * across - x0];
  const length = dx * dx + dy * dy;
  const range = (n, size, limit) => [
    Math.max(0, Math.floor(Math.min(from[n], to[n]) - radius / size) - 1),
    Math.min(limit - 1, Math.ceil(Math.max(from[n], to[n]) + radius / size)),
  ];
  const [firstRow, lastRow] = range(0, down, rows);
  const [firstCol, lastCol] = range(1, across, cols);
  for (let row = firstRow; row <= lastRow; row++) {
    for (let col = firstCol; col <= lastCol; col++) {
      const [y, x] = [(row + 0.5) * down - y0, (col + 0.5) * across - x0];
      const along = length ? Math.min(1, Math.max(0, (x * dx + y * dy) / length)) : 0;
      if ((x - along * dx) ** 2 + (y - along * dy) ** 2 <= radius * radius) put(row, col);
    }
  }
  const [row, col] = to.map(Math.floor);
  if (row >= 0 && row < rows && col >= 0 && col < cols) put(row, col);
  reader.tell("labels");
}

export function endStroke(reader) {
  const { history } = reader;
  const stroke = history.open;
  history.open = null;
  if (!stroke?.indices.length) return;
  history.done.push(stroke);
  if (history.done.length > MOST_STROKES) history.done.shift();
  history.undone = [];
  reader.dirty = true;
  reader.tell("correction");
}

/** Takes back what an unfinished stroke has painted, as if it had not begun. */
export function cancelStroke(reader) {
  const stroke = reader.history.open;
  reader.history.open = null;
  if (!stroke) return;
  takeBack(reader, stroke);
  reader.tell("labels");
}

function takeBack(reader, { indices, before }) {
  indices.forEach((at, n) => (reader.labels[at] = before[n]));
}

export function undo(reader) {
  const stroke = reader.history.done.pop();
  if (!stroke) return;
  takeBack(reader, stroke);
  reader.history.undone.push(stroke);
  changed(reader, stroke);
}

export function redo(reader) {
  const stroke = reader.history.undone.pop();
  if (!stroke) return;
  for (const at of stroke.indices) reader.labels[at] = stroke.label;
  reader.history.done.push(stroke);
  changed(reader, stroke);
}

function changed(reader, { pane, slice }) {
  setSlice(reader, pane.name, slice); // nothing changes out of sight
  reader.dirty = true;
  reader.tell("labels");
  reader.tell("correction");
}

/** From the size of a voxel to a tenth of the picture: [least, most, step] in mm or pixels. */
export function radiusRange({ spacing, shape }) {
  const sizes = spacing.filter((_, axis) => shape[axis] > 1);
  const finest = Math.min(...sizes, spacing[1], spacing[2]);
  const widest = Math.max(...spacing.map((s, axis) => s * shape[axis]));
  const step = Number((finest / 2).toPrecision(2));
  const steps = Math.max(10, Math.round(widest / 10 / step));
  return [step, Number((step * steps).toPrecision(6)), step];
}
