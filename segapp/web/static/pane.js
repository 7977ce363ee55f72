// A pane: one plane on two canvases, the picture below and the marks (crosshair, letters) above.

import { make } from "./dom.js";
import { edgeLetters, placeOf, planeTitle, PLANES, sliceLayout } from "./geometry.js";
import { drawRuler, drawScaleBar } from "./ruler.js";
import {
  fillCompared, fillGrey, fillRgb, fillTable, outlines, packed, unsureTable,
} from "./slices.js";
import { sliceCount, sliceOf } from "./state.js";
import { scales, toScreen } from "./view.js";

const UNSURE = unsureTable();
const FRESH = { image: true, overlay: true, outline: true, view: true, marks: true };

/** The slice's own pixels, one a voxel, kept from slice to slice. */
function makeLayer(cols, rows) {
  const canvas = make("canvas", { width: cols, height: rows });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const data = context.createImageData(cols, rows);
  return { canvas, context, data, pixels: new Uint32Array(data.data.buffer) };
}

const show = (layer) => layer.context.putImageData(layer.data, 0, 0);

export function makePane(reader, name) {
  const plane = PLANES[name];
  const layout = sliceLayout(plane, reader.shape, 0);
  const title = planeTitle(name, Boolean(reader.meta.affine));
  const canvas = make("canvas", { id: `pane-${name}`, tabindex: "0", role: "img" });
  const marks = make("canvas", { className: "marks", "aria-hidden": "true" });
  const caption = make("span", { className: "caption" });
  const enlarge = make(
    "button",
    { type: "button", className: "enlarge", "aria-label": `Enlarge ${title.toLowerCase()}` },
    "Enlarge",
  );
  canvas.dataset.plane = name;
  return {
    ...{ name, plane, title, canvas, marks, caption, enlarge, outlines: null },
    element: make("div", { className: "pane" }, canvas, marks, caption, enlarge),
    context: canvas.getContext("2d", { alpha: false }),
    markContext: marks.getContext("2d"),
    letters: edgeLetters(reader.meta, plane),
    image: makeLayer(layout.cols, layout.rows),
    overlay: reader.meta.classes.length ? makeLayer(layout.cols, layout.rows) : null,
    stale: { ...FRESH },
    slice: -1,
    ...{ width: 0, height: 0, ratio: 1 }, // CSS pixels, and device pixels in one of them
    ...{ zoom: 1, centre: [layout.rows / 2, layout.cols / 2] },
  };
}

/** Takes the size that the page gives the pane. */
export function fitPane(pane) {
  const ratio = Math.min(window.devicePixelRatio || 1, 2);
  const { clientWidth: width, clientHeight: height } = pane.element;
  if (width === pane.width && height === pane.height && ratio === pane.ratio) return;
  Object.assign(pane, { width, height, ratio });
  for (const canvas of [pane.canvas, pane.marks]) {
    canvas.width = Math.max(1, Math.round(width * ratio));
    canvas.height = Math.max(1, Math.round(height * ratio));
  }
  pane.stale.view = true;
}

/** Draws what is out of date, and nothing else. */
export function drawPane(reader, pane) {
  const { stale } = pane;
  const slice = sliceOf(reader, pane.name);
  if (slice !== pane.slice) {
    pane.slice = slice;
    Object.assign(stale, { image: true, overlay: true, outline: true });
    const count = sliceCount(reader, pane.name);
    const isPicture = count === 1 && !pane.letters;
    pane.caption.textContent = isPicture ? "" : `${pane.title} ${slice + 1} / ${count}`;
    pane.canvas.setAttribute("aria-label", `${pane.title}, slice ${slice + 1} of ${count}`);
  }
  if (!pane.width || !pane.height) return;
  if (stale.image || stale.overlay || stale.outline || stale.view) drawPicture(reader, pane);
  if (stale.marks || stale.view) drawMarks(reader, pane);
  stale.view = stale.marks = false;
  pane.canvas.dataset.slice = String(slice);
}

function drawPicture(reader, pane) {
  const { context, stale, ratio } = pane;
  const layout = sliceLayout(pane.plane, reader.shape, pane.slice);
  if (stale.image) {
    const fill = reader.meta.rgb ? fillRgb : fillGrey;
    fill(pane.image.pixels, reader.image, layout, ...reader.window);
    show(pane.image);
  }
  const [down, across] = scales(reader, pane);
  const [x, y] = toScreen(reader, pane, 0, 0);
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.fillStyle = "#000";
  context.fillRect(0, 0, pane.canvas.width, pane.canvas.height);
  context.setTransform(across * ratio, 0, 0, down * ratio, x * ratio, y * ratio);
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = across * ratio < 0.6 ? "high" : "low";
  context.drawImage(pane.image.canvas, 0, 0);
  stale.image = false;
  if (reader.labels && reader.overlay) drawOverlay(reader, pane, layout);
}

function drawOverlay(reader, pane, layout) {
  const { context, stale } = pane;
  const comparing = reader.comparing && reader.reference;
  const heat = !comparing && reader.heat && reader.confidence;
  if (comparing || heat || reader.style !== "outline") {
    if (stale.overlay) {
      const { pixels } = pane.overlay;
      if (comparing) {
        fillCompared(pixels, reader.labels, reader.reference, layout, reader.compareLabel);
      } else if (heat) fillTable(pixels, reader.confidence, layout, UNSURE);
      else fillTable(pixels, reader.labels, layout, classTable(reader));
      show(pane.overlay);
      stale.overlay = false;
    }
    context.imageSmoothingEnabled = false;
    context.globalAlpha = comparing ? Math.max(reader.opacity, 0.75) : reader.opacity;
    context.drawImage(pane.overlay.canvas, 0, 0);
    context.globalAlpha = 1;
  }
  if (!comparing && !heat && reader.style !== "fill") drawOutlines(reader, pane, layout);
}

const classTable = (reader) =>
  Uint32Array.from({ length: 256 }, (_, label) =>
    reader.shown[label] ? packed(reader.colours[label]) : 0,
  );

/** At the screen's resolution: the paths are scaled, the lines' width is not. */
function drawOutlines(reader, pane, layout) {
  const { context, ratio } = pane;
  if (pane.stale.outline || !pane.outlines) {
    pane.outlines = outlines(reader.labels, layout);
    pane.stale.outline = false;
  }
  const placed = context.getTransform();
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.lineWidth = 1.5 * ratio;
  context.lineCap = "square";
  for (const [label, path] of pane.outlines) {
    if (!reader.shown[label]) continue;
    const scaled = new Path2D();
    scaled.addPath(path, placed);
    context.strokeStyle = reader.colours[label];
    context.stroke(scaled);
  }
}

function drawMarks(reader, pane) {
  const { markContext: context, width, height, ratio } = pane;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  if (reader.crosshair) {
    const [row, col] = placeOf(pane.plane, reader.shape, reader.cursor);
    const [x, y] = toScreen(reader, pane, row + 0.5, col + 0.5).map((v) => Math.round(v) + 0.5);
    context.strokeStyle = "rgb(90 200 250 / 75%)";
    context.lineWidth = 1;
    context.beginPath();
    // A gap in the middle leaves the voxel itself free to see.
    for (const side of [-1, 1]) {
      context.moveTo(x + side * 8, y);
      context.lineTo(x + side * 5000, y);
      context.moveTo(x, y + side * 8);
      context.lineTo(x, y + side * 5000);
    }
    context.stroke();
  }
  if (pane.letters) drawLetters(pane);
  if (reader.meta.spacing_mm) drawScaleBar(reader, pane);
  drawRuler(reader, pane);
  if (reader.pointer?.pane === pane && ["brush", "eraser"].includes(reader.tool)) {
    drawBrush(reader, pane);
  }
}

function drawLetters({ markContext: context, letters, width, height }) {
  context.font = "600 13px system-ui, sans-serif";
  context.textBaseline = "middle";
  context.textAlign = "center";
  context.lineWidth = 3;
  context.strokeStyle = "rgb(0 0 0 / 80%)";
  context.fillStyle = "#fff";
  const places = {
    left: [12, height / 2],
    right: [width - 12, height / 2],
    top: [width / 2, width < 340 ? 40 : 14], // below the caption of a narrow pane
    bottom: [width / 2, height - 12],
  };
  for (const [side, [x, y]] of Object.entries(places)) {
    context.strokeText(letters[side], x, y);
    context.fillText(letters[side], x, y);
  }
}

function drawBrush(reader, pane) {
  const { markContext: context } = pane;
  const { row, col } = reader.pointer;
  const [down, across] = scales(reader, pane);
  const [x, y] = toScreen(reader, pane, row, col);
  const { radius, label } = reader.brush;
  const radii = [
    (radius / reader.spacing[pane.plane.cols]) * across,
    (radius / reader.spacing[pane.plane.rows]) * down,
  ];
  const inside = reader.tool === "eraser" ? "#fff" : reader.colours[label];
  for (const [lineWidth, colour] of [[3, "#000"], [1.5, inside]]) {
    context.lineWidth = lineWidth;
    context.strokeStyle = colour;
    context.beginPath();
    context.ellipse(x, y, ...radii, 0, 0, 2 * Math.PI);
    context.stroke();
  }
}

/** The pane as it is on screen, with its marks, what its colours mean, and what it is no picture
 * for, as a PNG blob. */
export function pictureOf(reader, pane) {
  const canvas = make("canvas", { width: pane.canvas.width, height: pane.canvas.height });
  const context = canvas.getContext("2d");
  context.drawImage(pane.canvas, 0, 0);
  context.drawImage(pane.marks, 0, 0);
  context.setTransform(pane.ratio, 0, 0, pane.ratio, 0, 0);
  context.font = "13px system-ui, sans-serif";
  context.fillStyle = "#fff";
  const corrected = reader.corrected || reader.dirty ? "corrected by hand, " : "";
  const drawn = reader.labels && reader.overlay && !reader.heat && !reader.comparing;
  const shown = reader.meta.classes.filter((_, label) => drawn && label && reader.shown[label]);
  const lines = [["#fff", pane.caption.textContent], ["#fff", `${corrected}research use only`]];
  for (const segClass of shown) {
    lines.push([reader.colours[reader.meta.classes.indexOf(segClass)], segClass.name]);
  }
  lines.forEach(([colour, text], n) => {
    for (const [style, draw] of [["#000", "strokeText"], [colour, "fillText"]]) {
      Object.assign(context, { lineWidth: 3, strokeStyle: style, fillStyle: style });
      context[draw](text, 10, 18 * (n + 1));
    }
  });
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}
