// Planes: where a voxel lies on the screen, and how one slice is drawn.

import { LESION, SEGMENTATION } from "./colours.js";

export const PLANES = { axial: [0, 1, 2], coronal: [0, 2, 1], sagittal: [1, 2, 0] }; // world axes: across, up, normal
const LETTERS = [["L", "R"], ["P", "A"], ["I", "S"]];
const BACKGROUND = "#07080b";

/** Screen layout of a plane for a grid with `affine` (RAS+ mm): the part inside `bounds`; left and right follow the convention. */
export function layout(name, dims, spacing, affine, convention, bounds) {
  const axes = worldAxes(affine);
  const [across, up, normal] = PLANES[name];
  const h = axes[across];
  const v = axes[up];
  const rightIsPositive = across === 0 ? convention === "neurological" : false; // the sagittal plane looks to the left
  const strides = [dims[1] * dims[2], dims[2], 1];
  return {
    name,
    h: h.axis, v: v.axis, n: axes[normal].axis, normalSign: axes[normal].sign,
    flipH: rightIsPositive !== h.sign > 0,
    flipV: v.sign > 0,
    firstH: bounds.low[h.axis], firstV: bounds.low[v.axis],
    cols: bounds.size[h.axis], rows: bounds.size[v.axis], slices: dims[axes[normal].axis],
    width: bounds.size[h.axis] * spacing[h.axis], height: bounds.size[v.axis] * spacing[v.axis],
    stepH: strides[h.axis], stepV: strides[v.axis], stepN: strides[axes[normal].axis],
    letters: {
      left: LETTERS[across][rightIsPositive ? 0 : 1], right: LETTERS[across][rightIsPositive ? 1 : 0],
      top: LETTERS[up][1], bottom: LETTERS[up][0],
    },
  };
}

/** The box of everything that is set in any of the masks, with a margin; the whole grid when nothing is. */
export function boundsOf(masks, dims, margin = 3) {
  const low = [...dims];
  const high = [-1, -1, -1];
  for (let x = 0, i = 0; x < dims[0]; x++)
    for (let y = 0; y < dims[1]; y++)
      for (let z = 0; z < dims[2]; z++, i++) {
        if (!masks.some((mask) => mask[i])) continue;
        [x, y, z].forEach((v, k) => {
          if (v < low[k]) low[k] = v;
          if (v > high[k]) high[k] = v;
        });
      }
  if (high[0] < 0) return { low: [0, 0, 0], size: [...dims] };
  const from = low.map((v) => Math.max(0, v - margin));
  return { low: from, size: high.map((v, k) => Math.min(dims[k], v + margin + 1) - from[k]) };
}

/** Voxel index to RAS+ millimetres. */
export function toWorld(affine, voxel) {
  return [0, 1, 2].map((r) => affine[r][3] + voxel.reduce((sum, v, k) => sum + affine[r][k] * v, 0));
}

/** The box in CSS pixels that the slice fills inside a canvas. */
export function fit(plane, width, height) {
  const scale = Math.min(width / plane.width, height / plane.height) * 0.97;
  const [w, h] = [plane.width * scale, plane.height * scale];
  return { left: (width - w) / 2, top: (height - h) / 2, width: w, height: h };
}

/** The voxel under a point of the canvas, on the slice of `voxel`; clamped to what is shown. */
export function pick(plane, box, x, y, voxel) {
  const col = clamp(Math.floor(((x - box.left) / box.width) * plane.cols), plane.cols);
  const row = clamp(Math.floor(((y - box.top) / box.height) * plane.rows), plane.rows);
  const picked = [...voxel];
  picked[plane.h] = plane.firstH + (plane.flipH ? plane.cols - 1 - col : col);
  picked[plane.v] = plane.firstV + (plane.flipV ? plane.rows - 1 - row : row);
  return picked;
}

/** The middle of a voxel on the canvas, in CSS pixels on the half, where a thin line is sharp. */
export function place(plane, box, voxel) {
  const [h, v] = [voxel[plane.h] - plane.firstH, voxel[plane.v] - plane.firstV];
  const col = plane.flipH ? plane.cols - 1 - h : h;
  const row = plane.flipV ? plane.rows - 1 - v : v;
  return {
    x: Math.round(box.left + ((col + 0.5) * box.width) / plane.cols) + 0.5,
    y: Math.round(box.top + ((row + 0.5) * box.height) / plane.rows) + 0.5,
  };
}

/** Draw one slice. `scene`: image, scores, lesion, brain, labels (bytes), greys, words, outcome, kinds, step, show, voxel, caption. */
export function draw(canvas, plane, scene) {
  const ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth;
  const height = canvas.clientHeight;
  if (!width || !height) return;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.fillStyle = BACKGROUND;
  context.fillRect(0, 0, width, height);
  const box = fit(plane, width, height);
  const cells = slice(plane, scene.voxel);
  if (scene.image) paint(context, plane, box, true, canvas, (words) => greyWords(words, cells, scene));
  if (scene.labels) {
    paint(context, plane, box, false, canvas, (words) => cells.forEach((i, k) => (words[k] = scene.kinds[scene.labels[i]])));
  } else if (scene.scores && (scene.show.overlay || scene.show.outcome)) {
    paint(context, plane, box, false, canvas, (words) => scoreWords(words, cells, scene));
  }
  if (scene.scores && scene.show.segmentation && !scene.labels) {
    outline(context, plane, box, cells.map((i) => (scene.brain[i] && scene.scores[i] >= scene.step ? 1 : 0)), SEGMENTATION);
  }
  if (scene.lesion && scene.show.lesion) outline(context, plane, box, cells.map((i) => scene.lesion[i]), LESION);
  crosshair(context, plane, box, scene.voxel);
  annotate(context, plane, width, height, scene.caption);
}

function slice(plane, voxel) {
  const { cols, rows, flipH, flipV, stepH, stepV, firstH, firstV } = plane;
  const cells = new Int32Array(cols * rows);
  const [h0, v0] = [firstH + (flipH ? cols - 1 : 0), firstV + (flipV ? rows - 1 : 0)];
  const start = voxel[plane.n] * plane.stepN + h0 * stepH + v0 * stepV;
  const [dh, dv] = [flipH ? -stepH : stepH, flipV ? -stepV : stepV];
  for (let r = 0, k = 0; r < rows; r++) for (let c = 0; c < cols; c++) cells[k++] = start + r * dv + c * dh;
  return cells;
}

function greyWords(words, cells, { image, greys }) {
  for (let k = 0; k < cells.length; k++) words[k] = greys[image[cells[k]]];
}

function scoreWords(words, cells, { scores, brain, lesion, words: colours, outcome, step, show }) {
  for (let k = 0; k < cells.length; k++) {
    const i = cells[k];
    const hit = brain[i] && scores[i] >= step;
    if (!show.outcome) words[k] = brain[i] ? colours[scores[i]] : 0;
    else if (lesion && lesion[i]) words[k] = hit ? outcome.tp : outcome.fn;
    else words[k] = hit ? outcome.fp : 0;
  }
}

function paint(context, plane, box, smooth, canvas, fill) {
  const scratch = (canvas.scratch ??= document.createElement("canvas"));
  if (scratch.width !== plane.cols || scratch.height !== plane.rows) {
    scratch.width = plane.cols;
    scratch.height = plane.rows;
  }
  const inner = scratch.getContext("2d", { willReadFrequently: true });
  const pixels = inner.createImageData(plane.cols, plane.rows);
  fill(new Uint32Array(pixels.data.buffer));
  inner.putImageData(pixels, 0, 0);
  context.imageSmoothingEnabled = smooth;
  context.imageSmoothingQuality = "high";
  context.drawImage(scratch, box.left, box.top, box.width, box.height);
}

function outline(context, { cols, rows }, box, mask, colour) {
  const [w, h] = [box.width / cols, box.height / rows];
  const path = new Path2D();
  const edge = (x0, y0, x1, y1) => {
    path.moveTo(box.left + x0 * w, box.top + y0 * h);
    path.lineTo(box.left + x1 * w, box.top + y1 * h);
  };
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < cols; c++) {
      const k = r * cols + c;
      if (!mask[k]) continue;
      if (r === 0 || !mask[k - cols]) edge(c, r, c + 1, r);
      if (r === rows - 1 || !mask[k + cols]) edge(c, r + 1, c + 1, r + 1);
      if (c === 0 || !mask[k - 1]) edge(c, r, c, r + 1);
      if (c === cols - 1 || !mask[k + 1]) edge(c + 1, r, c + 1, r + 1);
    }
  }
  context.lineCap = "square";
  context.lineWidth = 3;
  context.strokeStyle = "rgb(0 0 0 / 0.55)";
  context.stroke(path);
  context.lineWidth = 1.5;
  context.strokeStyle = colour;
  context.stroke(path);
}

function crosshair(context, plane, box, voxel) {
  const { x, y } = place(plane, box, voxel);
  const gap = 9;
  context.beginPath();
  for (const [x0, y0, x1, y1] of [
    [box.left, y, x - gap, y], [x + gap, y, box.left + box.width, y],
    [x, box.top, x, y - gap], [x, y + gap, x, box.top + box.height],
  ]) {
    context.moveTo(x0, y0);
    context.lineTo(x1, y1);
  }
  context.lineWidth = 1;
  context.strokeStyle = "rgb(255 255 255 / 0.42)";
  context.stroke();
}

function annotate(context, { letters }, width, height, caption) {
  context.fillStyle = "#e6e9ef";
  context.font = "600 13px system-ui, sans-serif";
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillText(letters.left, 14, height / 2);
  context.fillText(letters.right, width - 14, height / 2);
  context.fillText(letters.top, width / 2, 14);
  context.fillText(letters.bottom, width / 2, height - 14);
  context.font = "500 12px system-ui, sans-serif";
  context.fillStyle = "#aeb6c4";
  context.textAlign = "left";
  context.fillText(caption, 12, 15);
}

/** For each world axis the voxel axis that runs along it, and in which sense. */
function worldAxes(affine) {
  const order = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
  const weight = (p) => p.reduce((sum, axis, w) => sum + Math.abs(affine[w][axis]) / column(affine, axis), 0);
  const best = order.reduce((a, b) => (weight(b) > weight(a) + 1e-9 ? b : a));
  return best.map((axis, w) => ({ axis, sign: Math.sign(affine[w][axis]) || 1 }));
}

function column(affine, axis) {
  return Math.hypot(affine[0][axis], affine[1][axis], affine[2][axis]) || 1;
}

function clamp(value, size) {
  return Math.min(size - 1, Math.max(0, value));
}
