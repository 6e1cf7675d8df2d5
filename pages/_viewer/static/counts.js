// Whole-volume counts at every threshold step, lesion components, and where to jump.
// A voxel is segmented at step t when its byte q >= t, which says exactly: score >= levels[t - 1].

export const STEPS = 256; // step 256 lies above every level: nothing is segmented

/** above[t]: brain voxels with q >= t; hits[t]: those in the lesion; in O(voxels) once, then O(1) a threshold. */
export function cumulate(scores, brain, lesion) {
  const above = new Float64Array(STEPS + 1);
  const hits = new Float64Array(STEPS + 1);
  for (let i = 0; i < scores.length; i++) {
    if (!brain[i]) continue;
    above[scores[i]]++;
    if (lesion && lesion[i]) hits[scores[i]]++;
  }
  for (let t = STEPS - 1; t >= 0; t--) {
    above[t] += above[t + 1];
    hits[t] += hits[t + 1];
  }
  return { above, hits };
}

/** TP, FP, FN and what follows from them. `unreachable` lesion voxels lie outside the scored brain: always missed. */
export function countsAt(cumulated, step, unreachable) {
  const tp = cumulated.hits[step];
  const fp = cumulated.above[step] - tp;
  const lesion = cumulated.hits[0] + unreachable;
  const fn = lesion - tp;
  return {
    tp, fp, fn, lesion,
    dice: lesion > 0 ? (2 * tp) / (tp + fp + lesion) : NaN,
    precision: tp + fp > 0 ? tp / (tp + fp) : NaN,
    recall: lesion > 0 ? tp / lesion : NaN,
  };
}

/** The step whose level is `score`; between two levels, the higher one. */
export function stepOf(levels, score) {
  const slack = Math.abs(score) * 1e-6;
  let low = 0;
  let high = levels.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (levels[middle] < score - slack) low = middle + 1;
    else high = middle;
  }
  return low + 1;
}

/** The step of another map that leaves the same share of the brain above it. */
export function sameShare(above, wanted) {
  let best = 1;
  for (let t = 1; t <= STEPS; t++) {
    if (Math.abs(above[t] - wanted) < Math.abs(above[best] - wanted)) best = t;
  }
  return best;
}

/** 26-connected lesions, largest first: their voxels and the voxel nearest to the centroid. */
export function components(mask, dims) {
  const [X, Y, Z] = dims;
  const seen = new Uint8Array(mask.length);
  const found = [];
  for (let seed = 0; seed < mask.length; seed++) {
    if (!mask[seed] || seen[seed]) continue;
    const voxels = [seed];
    seen[seed] = 1;
    for (let k = 0; k < voxels.length; k++) {
      const [x, y, z] = unravel(voxels[k], dims);
      for (let a = Math.max(0, x - 1); a <= Math.min(X - 1, x + 1); a++)
        for (let b = Math.max(0, y - 1); b <= Math.min(Y - 1, y + 1); b++)
          for (let c = Math.max(0, z - 1); c <= Math.min(Z - 1, z + 1); c++) {
            const i = (a * Y + b) * Z + c;
            if (mask[i] && !seen[i]) {
              seen[i] = 1;
              voxels.push(i);
            }
          }
    }
    found.push({ voxels, centre: central(voxels, dims) });
  }
  return found.sort((a, b) => b.voxels.length - a.voxels.length || a.centre - b.centre);
}

/** The highest byte inside a lesion: it is found at every step up to that. */
export function peak(scores, brain, lesion) {
  let best = 0;
  for (const i of lesion.voxels) if (brain[i] && scores[i] > best) best = scores[i];
  return best;
}

/** Brain voxels outside the lesion, highest score first (equal scores: lowest index first). */
export function falseByScore(scores, brain, lesion) {
  const place = new Int32Array(257);
  const counts = (i) => brain[i] && scores[i] && !(lesion && lesion[i]);
  for (let i = 0; i < scores.length; i++) if (counts(i)) place[255 - scores[i] + 1]++;
  for (let k = 1; k < 257; k++) place[k] += place[k - 1];
  const order = new Int32Array(place[256]);
  for (let i = 0; i < scores.length; i++) if (counts(i)) order[place[255 - scores[i]]++] = i;
  return order;
}

/** The first voxel of `order` at or above `step` and at least `apart` mm from all of `earlier`; -1 when there is none. */
export function nextFalse(order, scores, step, earlier, apart, dims, spacing) {
  const taken = earlier.map((i) => unravel(i, dims));
  for (const i of order) {
    if (scores[i] < step) return -1;
    const at = unravel(i, dims);
    const far = taken.every((p) => Math.hypot(...p.map((v, k) => (v - at[k]) * spacing[k])) >= apart);
    if (far) return i;
  }
  return -1;
}

export function unravel(i, [, Y, Z]) {
  return [Math.floor(i / (Y * Z)), Math.floor(i / Z) % Y, i % Z];
}

function central(voxels, dims) {
  const points = voxels.map((i) => unravel(i, dims));
  const mean = [0, 1, 2].map((k) => points.reduce((sum, p) => sum + p[k], 0) / points.length);
  let best = 0;
  let nearest = Infinity;
  points.forEach((p, n) => {
    const distance = p.reduce((sum, v, k) => sum + (v - mean[k]) ** 2, 0);
    if (distance < nearest - 1e-9) [nearest, best] = [distance, n];
  });
  return voxels[best];
}
