// Fills a slice's pixels (Uint32, 0xAABBGGRR in memory order) and finds its outlines.

export const packed = (hex, alpha = 255) => {
  const value = parseInt(hex.slice(1), 16);
  const [red, green, blue] = [value >> 16, (value >> 8) & 255, value & 255];
  return ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;
};

/** Grey levels: low and below black, high and above white, NaN black. */
export function fillGrey(pixels, voxels, layout, low, high) {
  const { cols, rows, start, rowStep, colStep } = layout;
  const scale = 255.999 / Math.max(high - low, 1e-12);
  let n = 0;
  for (let row = 0; row < rows; row++) {
    for (let col = 0, at = start + row * rowStep; col < cols; col++, at += colStep) {
      const level = (voxels[at] - low) * scale;
      pixels[n++] = 0xff000000 | ((level < 0 ? 0 : level > 255 ? 255 : level | 0) * 0x10101);
    }
  }
}

export function fillRgb(pixels, voxels, layout, low, high) {
  const { cols, rows, start, rowStep, colStep } = layout;
  const scale = 255.999 / Math.max(high - low, 1e-12);
  const level = (at) => Math.min(255, Math.max(0, (voxels[at] - low) * scale)) | 0;
  let n = 0;
  for (let row = 0; row < rows; row++) {
    for (let col = 0, at = 3 * (start + row * rowStep); col < cols; col++, at += 3 * colStep) {
      pixels[n++] = 0xff000000 | (level(at + 2) << 16) | (level(at + 1) << 8) | level(at);
    }
  }
}

/** Any uint8 array through a table of 256 colours: labels, or confidence. */
export function fillTable(pixels, values, layout, table) {
  const { cols, rows, start, rowStep, colStep } = layout;
  let n = 0;
  for (let row = 0; row < rows; row++) {
    for (let col = 0, at = start + row * rowStep; col < cols; col++, at += colStep) {
      pixels[n++] = table[values[at]];
    }
  }
}

// Colours that people with any colour vision tell apart (Okabe and Ito), with a pattern each.
export const COMPARED = [
  { name: "agreement", colour: "#009e73", pattern: "faint" }, // the differences stand out
  { name: "missed: only in the mask", colour: "#e66100", pattern: "stripes" },
  { name: "extra: only in this result", colour: "#56b4e9", pattern: "dots" },
  { name: "another class", colour: "#f0e442", pattern: "plain" },
];
const inPattern = {
  plain: () => true,
  faint: () => false,
  stripes: (row, col) => (row + col) % 4 < 2,
  dots: (row, col) => ((row | col) & 1) === 0,
};
const FAINT = 0.45;

/** The colour of a compared voxel: patterns are drawn as full and faint voxels. */
export function comparedColour(kind, row, col) {
  const { colour, pattern } = COMPARED[kind];
  return packed(colour, inPattern[pattern](row, col) ? 255 : Math.round(255 * FAINT));
}

/** The kind of difference (an index of COMPARED) or -1; `label` null means all foreground. */
export function compareVoxel(result, reference, label) {
  if (reference === 255) return -1;
  if (label !== null) {
    if (result === label) return reference === label ? 0 : 2;
    return reference === label ? 1 : -1;
  }
  if (result === reference) return result ? 0 : -1;
  if (!result) return 1;
  return reference ? 3 : 2;
}

export function fillCompared(pixels, labels, reference, layout, label) {
  const { cols, rows, start, rowStep, colStep } = layout;
  let n = 0;
  for (let row = 0; row < rows; row++) {
    for (let col = 0, at = start + row * rowStep; col < cols; col++, at += colStep) {
      const kind = compareVoxel(labels[at], reference[at], label);
      pixels[n++] = kind < 0 ? 0 : comparedColour(kind, row, col);
    }
  }
}

/**
 * Outlines along the voxels' borders: a map from label to Path2D in (col, row) units. Borders that
 * go on between the same two labels become one line, so that a path stays short.
 */
export function outlines(labels, layout) {
  const { cols, rows, start, rowStep, colStep } = layout;
  const paths = new Map();
  const line = (label, x0, y0, x1, y1) => {
    if (!label) return;
    let path = paths.get(label);
    if (!path) paths.set(label, (path = new Path2D()));
    path.moveTo(x0, y0);
    path.lineTo(x1, y1);
  };
  // `across` borders lie between a row and the one above it; the others left of a column.
  const sweep = (lines, length, lineStep, step, across) => {
    for (let n = 0; n <= lines; n++) {
      let [before, after, from] = [0, 0, 0];
      for (let m = 0; m <= length; m++) {
        const at = start + n * lineStep + m * step;
        const a = m < length && n > 0 ? labels[at - lineStep] : 0;
        const b = m < length && n < lines ? labels[at] : 0;
        if (a === before && b === after) continue;
        if (before !== after) {
          const ends = across ? [from, n, m, n] : [n, from, n, m];
          line(before, ...ends);
          line(after, ...ends);
        }
        [before, after, from] = [a, b, m];
      }
    }
  };
  sweep(rows, cols, rowStep, colStep, true);
  sweep(cols, rows, colStep, rowStep, false);
  return paths;
}

// Viridis at eight places: grows evenly brighter, also for the colour-blind.
const VIRIDIS = [
  0x440154, 0x46327e, 0x365c8d, 0x277f8e, 0x1fa187, 0x4ac16d, 0xa0da39, 0xfde725,
];

/** Colour of a share 0…1 on the scale. */
export function scaleColour(share) {
  const place = Math.min(1, Math.max(0, share)) * (VIRIDIS.length - 1);
  const n = Math.min(VIRIDIS.length - 2, Math.floor(place));
  const mix = (shift) => {
    const [a, b] = [VIRIDIS[n], VIRIDIS[n + 1]].map((colour) => (colour >> shift) & 255);
    return Math.round(a + (b - a) * (place - n));
  };
  return `#${[16, 8, 0].map((s) => mix(s).toString(16).padStart(2, "0")).join("")}`;
}

/** Table from confidence (0…255) to colour: the scale ends at half unsure; sure is transparent. */
export function unsureTable() {
  return Uint32Array.from({ length: 256 }, (_, confidence) => {
    const unsure = 1 - confidence / 255;
    const alpha = Math.min(1, unsure / 0.08);
    return packed(scaleColour(unsure / 0.5), Math.round(255 * alpha));
  });
}
