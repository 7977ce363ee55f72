// Where a pane looks: which part of its slice is on the screen, and how large.

import { indexAt, placeOf } from "./geometry.js";
import { clamp, sliceOf } from "./state.js";

/** CSS pixels per voxel [down, across] with the voxels' true proportions. */
export function scales(reader, pane) {
  const { spacing, shape } = reader;
  const [down, across] = [spacing[pane.plane.rows], spacing[pane.plane.cols]];
  const fit = Math.min(
    pane.height / (shape[pane.plane.rows] * down),
    pane.width / (shape[pane.plane.cols] * across),
  );
  return [fit * pane.zoom * down, fit * pane.zoom * across];
}

/** CSS pixels from the pane's corner → fractional [row, col] of the slice. */
export function toSlice(reader, pane, x, y) {
  const [down, across] = scales(reader, pane);
  return [
    pane.centre[0] + (y - pane.height / 2) / down,
    pane.centre[1] + (x - pane.width / 2) / across,
  ];
}

/** [row, col] → CSS pixels [x, y]. */
export function toScreen(reader, pane, row, col) {
  const [down, across] = scales(reader, pane);
  return [
    pane.width / 2 + (col - pane.centre[1]) * across,
    pane.height / 2 + (row - pane.centre[0]) * down,
  ];
}

/** The display index under fractional [row, col], or null outside the slice. */
export function voxelAt(reader, pane, row, col) {
  const index = indexAt(
    pane.plane, reader.shape, sliceOf(reader, pane.name), Math.floor(row), Math.floor(col),
  );
  return index.every((x, axis) => x >= 0 && x < reader.shape[axis]) ? index : null;
}

/** Zooms about a point that stays where it is (CSS pixels; the middle by default). */
export function zoomBy(reader, pane, factor, x = pane.width / 2, y = pane.height / 2) {
  const before = toSlice(reader, pane, x, y);
  pane.zoom = clamp(pane.zoom * factor, 0.5, 60);
  const after = toSlice(reader, pane, x, y);
  pane.centre = pane.centre.map((c, n) => c + before[n] - after[n]);
  keepInView(reader, pane);
}

export function panBy(reader, pane, dx, dy) {
  const [down, across] = scales(reader, pane);
  pane.centre = [pane.centre[0] - dy / down, pane.centre[1] - dx / across];
  keepInView(reader, pane);
}

function keepInView(reader, pane) {
  const size = [reader.shape[pane.plane.rows], reader.shape[pane.plane.cols]];
  pane.centre = pane.centre.map((c, n) => clamp(c, 0, size[n]));
  pane.stale.view = true;
}

/** A zoomed pane goes along when another pane takes the crosshair out of its sight. */
export function followCursor(reader, pane) {
  if (pane.zoom <= 1 || pane.name === reader.active) return;
  const [row, col] = placeOf(pane.plane, reader.shape, reader.cursor);
  const [x, y] = toScreen(reader, pane, row + 0.5, col + 0.5);
  if (x >= 0 && x <= pane.width && y >= 0 && y <= pane.height) return;
  pane.centre = [row + 0.5, col + 0.5];
  pane.stale.view = true;
}

export function resetView(reader, pane) {
  pane.zoom = 1;
  pane.centre = [reader.shape[pane.plane.rows] / 2, reader.shape[pane.plane.cols] / 2];
  pane.stale.view = true;
}
