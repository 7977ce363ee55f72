// Correcting the result: brush settings, saving, and keeping a case to train on.

import { makeHistory, radiusRange, redo, undo } from "./brush.js";
import { getArray, send } from "./data.js";
import { byId, make, problem } from "./dom.js";
import { setTool } from "./state.js";

const SAVED =
  "Saved until this page closes: download it below, or keep it as a training case.";

const DISCARD = ["Discard the correction and go back to the model's result?", "Discard"];
// Models that learn from their own mistakes keep them.
const UNCORRECTED = [
  "Nothing was corrected. Is the model's result right as it is? Kept, it counts as correct, and a "
    + "model trained on it learns its mistakes as well.",
  "It is right: keep it",
];

/** The page around marks the scan in its list, and asks before it leaves what is only saved. */
function tellPage({ untaken = false, corrected }) {
  const detail = { scan: location.pathname, untaken, corrected };
  window.parent.document.dispatchEvent(new CustomEvent("segapp-correction", { detail }));
}

export function buildCorrect(reader) {
  reader.history = makeHistory();
  reader.dirty = false;
  reader.corrected = reader.meta.corrected;
  brushSettings(reader);
  byId("undo").addEventListener("click", () => undo(reader));
  byId("redo").addEventListener("click", () => redo(reader));
  byId("save").addEventListener("click", () => work(reader, "The correction was not saved", save));
  byId("discard").addEventListener("click", async () => {
    if (await confirmed(...DISCARD)) work(reader, "The correction was not discarded", discard);
  });
  byId("keep").addEventListener("click", () => work(reader, "The case was not kept", keep));
  byId("keep-note").textContent = reader.meta.keep_note ?? "";
  reader.on("correction", () => showState(reader));
  reader.on("tool", () => {
    if (reader.tool !== "brush" && reader.tool !== "eraser") return;
    const section = byId("correct");
    section.open = true;
    const below = section.offsetTop + section.offsetHeight - byId("side").clientHeight;
    if (byId("side").scrollTop < below) byId("side").scrollTop = below;
  });
  reader.on("taken", () => {
    if (reader.dirty || !reader.corrected) return;
    reader.untaken = false;
    showState(reader);
    tellPage(reader);
  });
  window.addEventListener("beforeunload", (event) => {
    if (!reader.dirty && !reader.untaken) return;
    event.preventDefault();
    event.returnValue = true; // what older browsers go by
  });
  showState(reader);
}

function brushSettings(reader) {
  const [choice, radius] = ["brush-class", "radius"].map(byId);
  reader.meta.classes.slice(1).forEach(({ name }, n) => {
    choice.append(make("option", { value: n + 1, textContent: name }));
  });
  choice.addEventListener("change", () => {
    reader.brush.label = Number(choice.value);
    setTool(reader, "brush");
  });
  const [least, most, step] = radiusRange(reader);
  Object.assign(radius, { min: least, max: most, step });
  radius.value = Math.max(2, Math.round(most / step / 8)) * step;
  const unit = reader.meta.spacing_mm ? "mm" : "pixels";
  const follow = () => {
    reader.brush.radius = radius.valueAsNumber;
    byId("radius-label").textContent = `Radius ${radius.valueAsNumber} ${unit}`;
    reader.redraw?.("marks");
  };
  radius.addEventListener("input", follow);
  follow();
}

function showState(reader) {
  const { history, dirty, corrected, busy } = reader;
  document.documentElement.dataset.dirty = String(dirty); // the page around asks before it leaves
  byId("undo").disabled = busy || !history.done.length;
  byId("redo").disabled = busy || !history.undone.length;
  byId("save").disabled = busy || !dirty;
  byId("discard").disabled = busy || !(dirty || corrected);
  byId("keep").disabled = busy || !reader.meta.can_keep;
  const there = reader.untaken === false ? "Saved, and downloaded or kept." : SAVED;
  const saved = corrected ? there : "The model's own result.";
  const unsaved = "Changed, not saved yet. Sizes are those before the change.";
  byId("dirty").textContent = busy ? "Working…" : dirty ? unsaved : saved;
  byId("dirty").classList.toggle("marked", dirty);
}

/** Runs one request at a time and shows why one failed. */
async function work(reader, failure, action) {
  problem("");
  reader.busy = true;
  showState(reader);
  try {
    await action(reader);
  } catch (error) {
    problem(`${failure}: ${error.message}`);
  }
  reader.busy = false;
  showState(reader);
}

async function save(reader) {
  const strokes = reader.history.done.length + reader.history.undone.length;
  const sent = reader.history.done.at(-1);
  const measures = await send(
    "labels", "POST", reader.labels.slice(), "application/octet-stream",
  );
  // What was painted while the request was on its way is not in it.
  const { done, undone } = reader.history;
  reader.dirty = done.at(-1) !== sent || done.length + undone.length !== strokes;
  reader.corrected = measures.corrected;
  reader.untaken = measures.corrected;
  tellPage(reader);
  reader.showMeasures(measures);
  reader.tell("saved");
}

async function discard(reader) {
  const measures = await send("labels", "DELETE");
  reader.labels = await getArray("labels.bin", "uint8", reader.labels.length);
  reader.history = makeHistory();
  reader.dirty = reader.corrected = reader.untaken = false;
  tellPage(reader);
  reader.showMeasures(measures);
  reader.tell("labels");
  reader.tell("saved");
}

async function keep(reader) {
  if (reader.dirty) await save(reader);
  if (!reader.corrected && !(await confirmed(...UNCORRECTED))) return;
  const kept = await send("case", "POST");
  reader.tell("taken");
  const count = `${kept.cases} ${kept.cases === 1 ? "case" : "cases"} there now`;
  const lines = [make("p", { textContent: `Kept in ${kept.folder} (${count}).` })];
  if (kept.note) lines.push(make("p", { className: "quiet", textContent: kept.note }));
  if (kept.command) lines.push(...commandLines(kept.command));
  byId("kept").replaceChildren(...lines);
}

function commandLines(command) {
  const code = make("code", { textContent: command });
  const copy = make("button", { type: "button", textContent: "Copy" });
  copy.addEventListener("click", async () => {
    copy.textContent = (await copied(code)) ? "Copied" : "Select it and press Ctrl+C";
  });
  return [make("p", { textContent: "Train on them:" }), code, copy];
}

async function copied(code) {
  try {
    await navigator.clipboard.writeText(code.textContent);
    return true;
  } catch {
    // Without https browsers have no clipboard here; the old way still works.
    getSelection().selectAllChildren(code);
    return document.execCommand("copy");
  }
}

function confirmed(question, yes) {
  const dialog = byId("ask");
  byId("ask-text").textContent = question;
  byId("ask-yes").textContent = yes;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((done) => {
    dialog.addEventListener("close", () => done(dialog.returnValue === "yes"), { once: true });
  });
}
