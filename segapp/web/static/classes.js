// The classes: what is drawn, in which colour, and how large each is.

import { byId, make, number, problem, significant } from "./dom.js";
import { scaleColour } from "./slices.js";
import { setHeat, setOverlay } from "./state.js";

export function buildClasses(reader) {
  const rows = reader.meta.classes.map((segClass, label) => classRow(reader, segClass, label));
  byId("class-list").append(...rows.slice(1).map((row) => row.element));
  const counted = reader.meta.affine ? "voxels" : "pixels";
  reader.showMeasures = (measures) => fillMeasures(rows, measures, counted);
  byId("measures-note").textContent = "Measuring…";

  const showAll = (shown) => () => {
    reader.shown = reader.shown.map((_, label) => label > 0 && shown);
    reader.tell("overlay");
  };
  byId("show-all").addEventListener("click", showAll(true));
  byId("show-none").addEventListener("click", showAll(false));
  byId("all-or-none").hidden = rows.length < 4;

  const [overlay, style, opacity, heat] = ["overlay", "style", "opacity", "heat"].map(byId);
  overlay.addEventListener("change", () => setOverlay(reader, { overlay: overlay.checked }));
  style.addEventListener("change", () => setOverlay(reader, { style: style.value }));
  opacity.addEventListener("input", () =>
    setOverlay(reader, { opacity: opacity.valueAsNumber / 100 }),
  );
  heat.addEventListener("change", () => setHeat(reader, heat.checked));
  drawScale(byId("heat-scale"));

  const follow = () => {
    overlay.checked = reader.overlay;
    style.value = reader.style;
    opacity.value = Math.round(reader.opacity * 100);
    heat.checked = reader.heat;
    byId("heat-row").hidden = !reader.confidence;
    byId("heat-legend").hidden = !reader.heat;
    style.disabled = reader.heat || reader.comparing;
    byId("overlay-note").textContent = overlayNote(reader);
    rows.forEach((row, label) => {
      row.box.checked = reader.shown[label];
      row.box.disabled = reader.heat || reader.comparing;
      row.colour.value = reader.colours[label];
    });
  };
  reader.on("overlay", follow);
  follow();
}

/** What is drawn otherwise than the boxes and the style say. */
function overlayNote({ heat, comparing, overlay, corrected, dirty }) {
  if (!overlay) return "";
  if (comparing) return "The comparison with the mask is drawn in place of the classes.";
  if (!heat) return "";
  const whose = corrected || dirty ? " of its own result, before the correction" : "";
  return `Classes are not drawn while it shows where the model is unsure${whose}.`;
}

function classRow(reader, { name }, label) {
  const id = `show-${label}`;
  const box = make("input", { type: "checkbox", id, "aria-label": `Show ${name}` });
  box.dataset.label = label;
  box.addEventListener("change", () => {
    reader.shown[label] = box.checked;
    reader.tell("overlay");
  });
  const colour = make("input", { type: "color", "aria-label": `Colour of ${name}` });
  colour.addEventListener("input", () => {
    reader.colours[label] = colour.value;
    reader.tell("overlay");
  });
  const size = make("span", { className: "size" });
  const more = make("span", { className: "more quiet" });
  const title = make("label", { className: "class-name", for: id, textContent: name });
  return { box, colour, size, more, element: make("li", {}, box, colour, title, size, more) };
}

function fillMeasures(rows, measures, counted) {
  measures.classes.forEach((figures, n) => {
    const row = rows[n + 1];
    if (!row) return;
    const known = figures.size !== null && figures.size !== undefined;
    row.size.textContent = known
      ? `${significant(figures.size)} ${measures.unit}`
      : `${number(figures.voxels)} ${counted}`;
    const more = [];
    if (figures.low !== null && figures.low !== undefined) {
      const text = known ? significant : (count) => number(Math.round(count));
      const unit = known ? ` ${measures.unit}` : "";
      more.push(`${text(figures.low)}–${text(figures.high)}${unit}`);
    }
    if (known) more.push(`${number(figures.voxels)} ${counted}`);
    const { components, mean } = figures;
    if (Number.isFinite(components)) {
      more.push(`${number(components)} ${components === 1 ? "piece" : "pieces"}`);
    }
    if (Number.isFinite(mean)) more.push(`mean intensity ${significant(mean)}`);
    row.more.textContent = more.join(" · ");
  });
  byId("measures-note").textContent = measures.note ?? "";
  byId("edge-note").textContent = measures.edge_note ?? "";
}

/** Asks for the measures in the background; the pictures need none. */
export async function loadMeasures(reader, ask) {
  try {
    reader.showMeasures(await ask());
  } catch (error) {
    byId("measures-note").textContent = "";
    problem(`Not measured: ${error.message}`);
  }
}

function drawScale(canvas) {
  const context = canvas.getContext("2d");
  for (let x = 0; x < canvas.width; x++) {
    context.fillStyle = scaleColour(x / (canvas.width - 1));
    context.fillRect(x, 0, 1, canvas.height);
  }
}
