// The reader: loads a result once and shows it in linked planes.

import { buildClasses, loadMeasures } from "./classes.js";
import { buildCompare } from "./compare.js";
import { buildCorrect } from "./correct.js";
import { getArray, getJson } from "./data.js";
import { byId, problem } from "./dom.js";
import { startDrawing } from "./draw.js";
import { resetViews, watchKeys } from "./keys.js";
import { fitPane, makePane } from "./pane.js";
import { buildAbout, buildDownloads, buildReadout, buildSlider } from "./panel.js";
import { watchPane } from "./pointer.js";
import { buildRuler } from "./ruler.js";
import { makeReader, setTool, toggleCrosshair } from "./state.js";
import { buildWindowing } from "./windowing.js";

const page = document.documentElement;

async function start() {
  let meta;
  try {
    meta = await getJson("meta.json");
  } catch (error) {
    const kept = error.status !== 404;
    return give(kept ? error.message : "This result is no longer kept. Drop the scan again.");
  }
  try {
    const reader = makeReader(meta, await loadVoxels(meta, "image.bin"));
    if (meta.classes.length) reader.labels = await loadLabels(meta);
    if (!reader.labels) meta.classes = [];
    build(reader);
  } catch (error) {
    if (error.status === undefined) console.error(error);
    give(error.message);
  }
}

function give(text) {
  page.dataset.state = "gone";
  byId("loading").hidden = byId("reader").hidden = true;
  byId("gone").hidden = false;
  byId("gone-text").textContent = text;
}

const voxelCount = (meta) => meta.shape.reduce((a, b) => a * b, 1);

function loadVoxels(meta, address) {
  const bar = byId("loading-bar");
  const text = byId("loading-text");
  const megabytes = (bytes) => (bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0);
  return getArray(address, meta.dtype, voxelCount(meta) * (meta.rgb ? 3 : 1), (done, total) => {
    bar.value = done / total;
    text.textContent = `Loading the scan: ${megabytes(done)} of ${megabytes(total)} MB`;
  });
}

async function loadLabels(meta) {
  byId("loading-text").textContent = "Loading the result…";
  try {
    return await getArray("labels.bin", "uint8", voxelCount(meta));
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
}

function build(reader) {
  byId("loading").hidden = true;
  byId("reader").hidden = false;
  if (!reader.labels) {
    reader.colours = [];
    reader.shown = [];
    for (const part of document.querySelectorAll(".with-model")) part.hidden = true;
  }
  buildPanes(reader);
  buildCorrect(reader);
  if (reader.labels) {
    buildClasses(reader);
    buildCompare(reader);
  }
  buildAbout(reader);
  buildDownloads(reader);
  buildWindowing(reader);
  buildSlider(reader);
  buildReadout(reader);
  buildRuler(reader);
  buildTools(reader);
  watchKeys(reader);
  startDrawing(reader);
  takeFocus();
  requestAnimationFrame(() => (page.dataset.state = "ready"));
  if (reader.labels) loadTheRest(reader);
}

function buildPanes(reader) {
  reader.panes = reader.planes.map((name) => makePane(reader, name));
  const box = byId("panes");
  box.append(...reader.panes.map((pane) => pane.element));
  box.classList.toggle("one", reader.panes.length === 1);
  for (const pane of reader.panes) watchPane(reader, pane);
  const arrange = () => {
    for (const pane of reader.panes) {
      const isMain = pane.name === reader.main;
      pane.element.classList.toggle("main", isMain);
      pane.enlarge.hidden = isMain;
      fitPane(pane);
    }
    reader.redraw?.("view");
  };
  reader.on("main", arrange);
  arrange();
}

function buildTools(reader) {
  const buttons = [...document.querySelectorAll("#tools button")];
  for (const button of buttons) {
    button.addEventListener("click", () => setTool(reader, button.dataset.tool));
  }
  byId("tools").addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const usable = buttons.filter((button) => !button.hidden);
    const at = usable.indexOf(document.activeElement);
    if (!step || at < 0) return;
    event.preventDefault();
    usable[(at + step + usable.length) % usable.length].focus();
  });
  const showTool = () => {
    byId("panes").dataset.tool = reader.tool;
    for (const button of buttons) {
      button.setAttribute("aria-pressed", String(button.dataset.tool === reader.tool));
    }
  };
  reader.on("tool", showTool);
  showTool();

  const crosshair = byId("crosshair");
  crosshair.addEventListener("click", () => toggleCrosshair(reader));
  const showCrosshair = () => crosshair.setAttribute("aria-pressed", String(reader.crosshair));
  reader.on("crosshair", showCrosshair);
  showCrosshair();
  byId("reset").addEventListener("click", () => resetViews(reader));
  byId("help-button").addEventListener("click", () => byId("help").showModal());
}

/** In a frame keys reach the page only once it has the focus. */
function takeFocus() {
  page.addEventListener("pointerenter", () => {
    if (!document.hasFocus()) window.focus();
  });
}

async function loadTheRest(reader) {
  const measures = loadMeasures(reader, () => getJson("measures.json"));
  if (reader.meta.has_confidence) {
    try {
      reader.confidence = await getArray("confidence.bin", "uint8", reader.labels.length);
      reader.tell("confidence");
      reader.tell("overlay");
    } catch (error) {
      problem(`The confidence was not loaded: ${error.message}`);
    }
  }
  await measures;
  page.dataset.complete = "true";
}

start();
