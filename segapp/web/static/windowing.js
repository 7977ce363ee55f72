// Which intensities are shown from black to white.

import { byId, make } from "./dom.js";
import { setWindow } from "./state.js";

// Width and centre in Hounsfield units; the key that chooses one is its place in the list.
const PRESETS = [
  { name: "Automatic" },
  { name: "CT: soft tissue", width: 400, centre: 40 },
  { name: "CT: lung", width: 1500, centre: -600 },
  { name: "CT: liver", width: 150, centre: 90 },
  { name: "CT: bone", width: 2500, centre: 480 },
  { name: "CT: brain", width: 80, centre: 40 },
];

function limits(reader, n) {
  const { width, centre } = PRESETS[n];
  return width ? [centre - width / 2, centre + width / 2] : reader.meta.window;
}

export const choosePreset = (reader, n) => setWindow(reader, ...limits(reader, n));

export function buildWindowing(reader) {
  const [preset, width, centre] = ["preset", "width", "centre"].map(byId);
  const names = PRESETS.map(({ name }, n) => make("option", { value: n, textContent: name }));
  preset.append(...names, make("option", { value: "own", textContent: "Own", hidden: true }));
  preset.addEventListener("change", () => choosePreset(reader, Number(preset.value)));

  const typed = () => {
    const [w, c] = [width.valueAsNumber, centre.valueAsNumber];
    setWindow(reader, c - w / 2, c + w / 2);
    showNumbers(); // also where these can't be: the fields hold what is used
  };
  width.addEventListener("change", typed);
  centre.addEventListener("change", typed);

  const rounded = (x) => Number(x.toPrecision(6));
  const showNumbers = () => {
    const [low, high] = reader.window;
    width.value = rounded(high - low);
    centre.value = rounded((low + high) / 2);
    const same = PRESETS.findIndex((_, n) => {
      const [a, b] = limits(reader, n);
      return Math.abs(a - low) + Math.abs(b - high) < 1e-9;
    });
    preset.value = same < 0 ? "own" : String(same);
  };
  reader.on("window", showNumbers);
  if (reader.meta.ct) choosePreset(reader, 1);
  showNumbers();
}
