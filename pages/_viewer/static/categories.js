// Error categories: one byte a voxel says which kind of error it is; a legend says how much of each there is.

import { categoryColour } from "./colours.js";
import { unravel } from "./counts.js";

const GROUPS = [["fp", "False positives"], ["fn", "Missed lesion"], ["tp", "Hits"]];

/** Voxels of every code. */
export function tally(labels) {
  const counts = new Float64Array(256);
  for (let i = 0; i < labels.length; i++) counts[labels[i]]++;
  return counts;
}

/** The slice across `axis` that holds most voxels of `code`, and its voxel nearest to their centre; null without any. */
export function largestSlice(labels, code, axis, dims) {
  const perSlice = new Float64Array(dims[axis]);
  const places = [];
  for (let i = 0; i < labels.length; i++) {
    if (labels[i] !== code) continue;
    const at = unravel(i, dims);
    perSlice[at[axis]]++;
    places.push([i, at]);
  }
  if (!places.length) return null;
  const slice = perSlice.indexOf(Math.max(...perSlice));
  const there = places.filter(([, at]) => at[axis] === slice);
  const mean = [0, 1, 2].map((k) => there.reduce((sum, [, at]) => sum + at[k], 0) / there.length);
  const distance = ([, at]) => Math.hypot(...at.map((v, k) => v - mean[k]));
  const nearest = there.reduce((a, b) => (distance(b) < distance(a) - 1e-9 ? b : a));
  return { index: nearest[0], slice, voxels: there.length };
}

/** RGBA words by code; with `only`, every other category is left out. */
export function categoryWords(list, only, opacity) {
  const words = new Uint32Array(256);
  for (const { code, id, kind } of list) {
    if (only && id !== only) continue;
    const [r, g, b] = categoryColour(kind, code);
    words[code] = ((Math.round(255 * opacity) << 24) | (b << 16) | (g << 8) | r) >>> 0;
  }
  return words;
}

/** Fill `box` with the categories that are present, in groups, as buttons; `only` is pressed. */
export function fillLegend(box, { list, counts, only, millilitres, pick }) {
  const groups = GROUPS.map(([kind, title]) => [title, list.filter((c) => c.kind === kind && counts[c.code])]);
  const held = box.getRootNode().activeElement?.dataset.testid;
  box.replaceChildren(
    ...groups.filter(([, found]) => found.length).map(([title, found]) => {
      const group = document.createElement("div");
      group.setAttribute("role", "group");
      group.setAttribute("aria-label", title);
      const head = document.createElement("h4");
      const all = found.reduce((sum, c) => sum + counts[c.code], 0);
      head.textContent = `${title}, ${millilitres(all)} mL`;
      const ordered = [...found].sort((a, b) => counts[b.code] - counts[a.code]);
      group.append(head, ...ordered.map((c) => entry(c, counts[c.code], c.id === only, millilitres, pick)));
      return group;
    }),
  );
  [...box.querySelectorAll("button")].find((button) => button.dataset.testid === held)?.focus();
}

function entry(category, voxels, pressed, millilitres, pick) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "category";
  button.dataset.testid = `category-${category.id}`;
  button.setAttribute("aria-pressed", String(pressed));
  button.title = [category.definition, category.advice].filter(Boolean).join(" ");
  const swatch = document.createElement("i");
  swatch.className = "swatch";
  swatch.setAttribute("aria-hidden", "true");
  swatch.style.background = `rgb(${categoryColour(category.kind, category.code).join(" ")})`;
  const [name, amount] = [document.createElement("span"), document.createElement("span")];
  name.textContent = category.title;
  amount.className = "amount";
  amount.textContent = `${millilitres(voxels)} mL`;
  button.append(swatch, name, amount);
  button.onclick = () => pick(category);
  return button;
}
