// What the page does beside Gradio's own scripts.

// Whoever reads another scan loses a correction that is not saved: they are asked first. This
// stands before what else listens to a drop, so that a No is heeded by all of it.
for (const kind of ["click", "drop"]) document.addEventListener(kind, ask, { capture: true });

function ask(event) {
  if (!event.target.closest?.("#worklist label, #clear, #scans, #folder, #examples button")) return;
  const reader = document.querySelector("iframe.sa-reader")?.contentDocument;
  if (reader?.documentElement.dataset.dirty !== "true") return;
  if (confirm("The correction of this scan is not saved. Go on without it?")) {
    delete reader.documentElement.dataset.dirty;
    return;
  }
  event.preventDefault();
  event.stopImmediatePropagation();
}

// A dropped folder: Gradio takes files only, so what lies in a folder is handed to it as files.
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
    const files = new DataTransfer();
    for (const entry of entries) await collect(entry, files);
    input.files = files.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  },
  { capture: true },
);

async function collect(entry, files) {
  if (!entry || entry.name.startsWith(".")) return;
  if (entry.isFile) {
    files.items.add(await new Promise((found, failed) => entry.file(found, failed)));
    return;
  }
  const reader = entry.createReader();
  for (;;) {  // it tells of a hundred at a time
    const some = await new Promise((found, failed) => reader.readEntries(found, failed));
    if (!some.length) return;
    for (const child of some) await collect(child, files);
  }
}
