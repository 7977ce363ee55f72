// Distances: a ruler between two points of a slice, and a bar that tells the scale.

import { byId, make } from "./dom.js";
import { clamp, sliceOf } from "./state.js";
import { scales, toScreen } from "./view.js";

const LENGTHS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200]; // of the bar, in mm

/** Begins at a point ([row, col], fractional) of the slice that a pane shows. */
export function startRuler(reader, pane, from) {
  reader.ruler = { pane, slice: sliceOf(reader, pane.name), from, to: from };
  stretchRuler(reader, from);
}

/** Leads to a point, within the slice. */
export function stretchRuler(reader, [row, col]) {
  const { plane } = reader.ruler.pane;
  const size = [reader.shape[plane.rows], reader.shape[plane.cols]];
  reader.ruler.to = [row, col].map((x, n) => clamp(x, 0, size[n]));
  reader.tell("ruler");
}

export function clearRuler(reader) {
  reader.ruler = null;
  reader.tell("ruler");
}

/** Millimetres between its ends, pixels where the spacing is unknown. */
export function rulerLength({ ruler, spacing }) {
  const { rows, cols } = ruler.pane.plane;
  const down = (ruler.to[0] - ruler.from[0]) * spacing[rows];
  return Math.hypot(down, (ruler.to[1] - ruler.from[1]) * spacing[cols]);
}

const lengthText = (reader) =>
  `${rulerLength(reader).toFixed(1)} ${reader.meta.spacing_mm ? "mm" : "pixels"}`;

/** The distance beside the other numbers below the panes, for as long as there is one. */
export function buildRuler(reader) {
  const value = make("b");
  const item = make("span", { hidden: true }, "Distance ", value);
  byId("readout").append(item);
  reader.on("ruler", () => {
    item.hidden = !reader.ruler;
    value.textContent = reader.ruler ? lengthText(reader) : "";
    byId("readout").dataset.distance = value.textContent;
  });
}

export function drawRuler(reader, pane) {
  const { ruler } = reader;
  if (ruler?.pane !== pane || ruler.slice !== sliceOf(reader, pane.name)) return;
  const context = pane.markContext;
  const [[x0, y0], [x1, y1]] = [ruler.from, ruler.to].map((end) => toScreen(reader, pane, ...end));
  const length = Math.hypot(x1 - x0, y1 - y0) || 1;
  const [dx, dy] = [(5 * (y1 - y0)) / length, (5 * (x0 - x1)) / length]; // across its ends
  stroke(context, [[x0, y0, x1, y1], [x0 - dx, y0 - dy, x0 + dx, y0 + dy],
    [x1 - dx, y1 - dy, x1 + dx, y1 + dy]]);
  const middle = clamp((x0 + x1) / 2, 40, pane.width - 40);
  write(context, lengthText(reader), middle, Math.max(12, Math.min(y0, y1) - 12), "center");
}

/** As long as a round number of millimetres, a third of the pane at most. */
export function drawScaleBar(reader, pane) {
  const perMm = scales(reader, pane)[1] / reader.spacing[pane.plane.cols];
  const length = LENGTHS.findLast((mm) => mm * perMm <= pane.width / 3);
  if (!length) return;
  const [x, y] = [10, pane.height - 8];
  stroke(pane.markContext, [[x, y, x + length * perMm, y], [x, y - 4, x, y + 4],
    [x + length * perMm, y - 4, x + length * perMm, y + 4]]);
  write(pane.markContext, `${length} mm`, x, y - 12, "left");
}

/** Lines that show on bright and on dark. */
function stroke(context, lines) {
  for (const [lineWidth, colour] of [[3.5, "rgb(0 0 0 / 80%)"], [1.5, "#ffd84d"]]) {
    Object.assign(context, { lineWidth, strokeStyle: colour });
    context.beginPath();
    for (const [x0, y0, x1, y1] of lines) {
      context.moveTo(x0, y0);
      context.lineTo(x1, y1);
    }
    context.stroke();
  }
}

function write(context, text, x, y, textAlign) {
  const font = "600 12px system-ui, sans-serif";
  Object.assign(context, { font, textAlign, textBaseline: "middle", lineWidth: 3 });
  Object.assign(context, { strokeStyle: "rgb(0 0 0 / 80%)", fillStyle: "#fff" });
  context.strokeText(text, x, y);
  context.fillText(text, x, y);
}
