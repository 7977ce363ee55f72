// What the page says about the result, and the readout below the panes.

import { getJson } from "./data.js";
import { byId, make, problem } from "./dom.js";
import { fileVoxel, flatIndex, planeTitle, position, positionText } from "./geometry.js";
import { pictureOf } from "./pane.js";
import { voxelInView } from "./pointer.js";
import { setSlice, sliceCount, sliceOf } from "./state.js";

const MASKS = new Set(["same", "nifti", "png", "dicomseg", "zip"]); // what holds a correction

// What stands in a fact's name → what it means.
const MEANINGS = {
  "mean confidence":
    "How sure the model is of the classes it chose, on average. A sure model can still be wrong.",
  "estimated dice":
    "How well the model expects its mask to agree with an expert's: 1 is full agreement, 0 none. "
    + "It is the model's own guess, a mean over the classes that it found, of which single ones may "
    + "be worse; nobody has measured it on this scan.",
  unlikeness:
    "How different the scan is from those that the model was trained on. Above 1 it is unusual, "
    + "and the mask needs a closer look, however sure the model is.",
};

export function buildAbout(reader) {
  const { meta } = reader;
  byId("name").textContent = meta.name;
  // Where there is but one, the page around is called by its name.
  const model = meta.models === 1 ? "" : `Model: ${meta.model}`;
  byId("model").textContent = meta.model ? model : "No model: the scan alone.";
  showJudgement(meta);
  // Once it is corrected, what the model thinks is of its own result: the server's words say so.
  reader.on("saved", async () => {
    try {
      showJudgement(await getJson("meta.json"));
    } catch (error) {
      problem(`What is said of the result is out of date: ${error.message}`);
    }
  });
}

function showJudgement({ status, reason, warnings, facts }) {
  const doubts = status === "review" ? ["Review this result.", ` ${reason}`] : [];
  byId("review").hidden = !doubts.length;
  byId("review").replaceChildren(
    ...doubts.map((textContent, n) => make(n ? "span" : "strong", { textContent })),
  );
  byId("banner").hidden = !doubts.length;
  byId("banner").textContent = byId("banner").title = doubts.join("");
  byId("warnings").hidden = !warnings.length;
  byId("warnings").replaceChildren(...warnings.map((textContent) => make("li", { textContent })));
  const rows = facts.flatMap(([term, value]) => [
    make("dt", { textContent: term }), make("dd", { textContent: value }),
  ]);
  byId("facts").replaceChildren(...rows);
  const explained = Object.entries(MEANINGS).flatMap(([name, text]) => {
    const fact = facts.find(([term]) => term.toLowerCase().includes(name));
    return fact ? [make("dt", { textContent: fact[0] }), make("dd", { textContent: text })] : [];
  });
  byId("meanings").hidden = !explained.length;
  byId("meanings").querySelector("dl").replaceChildren(...explained);
  byId("about").hidden = !facts.length;
}

export function buildDownloads(reader) {
  const section = byId("download");
  byId("to-downloads").addEventListener("click", () => {
    section.open = true;
    section.scrollIntoView({ block: "nearest" });
    section.querySelector("a, button").focus({ preventScroll: true });
  });
  const links = reader.meta.downloads.map(({ kind, name, label, note }) => {
    const href = `download/${encodeURIComponent(kind)}`;
    const told = { download: name ?? "", title: name ?? "", textContent: label, "data-kind": kind };
    const link = make("a", { href, ...told });
    if (!note) return make("li", {}, link);
    link.setAttribute("aria-describedby", `about-${kind}`);
    const about = { className: "quiet", id: `about-${kind}`, textContent: note };
    return make("li", {}, link, make("p", about));
  });
  byId("downloads").append(...links);
  byId("downloads").addEventListener("click", (event) => {
    const kind = event.target.closest("a")?.dataset.kind;
    if (!reader.dirty) return MASKS.has(kind) && reader.tell("taken");
    event.preventDefault();
    problem("Save or discard the correction first: files hold what is saved.");
  });
  byId("picture").addEventListener("click", async () => {
    const pane = reader.panes.find(({ name }) => name === reader.main);
    const href = URL.createObjectURL(await pictureOf(reader, pane));
    // Called like the scan's other files, and by what it shows.
    const place = `${pane.name}-${pane.slice + 1}`;
    make("a", { href, download: `${reader.meta.stem}_${place}_research-use.png` }).click();
    setTimeout(() => URL.revokeObjectURL(href), 10_000);
  });
}

export function buildSlider(reader) {
  const slider = byId("slider");
  slider.addEventListener("input", () => setSlice(reader, reader.main, slider.valueAsNumber));
  const follow = () => {
    const count = sliceCount(reader, reader.main);
    byId("slices").hidden = count < 2;
    slider.max = count - 1;
    slider.value = sliceOf(reader, reader.main);
    const title = planeTitle(reader.main, Boolean(reader.meta.affine));
    byId("slider-label").textContent = title;
    byId("slice-number").textContent = `${sliceOf(reader, reader.main) + 1} / ${count}`;
  };
  slider.addEventListener("focus", () => (reader.active = reader.main));
  reader.on("cursor", follow);
  reader.on("main", follow);
  follow();
}

export function buildReadout(reader) {
  const { meta } = reader;
  const readout = byId("readout");
  const item = (term) => {
    const value = make("b");
    readout.append(make("span", {}, `${term} `, value));
    return value;
  };
  const place = meta.affine ? item("Position") : null;
  const voxel = item("Voxel");
  const value = item("Intensity");
  const label = meta.classes.length ? item("Class") : null;
  const sure = meta.has_confidence && meta.classes.length ? item("Confidence") : null;
  const follow = () => {
    const index = voxelInView(reader);
    const at = flatIndex(reader.shape, index);
    const values = meta.rgb ? [0, 1, 2].map((n) => reader.image[3 * at + n]) : [reader.image[at]];
    const text = values.map((x) => stored(x, meta.dtype));
    const ijk = fileVoxel(meta, index);
    if (place) place.textContent = positionText(position(meta, index));
    voxel.textContent = ijk.join(", ");
    value.textContent = text.join(", ");
    readout.dataset.voxel = ijk.join(",");
    readout.dataset.value = text.join(",");
    if (label && reader.labels) {
      label.textContent = meta.classes[reader.labels[at]]?.name ?? String(reader.labels[at]);
      readout.dataset.class = label.textContent;
    }
    const known = reader.confidence ? percent(reader.confidence[at]) : "…";
    const changed = reader.dirty || reader.corrected; // where it may speak of another class
    if (sure) sure.textContent = changed ? `${known} before the correction` : known;
  };
  for (const kind of ["cursor", "pointer", "labels", "confidence", "correction"]) reader.on(kind, follow);
  follow();
}

const percent = (confidence) => `${Math.round((100 * confidence) / 255)} %`;

/** A float32 in as few digits as tell it from its neighbours: 0.1, not 0.10000000149011612. */
function stored(x, dtype) {
  if (dtype !== "float32" || !Number.isFinite(x)) return String(x);
  for (let digits = 1; digits < 10; digits++) {
    const short = Number(x.toPrecision(digits));
    if (Math.fround(short) === x) return String(short);
  }
  return String(x);
}
