// The result beside a mask of the reader's own.

import { getArray, send } from "./data.js";
import { byId, make, problem } from "./dom.js";
import { COMPARED, comparedColour } from "./slices.js";
import { setOverlay } from "./state.js";

export function buildCompare(reader) {
  const [file, toggle, choice] = ["reference", "comparing", "compare-class"].map(byId);
  choice.append(make("option", { value: "", textContent: "all foreground" }));
  reader.meta.classes.slice(1).forEach(({ name }, n) => {
    choice.append(make("option", { value: n + 1, textContent: name }));
  });
  let mask = null;
  file.addEventListener("change", async () => {
    const [chosen] = file.files;
    if (!chosen) return;
    if (await load(reader, chosen)) {
      mask = chosen;
      setOverlay(reader, { comparing: true, overlay: true });
    }
    file.value = ""; // so that the same file can be chosen again
  });
  reader.on("saved", () => mask && load(reader, mask)); // its Dice is another now
  toggle.addEventListener("change", () => setOverlay(reader, { comparing: toggle.checked }));
  choice.addEventListener("change", () => {
    setOverlay(reader, { compareLabel: choice.value ? Number(choice.value) : null });
  });
  reader.on("overlay", () => {
    toggle.checked = reader.comparing;
    showLegend(reader);
  });
  showLegend(reader);
}

/** Whether the mask fits and is in place. */
async function load(reader, file) {
  problem("");
  byId("compare-status").textContent = "Reading the mask…";
  try {
    const name = encodeURIComponent(file.name);
    const answer = await send(
      `reference?name=${name}`, "POST", file, "application/octet-stream",
    );
    reader.reference = await getArray("reference.bin", "uint8", reader.labels.length);
    showAnswer(answer);
    reader.tell("labels");
    return true;
  } catch (error) {
    problem(`The mask was not compared: ${error.message}`);
    return false;
  } finally {
    byId("compare-status").textContent = "";
  }
}

function showAnswer({ name, dice, warnings }) {
  byId("comparison").hidden = false;
  byId("reference-name").textContent = `Mask: ${name}`;
  byId("reference-warnings").replaceChildren(
    ...(warnings ?? []).map((textContent) => make("li", { textContent })),
  );
  const rows = Object.entries(dice).map(([textContent, value]) =>
    make(
      "tr",
      {},
      make("th", { scope: "row", textContent }),
      make("td", { textContent: value === null ? "in neither" : value.toFixed(3) }),
    ),
  );
  byId("dice").replaceChildren(...rows);
}

function showLegend(reader) {
  const kinds = COMPARED.map((kind, n) => ({ ...kind, n }));
  const used = kinds.filter(({ n }) => n < 3 || reader.compareLabel === null);
  byId("compare-legend").replaceChildren(
    ...used.map(({ name, n }) => make("li", {}, patternKey(n), name)),
  );
}

/** A sample of the pattern, as large as a few voxels. */
function patternKey(kind) {
  const canvas = make("canvas", { width: 24, height: 16, "aria-hidden": "true" });
  const context = canvas.getContext("2d");
  for (let row = 0; row < 4; row++) {
    for (let col = 0; col < 6; col++) {
      const value = comparedColour(kind, row, col);
      const [r, g, b, a] = [value & 255, (value >> 8) & 255, (value >> 16) & 255, value >>> 24];
      context.fillStyle = `rgb(${r} ${g} ${b} / ${a / 255})`;
      context.fillRect(4 * col, 4 * row, 4, 4);
    }
  }
  return canvas;
}
