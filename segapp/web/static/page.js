// What the page does beside Gradio's own scripts.

// Whoever reads another scan loses a correction that is not saved, and whoever clears the list one
// that is only saved here: they are asked first. This stands before what else listens, so that a No
// is heeded by all of it. Files are asked about when they are there, chosen or dropped.
const LEAVING = "#worklist label, #clear, #examples button";
const ZONES = "#scans, #folder, input[webkitdirectory]";
let agreed = 0; // when somebody said Yes: one choice is told by several events

document.addEventListener("click", (event) => askAt(event, LEAVING), { capture: true });
document.addEventListener("drop", (event) => askAt(event, ZONES), { capture: true });
document.addEventListener(
  "change",
  (event) => {
    if (!askAt(event, ZONES)) event.target.value = "";
  },
  { capture: true },
);

/** Whether what begins with an event may go on. */
function askAt(event, places) {
  const place = event.target.closest?.(places);
  const question = place && Date.now() - agreed > 1000 && questionOf(place);
  if (!question) return true;
  if (confirm(question)) {
    agreed = Date.now();
    if (place.id === "clear") untaken.clear();
    return true;
  }
  event.preventDefault();
  event.stopImmediatePropagation();
  return false;
}

function questionOf(place) {
  const reader = document.querySelector("iframe.sa-reader")?.contentDocument;
  const dirty = reader?.documentElement.dataset.dirty === "true";
  if (dirty) return "The correction of this scan is not saved. Go on without it?";
  if (place.id !== "clear" || !untaken.size) return "";
  return "A saved correction was neither downloaded nor kept; it is lost with the list. Clear it?";
}

// Corrections that are saved on the server, where they end with this page, and nowhere else.
const untaken = new Set();

document.addEventListener("segapp-correction", ({ detail }) => {
  untaken[detail.untaken ? "add" : "delete"](detail.scan);
  document.querySelector("#relist")?.click(); // the list says which scans are corrected
});
window.addEventListener("beforeunload", (event) => {
  if (!untaken.size) return;
  event.preventDefault();
  event.returnValue = true; // what older browsers go by
});

// Gradio takes files only, and their names alone: what lies in a dropped or chosen folder is handed
// to it as files whose names hold their folders, by this sign in place of a slash.
const FOLDER_SIGN = "\u2215";
const LONGEST = 190; // bytes of a name

document.addEventListener(
  "drop",
  async (event) => {
    const zone = event.target.closest?.("#scans, #batch-scans");
    const entries = [...(event.dataTransfer?.items ?? [])].map((item) => item.webkitGetAsEntry?.());
    if (!zone || !entries.some((entry) => entry?.isDirectory)) return;
    event.preventDefault();
    event.stopPropagation();
    const input = zone.querySelector("input[type=file]");
    if (!input) return;
    const files = [];
    for (const entry of entries) await collect(entry, [], files);
    hand(files, input);
  },
  { capture: true },
);

document.addEventListener(
  "change",
  (event) => {
    const files = [...(event.target.files ?? [])];
    if (!files.some((file) => file.webkitRelativePath)) return;
    event.stopImmediatePropagation();
    const named = files.map((file) => withFolders(file, file.webkitRelativePath.split("/")));
    hand(named.filter(Boolean), event.target);
  },
  { capture: true },
);

function hand(files, input) {
  const transfer = new DataTransfer();
  for (const file of files) transfer.items.add(file);
  input.files = transfer.files;
  agreed = Date.now(); // it was asked about when it was dropped or chosen
  input.dispatchEvent(new Event("change", { bubbles: true }));
}

async function collect(entry, folders, files) {
  if (!entry || entry.name.startsWith(".")) return;
  const place = [...folders, entry.name];
  if (entry.isFile) {
    files.push(withFolders(await new Promise((found, failed) => entry.file(found, failed)), place));
    return;
  }
  const reader = entry.createReader();
  for (;;) {  // it tells of a hundred at a time
    const some = await new Promise((found, failed) => reader.readEntries(found, failed));
    if (!some.length) return;
    for (const child of some) await collect(child, place, files);
  }
}

/** The file under a name that holds its folders; null for a hidden one. Where that is too long the
 * inner folders go first. */
function withFolders(file, place) {
  if (place.some((part) => part.startsWith("."))) return null;
  const parts = [...place];
  const bytes = () => new TextEncoder().encode(parts.join(FOLDER_SIGN)).length;
  while (parts.length > 1 && bytes() > LONGEST) parts.splice(parts.length > 2 ? 1 : 0, 1);
  return new File([file], parts.join(FOLDER_SIGN), { type: file.type });
}
