// Planes of the display grid (k, h, w): k grows towards the head, h the back, w the left side.

// axis: what a plane steps through; cols, rows: the axes across and down; up: rows run upwards.
export const PLANES = {
  axial: { axis: 0, cols: 2, rows: 1, up: false },
  coronal: { axis: 1, cols: 2, rows: 0, up: true },
  sagittal: { axis: 2, cols: 1, rows: 0, up: true },
};
const WITHOUT_GEOMETRY = { axial: "Slices", coronal: "Rows", sagittal: "Columns" };

export function planeTitle(name, hasGeometry) {
  return hasGeometry ? name[0].toUpperCase() + name.slice(1) : WITHOUT_GEOMETRY[name];
}

/** The planes worth showing: all three of a volume, the one that is a picture otherwise. */
export function shownPlanes(shape) {
  const isPicture = ([, { cols, rows }]) => shape[cols] > 1 && shape[rows] > 1;
  const pictures = Object.entries(PLANES).filter(isPicture).map(([name]) => name);
  return pictures.length ? pictures : ["axial"];
}

/** How a slice lies in the flat array: voxel (row, col) is at start + row·rowStep + col·colStep. */
export function sliceLayout(plane, shape, slice) {
  const strides = [shape[1] * shape[2], shape[2], 1];
  const rows = shape[plane.rows];
  const last = plane.up ? (rows - 1) * strides[plane.rows] : 0;
  return {
    cols: shape[plane.cols],
    rows,
    start: slice * strides[plane.axis] + last,
    rowStep: plane.up ? -strides[plane.rows] : strides[plane.rows],
    colStep: strides[plane.cols],
  };
}

/** The display index [k, h, w] of a slice's (row, col), which may lie outside the grid. */
export function indexAt(plane, shape, slice, row, col) {
  const index = [0, 0, 0];
  index[plane.axis] = slice;
  index[plane.cols] = col;
  index[plane.rows] = plane.up ? shape[plane.rows] - 1 - row : row;
  return index;
}

/** The (row, col) of a display index in a plane. */
export function placeOf(plane, shape, index) {
  const along = index[plane.rows];
  return [plane.up ? shape[plane.rows] - 1 - along : along, index[plane.cols]];
}

export const flatIndex = (shape, [k, h, w]) => (k * shape[1] + h) * shape[2] + w;

const apply = (matrix, [a, b, c]) =>
  [0, 1, 2].map((n) => matrix[n][0] * a + matrix[n][1] * b + matrix[n][2] * c + matrix[n][3]);

/** The file's own voxel (i, j, k) of a display index. */
export const fileVoxel = (meta, index) => apply(meta.to_voxel, index).map(Math.round);

/** Millimetres to the right, the front and the head (RAS+) of a display index, or null. */
export const position = (meta, index) =>
  meta.affine && apply(meta.affine, apply(meta.to_voxel, index));

const SIDES = [
  ["L", "R"],
  ["P", "A"],
  ["I", "S"],
];

/** "R 12.3  A 4.0  S 31.0 mm": how far to which side of the scan's origin. */
export function positionText(mm) {
  const parts = mm.map((x, n) => `${SIDES[n][x < 0 ? 0 : 1]} ${Math.abs(x).toFixed(1)}`);
  return `${parts.join("  ")} mm`;
}

/** Letters at a pane's edges {left, right, top, bottom}, or null without geometry. */
export function edgeLetters(meta, plane) {
  if (!meta.affine) return null;
  const zero = position(meta, [0, 0, 0]);
  const towards = (axis, sign) => {
    const step = [0, 0, 0];
    step[axis] = sign;
    const moved = position(meta, step).map((x, n) => x - zero[n]);
    const most = [0, 1, 2].reduce((a, b) => (Math.abs(moved[b]) > Math.abs(moved[a]) ? b : a));
    return SIDES[most][moved[most] < 0 ? 0 : 1];
  };
  const down = plane.up ? -1 : 1;
  return {
    left: towards(plane.cols, -1),
    right: towards(plane.cols, 1),
    top: towards(plane.rows, -down),
    bottom: towards(plane.rows, down),
  };
}
