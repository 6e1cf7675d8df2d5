// The slice viewer: linked planes of one map, or one plane of several maps, with a live threshold.
// Everything that follows a drag happens here; Python hears of the view 250 ms after it comes to rest.

import { categoryWords, fillLegend, largestSlice, tally } from "./categories.js";
import { OUTCOME, gradient, outcomeWords, overlayWords } from "./colours.js";
import {
  STEPS, components, countsAt, cumulate, falseByScore, nextFalse, peak, sameShare, stepOf, unravel,
} from "./counts.js";
import { KEYS, build, card, fillList, pane } from "./panel.js";
import { PLANES, boundsOf, draw, fit, layout, pick, place, toWorld } from "./planes.js";
import { volume } from "./volumes.js";

const APART_MM = 10; // two false positives closer than this count as one jump
const REST_MS = 250;
const TALLEST = 640;
const SHARE_OF_WINDOW = 0.62; // so that the threshold stays in sight below the planes
const SHOWN = ["overlay", "lesion", "segmentation", "outcome"];
const DEFAULTS = {
  x: null, y: null, z: null, threshold: null, opacity: 0.85, window: [0, 1], convention: "radiological", plane: "axial",
  show: { overlay: true, lesion: true, segmentation: true, outcome: false }, categories: false, category: null,
};
const instances = new WeakMap();

export default function mount({ parentElement: root, data, setStateValue }) {
  let viewer = instances.get(root);
  if (!viewer) {
    viewer = create(root);
    instances.set(root, viewer);
  }
  viewer.send = (view) => setStateValue("view", view);
  viewer.apply(data);
  return () => {
    viewer.dispose();
    instances.delete(root);
  };
}

function create(root) {
  const parts = build(root);
  const view = structuredClone(DEFAULTS);
  const sent = []; // what Python may still echo while the user is already further
  let given = {}; // the state that Python gave last, field by field
  let data = null;
  let loaded = null; // { image, brain, lesion, lesions, bounds, dims, unreachable, maps: [{ scores, above, hits, peaks, order }], layers, labels }
  let panes = [];
  let cards = [];
  let pending = 0;
  let timer = 0;
  let told = "";
  let round = 0;
  let visited = { lesion: -1, missed: -1, falses: [] };
  let jump = ""; // where, at which step and on which map the message about a jump holds
  let sought = false; // a link names a category, but no place: stand there once it is known
  let drawn = ""; // the legend that is shown
  const self = { send: () => {}, apply, dispose };

  // ---- data and state from Python -------------------------------------------------------------------------------

  function apply(next) {
    if (!next || !Array.isArray(next.maps) || !next.maps.length) return notice("There is no score map to show yet.");
    const before = data;
    data = next;
    const moved = !before || before.subject_id !== next.subject_id;
    const placed = ["x", "y", "z"].every((key) => Number.isFinite(next.state?.[key]));
    if (moved && before && !placed) [view.x, view.y, view.z] = [null, null, null]; // a new subject opens at its lesion
    takeState(next.state ?? {});
    if (moved) sought = !placed && Boolean(view.categories && view.category);
    const sources = (d) => JSON.stringify([d.subject_id, d.image_url, d.brain_url, d.lesion_url, d.maps, d.layers, d.affine]);
    if (before && loaded && sources(before) === sources(next)) return repaint();
    load(++round, moved);
  }

  function takeState(state) {
    const asked = Object.keys(DEFAULTS).filter((key) => state[key] !== undefined && state[key] !== null);
    const echo = sent.findLastIndex((old) => asked.every((key) => alike(old[key], state[key])));
    sent.splice(0, echo + 1); // answered; the same words later are a wish, not an echo
    const before = given;
    given = Object.fromEntries(asked.map((key) => [key, JSON.stringify(state[key])]));
    if (echo >= 0) return;
    told = "";
    for (const key of asked.filter((k) => given[k] !== before[k])) {
      const value = state[key];
      view[key] = key === "show" ? { ...view.show, ...value } : structuredClone(value);
    }
  }

  async function load(turn, moved) {
    const size = data.dims[0] * data.dims[1] * data.dims[2];
    const wanted = data;
    if (!loaded) notice("Loading the volumes …");
    try {
      const [image, brain, lesion, ...scores] = await Promise.all([
        volume(wanted.image_url, size, "scan"),
        volume(wanted.brain_url, size, "brain mask"),
        wanted.lesion_url ? volume(wanted.lesion_url, size, "lesion mask") : null,
        ...wanted.maps.map((map) => volume(map.url, size, `score map ${map.label}`)),
      ]);
      if (turn !== round) return;
      const same = loaded && loaded.lesion === lesion && String(loaded.dims) === String(wanted.dims);
      const lesions = same ? loaded.lesions : lesion ? components(lesion, wanted.dims) : [];
      const known = loaded?.brain === brain && same ? loaded : null;
      const maps = scores.map((q) => known?.maps.find((m) => m.scores === q) ?? analyse(q, brain, lesion, lesions));
      loaded = { image, brain, lesion, lesions, maps, layers: new Map(), labels: new Map(), dims: wanted.dims };
      loaded.bounds = known?.bounds ?? boundsOf(lesion ? [brain, lesion] : [brain], wanted.dims);
      loaded.unreachable = wanted.lesion_unreachable ?? outside(lesion, brain);
    } catch (error) {
      if (turn === round) notice(error.message, true);
      return;
    }
    if (moved) visited = { lesion: -1, missed: -1, falses: [] };
    settle();
    arrange();
    notice("");
    repaint();
    (window.requestIdleCallback ?? setTimeout)(() => loadLayers(turn, size));
  }

  async function loadLayers(turn, size) {
    for (const layer of data.layers ?? []) {
      try {
        const scores = await volume(layer.url, size, `layer map ${layer.label}`);
        if (turn !== round) return;
        loaded.layers.set(layer.id, scores);
      } catch {
        if (turn !== round) return;
        loaded.layers.set(layer.id, null);
      }
      repaint();
    }
  }

  function analyse(scores, brain, lesion, lesions) {
    return { scores, ...cumulate(scores, brain, lesion), peaks: lesions.map((l) => peak(scores, brain, l)), order: null };
  }

  /** Fill what the view leaves open and keep the cross-hair inside the grid. */
  function settle() {
    if ([view.x, view.y, view.z].some((v) => v === null)) {
      const start = loaded.lesions.length ? unravel(loaded.lesions[0].centre, data.dims) : data.dims.map((n) => n >> 1);
      [view.x, view.y, view.z] = start;
    }
    ["x", "y", "z"].forEach((k, i) => (view[k] = clamp(Math.round(view[k]), 0, data.dims[i] - 1)));
    const protocols = data.maps[0].thresholds ?? [];
    const known = typeof view.threshold === "string" && protocols.some((p) => p.id === view.threshold);
    if (view.threshold === null || (typeof view.threshold === "string" && !known)) {
      view.threshold = protocols.find((p) => Number.isFinite(p.value))?.id ?? data.maps[0].levels[200];
    }
  }

  // ---- thresholds -----------------------------------------------------------------------------------------------

  function steps() {
    if (typeof view.threshold === "string") {
      return data.maps.map((map, m) => {
        const own = (map.thresholds ?? []).find((p) => p.id === view.threshold);
        return own && Number.isFinite(own.value) ? stepOf(map.levels, own.value) : shared(m, protocolStep());
      });
    }
    const first = Number.isFinite(view.threshold) ? stepOf(data.maps[0].levels, view.threshold) : STEPS;
    return data.maps.map((_, m) => shared(m, first));
  }

  function protocolStep() {
    const own = data.maps[0].thresholds.find((p) => p.id === view.threshold);
    return own && Number.isFinite(own.value) ? stepOf(data.maps[0].levels, own.value) : 200;
  }

  function shared(m, first) {
    return m === 0 ? first : sameShare(loaded.maps[m].above, loaded.maps[0].above[first]);
  }

  const levelText = (map, step) => (step > map.levels.length ? `above ${number(map.levels.at(-1))}` : number(map.levels[step - 1]));

  // ---- drawing --------------------------------------------------------------------------------------------------

  function arrange() {
    const several = data.maps.length > 1;
    const wanted = several
      ? data.maps.map((map, m) => ({ map: m, plane: view.plane, title: map.label }))
      : Object.keys(PLANES).map((plane) => ({ map: 0, plane, title: null }));
    parts.plane.parentElement.hidden = !several;
    panes = wanted.map((spec) => {
      const made = { ...spec, ...pane(spec.title) };
      made.canvas.dataset.testid = several ? `pane-${spec.map}` : spec.plane;
      listen(made);
      return made;
    });
    parts.stage.replaceChildren(...panes.map((p) => p.element));
    cards = data.maps.map(() => card(several));
    parts.numbers.replaceChildren(...cards.map((c) => c.element));
    parts.numbers.style.setProperty("--maps", data.maps.length);
    parts.panel.dataset.maps = data.maps.length;
    parts.protocols.replaceChildren(...(data.maps[0].thresholds ?? []).map(protocolButton));
    measure();
  }

  function protocolButton(protocol) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = protocol.oracle ? "oracle" : "";
    const named = /oracle/i.test(protocol.label);
    button.textContent = protocol.oracle && !named ? `${protocol.label} (oracle)` : protocol.label;
    const origin = protocol.oracle ? "Chosen with the lesion labels: an upper bound, not a result." : "Chosen without this subject's labels.";
    button.title = protocol.rule ? `${protocol.rule}. ${origin}` : origin;
    button.dataset.testid = `protocol-${protocol.id}`;
    button.dataset.protocol = protocol.id;
    button.disabled = !Number.isFinite(protocol.value);
    button.onclick = () => change({ threshold: protocol.id });
    return button;
  }

  /** Give all panes one height, so that a millimetre is as long in every plane. */
  function measure() {
    if (!panes.length || !loaded) return;
    const shapes = panes.map((p) => geometry(p));
    const width = parts.stage.clientWidth;
    const stacked = width < 560 && panes.length > 1;
    const across = stacked ? shapes.map(() => width) : null;
    parts.stage.style.gridTemplateColumns = stacked ? "1fr" : shapes.map((s) => `minmax(0, ${s.width}fr)`).join(" ");
    const total = shapes.reduce((sum, s) => sum + s.width, 0);
    const tallest = Math.max(...shapes.map((s) => s.height));
    panes.forEach((p, n) => {
      const height = across ? (across[n] * shapes[n].height) / shapes[n].width : (width * tallest) / total;
      p.canvas.style.height = `${Math.round(Math.min(TALLEST, SHARE_OF_WINDOW * window.innerHeight, height))}px`;
    });
  }

  const geometry = (p) => layout(p.plane, data.dims, data.spacing_mm, data.affine, view.convention, loaded.bounds);

  function repaint() {
    if (!pending) pending = requestAnimationFrame(paint);
  }

  function paint() {
    pending = 0;
    if (!loaded || !panes.length) return;
    const at = steps();
    const greys = greyTable(view.window);
    const found = categoriesAt(at[0]);
    if (sought && found?.counts) return seek(found);
    const kinds = found?.counts ? categoryWords(data.categories.list, found.only, view.opacity) : null;
    if (jump !== hereAndNow(at[0])) parts.jumped.textContent = "";
    const voxel = [view.x, view.y, view.z];
    const millimetres = toWorld(data.affine, voxel);
    for (const p of panes) {
      const plane = geometry(p);
      const step = at[p.map];
      const caption = `${p.plane} ${voxel[plane.n] + 1} of ${plane.slices}`;
      draw(p.canvas, plane, {
        image: loaded.image, brain: loaded.brain, lesion: loaded.lesion, scores: loaded.maps[p.map].scores,
        greys, words: overlayWords(step, view.opacity), outcome: outcomeWords(view.opacity * 0.75),
        step, show: view.show, voxel, caption, labels: found?.labels, kinds,
      });
      const label = data.maps.length > 1 ? `${data.maps[p.map].label}, ${p.plane} plane` : `${p.plane} plane`;
      p.canvas.setAttribute("aria-label", `${label}; arrow keys change the slice`);
      p.canvas.setAttribute("aria-valuemin", "1");
      p.canvas.setAttribute("aria-valuemax", plane.slices);
      p.canvas.setAttribute("aria-valuenow", voxel[plane.n] + 1);
      p.canvas.setAttribute("aria-valuetext", `slice ${voxel[plane.n] + 1} of ${plane.slices}`);
    }
    controls(at, Boolean(kinds));
    legend(found, at[0]);
    numbers(at);
    readout(at, voxel, millimetres, found);
    root.host ? (root.host.dataset.ready = "1") : (root.dataset.ready = "1");
    parts.panel.dataset.ready = "1";
    window.__viewer = hook(at, found);
  }

  function greyTable([low, high]) {
    return Uint32Array.from({ length: 256 }, (_, v) => {
      const grey = Math.round(255 * clamp((v / 255 - low) / Math.max(high - low, 1e-3), 0, 1));
      return v === 0 ? 0 : ((255 << 24) | (grey << 16) | (grey << 8) | grey) >>> 0;
    });
  }

  function controls(at, categorised) {
    const map = data.maps[0];
    put(parts.threshold, at[0]);
    parts.level.textContent = `${levelText(map, at[0])}${map.unit ? ` · ${map.unit}` : ""}`;
    parts.threshold.setAttribute("aria-valuetext", levelText(map, at[0]));
    const protocol = (map.thresholds ?? []).find((p) => p.id === view.threshold);
    parts.origin.textContent = protocol
      ? `from ${protocol.label}${data.maps.length > 1 ? ", each map at its own" : ""}`
      : data.maps.length > 1 ? "set by hand; the other maps keep the same share of the brain" : "set by hand";
    for (const button of parts.protocols.children) {
      button.setAttribute("aria-pressed", String(button.dataset.protocol === view.threshold));
    }
    const marks = (map.thresholds ?? []).filter((p) => Number.isFinite(p.value));
    parts.ticks.replaceChildren(...marks.map((p) => {
      const tick = document.createElement("i");
      tick.className = p.oracle ? "oracle" : "";
      tick.style.setProperty("--at", (stepOf(map.levels, p.value) - 1) / (STEPS - 1));
      return tick;
    }));
    parts.lowest.textContent = levelText(map, 1);
    parts.highest.textContent = levelText(map, map.levels.length);
    put(parts.opacity, view.opacity);
    put(parts["window-low"], view.window[0]);
    put(parts["window-high"], view.window[1]);
    put(parts.convention, view.convention);
    put(parts.plane, view.plane);
    for (const name of SHOWN) parts[`show-${name}`].setAttribute("aria-pressed", String(Boolean(view.show[name])));
    parts["show-categories"].setAttribute("aria-pressed", String(Boolean(view.categories)));
    parts["show-categories"].hidden = !data.categories;
    parts.panel.dataset.outcome = String(Boolean(view.show.outcome));
    const none = !loaded.lesions.length;
    enable(parts["show-lesion"], !none, "This subject has no lesion mask.");
    const instead = "Error categories are drawn in its place.";
    for (const name of ["show-overlay", "show-segmentation"]) enable(parts[name], !categorised, instead);
    enable(parts["show-outcome"], !none && !categorised, none ? "This subject has no lesion mask." : instead);
    parts.keys.textContent = data.categories ? KEYS : KEYS.replace("c error categories · ", "");
    enable(parts["next-lesion"], !none, "This subject has no lesion.");
    enable(parts["missed-lesion"], missed(at[0]).length > 0, none ? "This subject has no lesion." : "Every lesion is found at this threshold.");
    const counts = countsAt(loaded.maps[0], at[0], loaded.unreachable);
    enable(parts["worst-false"], counts.fp > 0, "There is no false positive at this threshold.");
    const spacing = data.spacing_mm.every((s) => s === data.spacing_mm[0]) ? `${plain(data.spacing_mm[0])} mm` : `${data.spacing_mm.map(plain).join(" × ")} mm`;
    parts.grid.textContent = `Live values on the working grid (${spacing}), exact at the slider's steps.`;
  }

  function numbers(at) {
    const ml = data.spacing_mm.reduce((a, b) => a * b, 1) / 1000;
    data.maps.forEach((map, m) => {
      const c = countsAt(loaded.maps[m], at[m], loaded.unreachable);
      const amount = (n) => (data.maps.length > 1 ? "" : `${n.toLocaleString("en")} voxels · `) + `${number(n * ml)} mL`;
      const lesion = c.lesion > 0;
      const reported = data.reported?.[map.id]?.[view.threshold];
      const level = data.maps.length > 1 ? [["threshold", levelText(map, at[m])]] : [];
      cards[m].fill({
        label: map.label,
        value: lesion ? c.dice.toFixed(3) : `${number(c.fp * ml)} mL`,
        caption: lesion ? "Dice" : "false positive · no lesion: Dice is undefined",
        rows: lesion
          ? [...level, ["true positive", amount(c.tp), "tp"], ["false positive", amount(c.fp), "fp"], ["false negative", amount(c.fn), "fn"],
             ["precision", ratio(c.precision)], ["recall", ratio(c.recall)]]
          : [...level, ["false positive", amount(c.fp), "fp"], ["share of the brain", percent(c.fp / loaded.maps[m].above[0])]],
        exact: reported ? reported.text ?? `exact: ${Number(reported.dice).toFixed(4)}` : null,
      });
    });
  }

  function readout(at, voxel, millimetres, found) {
    const i = (voxel[0] * data.dims[1] + voxel[1]) * data.dims[2] + voxel[2];
    const inside = Boolean(loaded.brain[i]);
    const value = (scores, levels) => (!inside ? "outside the brain" : scores[i] ? number(levels[scores[i] - 1]) : `below ${number(levels[0])}`);
    const rows = [
      ["voxel", voxel.join(", "), "voxel"],
      ["mm (R, A, S)", millimetres.map(signed).join(", "), "mm"],
      ["intensity, 0 to 1", (loaded.image[i] / 255).toFixed(3)],
      ...data.maps.map((map, m) => [data.maps.length > 1 ? `score, ${map.label}` : "score", value(loaded.maps[m].scores, map.levels), `score-${m}`]),
      ["in the brain", inside ? "yes" : "no"],
      ["in the lesion", loaded.lesion ? (loaded.lesion[i] ? "yes" : "no") : "no lesion mask"],
      ["segmented", inside && loaded.maps[0].scores[i] >= at[0] ? "yes" : "no"],
      ...(found?.counts ? [["error category", data.categories.list.find((c) => c.code === found.labels[i])?.title ?? "none", "category-here"]] : []),
      ...(data.layers ?? []).map((layer) => {
        const scores = loaded.layers.get(layer.id);
        return [layer.label, scores === undefined ? "…" : scores === null ? "not available" : value(scores, layer.levels)];
      }),
    ];
    fillList(parts.readout, rows);
  }

  // ---- error categories -----------------------------------------------------------------------------------------

  /** What is known of the error categories at a step: { volume, labels, counts, only }, or { text } in their stead. */
  function categoriesAt(step) {
    if (!view.categories || !data.categories) return null;
    const { volumes } = data.categories;
    const wanted = volumes.find((v) => v.protocol === view.threshold) ?? volumes.find((v) => stepOf(data.maps[0].levels, v.value) === step);
    if (!wanted) return { text: movedText(volumes), moved: true };
    const known = loaded.labels.get(wanted.url);
    if (!known) fetchLabels(wanted);
    if (!known?.counts) return { text: known?.text ?? "Counting error categories …" };
    const only = data.categories.list.find((c) => c.id === view.category && known.counts[c.code]);
    return { volume: wanted, ...known, only: only?.id ?? null };
  }

  function movedText(volumes) {
    if (!volumes.length) return "This evaluation has no deployed threshold, and error categories belong to one.";
    const deployed = volumes.map((v) => `${v.label} ${levelText(data.maps[0], stepOf(data.maps[0].levels, v.value))}`);
    return `Error categories belong to a deployed threshold (${deployed.join(", ")}), and the threshold has been moved. Go back to it to see them.`;
  }

  async function fetchLabels(wanted) {
    const mine = loaded.labels;
    mine.set(wanted.url, { text: "Counting error categories …" });
    try {
      const labels = await volume(wanted.url, data.dims[0] * data.dims[1] * data.dims[2], "map of error categories");
      mine.set(wanted.url, { labels, counts: tally(labels) });
    } catch (error) {
      mine.set(wanted.url, { text: error.message });
    }
    repaint();
  }

  function legend(found, step) {
    parts.categories.hidden = !found;
    if (!found) return;
    const key = JSON.stringify([found.text, found.volume?.url, found.only, step]);
    if (drawn === key) return;
    drawn = key;
    parts["categories-note"].textContent = found.text ?? legendText(found);
    parts["categories-back"].replaceChildren(...(found.moved ? data.categories.volumes.map(backButton) : []));
    parts.legend.hidden = !found.counts;
    if (!found.counts) return parts.legend.replaceChildren();
    const ml = data.spacing_mm.reduce((a, b) => a * b, 1) / 1000;
    fillLegend(parts.legend, {
      list: data.categories.list, counts: found.counts, only: found.only,
      millilitres: (voxels) => number(voxels * ml), pick: (category) => pickCategory(category, found),
    });
  }

  function legendText({ only, volume: { label }, counts }) {
    const wrong = data.categories.list.some((c) => c.kind !== "tp" && counts[c.code]);
    if (!wrong) return `Every voxel of this subject is right at the ${label} threshold.`;
    const hidden = only ? " Only one is shown; press it again to see all." : " Press one to see it alone, on the slice that holds most of it.";
    return `At the ${label} threshold, on the working grid.${hidden}`;
  }

  function backButton(wanted) {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.testid = `back-${wanted.protocol}`;
    button.textContent = `Back to ${wanted.label}`;
    button.onclick = () => change({ threshold: wanted.protocol });
    return button;
  }

  function pickCategory(category, found) {
    if (found.only === category.id) return change({ category: null });
    toCategory(category, found);
  }

  function toCategory(category, { labels, counts }) {
    const axis = layout("axial", data.dims, data.spacing_mm, data.affine, view.convention, loaded.bounds).n;
    const place = largestSlice(labels, category.code, axis, data.dims);
    if (!place) return;
    const ml = (counts[category.code] * data.spacing_mm.reduce((a, b) => a * b, 1)) / 1000;
    view.category = category.id;
    go(place.index, `${category.title}: ${number(ml)} mL; most of it on axial slice ${place.slice + 1}, ${place.voxels.toLocaleString("en")} voxels.`);
  }

  function seek(found) {
    sought = false;
    const category = data.categories.list.find((c) => c.id === found.only);
    if (category) toCategory(category, found);
    else repaint();
  }

  // ---- what the user does ---------------------------------------------------------------------------------------

  /** Change the view, draw it, and tell Python once it rests. */
  function change(fields, rest = true) {
    Object.assign(view, fields);
    repaint();
    clearTimeout(timer);
    if (rest) timer = setTimeout(tell, REST_MS);
  }

  function tell() {
    const now = structuredClone(view);
    if (told === JSON.stringify(now)) return;
    told = JSON.stringify(now);
    sent.push(now);
    if (sent.length > 20) sent.shift();
    self.send(now);
  }

  function listen(p) {
    const { canvas } = p;
    let held = false;
    let rolled = 0;
    const point = (event) => {
      const area = canvas.getBoundingClientRect();
      const plane = geometry(p);
      const at = pick(plane, fit(plane, area.width, area.height), event.clientX - area.left, event.clientY - area.top, [view.x, view.y, view.z]);
      return { x: at[0], y: at[1], z: at[2] };
    };
    canvas.onpointerdown = (event) => {
      held = true;
      canvas.setPointerCapture(event.pointerId);
      change(point(event), false);
    };
    canvas.onpointermove = (event) => held && change(point(event), false);
    canvas.onpointerup = canvas.onpointercancel = () => {
      if (held) change({});
      held = false;
    };
    canvas.onwheel = (event) => {
      event.preventDefault();
      rolled += event.deltaY;
      if (Math.abs(rolled) < 30) return;
      slide(p, rolled < 0 ? 1 : -1);
      rolled = 0;
    };
    canvas.onkeydown = (event) => {
      const moves = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 5, PageDown: -5, Home: -1e6, End: 1e6 };
      if (!(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      slide(p, moves[event.key]);
    };
  }

  /** Step the slice towards right, front or top. */
  function slide(p, by) {
    const plane = geometry(p);
    const key = ["x", "y", "z"][plane.n];
    change({ [key]: clamp(view[key] + by * plane.normalSign, 0, plane.slices - 1) });
  }

  const flip = (name) => !parts[`show-${name}`].disabled && change({ show: { ...view.show, [name]: !view.show[name] } });
  for (const name of SHOWN) parts[`show-${name}`].onclick = () => flip(name);
  parts["show-categories"].onclick = () => data.categories && change({ categories: !view.categories, category: null });
  const atStep = (rest) => () => {
    const step = Number(parts.threshold.value);
    const { levels } = data.maps[0];
    change({ threshold: step > levels.length ? levels.at(-1) * (1 + 1e-3) + 1e-6 : levels[step - 1] }, rest);
  };
  parts.threshold.oninput = atStep(false);
  parts.threshold.onchange = atStep(true);
  slider("opacity", (value) => ({ opacity: value }));
  slider("window-low", (value) => ({ window: [Math.min(value, view.window[1] - 0.02), view.window[1]] }));
  slider("window-high", (value) => ({ window: [view.window[0], Math.max(value, view.window[0] + 0.02)] }));
  parts.convention.onchange = () => change({ convention: parts.convention.value });
  parts.plane.onchange = () => {
    change({ plane: parts.plane.value });
    arrange();
  };

  function slider(name, fields) {
    parts[name].oninput = () => change(fields(Number(parts[name].value)), false);
    parts[name].onchange = () => change(fields(Number(parts[name].value)));
  }

  const missed = (step) => loaded.lesions.map((_, n) => n).filter((n) => loaded.maps[0].peaks[n] < step);

  function toLesion(n) {
    const lesion = loaded.lesions[n];
    const ml = (lesion.voxels.length * data.spacing_mm.reduce((a, b) => a * b, 1)) / 1000;
    const found = loaded.maps[0].peaks[n] >= steps()[0] ? "found" : "missed";
    go(lesion.centre, `Lesion ${n + 1} of ${loaded.lesions.length}: ${number(ml)} mL, ${found} at this threshold.`);
  }

  function go(index, text) {
    const [x, y, z] = unravel(index, data.dims);
    Object.assign(view, { x, y, z });
    parts.jumped.textContent = text;
    jump = hereAndNow(steps()[0]);
    change({});
  }

  const hereAndNow = (step) => JSON.stringify([view.x, view.y, view.z, step, data.maps[0].url, data.subject_id]);

  parts["next-lesion"].onclick = () => {
    if (!loaded?.lesions.length) return;
    visited.lesion = (visited.lesion + 1) % loaded.lesions.length;
    toLesion(visited.lesion);
  };

  parts["missed-lesion"].onclick = () => {
    const open = missed(steps()[0]);
    if (!open.length) return;
    visited.missed = open.find((n) => n > visited.missed) ?? open[0];
    toLesion(visited.missed);
  };

  parts["worst-false"].onclick = () => {
    const map = loaded.maps[0];
    const step = steps()[0];
    map.order ??= falseByScore(map.scores, loaded.brain, loaded.lesion);
    if (visited.map !== map) [visited.map, visited.falses] = [map, []];
    let next = nextFalse(map.order, map.scores, step, visited.falses, APART_MM, data.dims, data.spacing_mm);
    if (next < 0) {
      visited.falses = [];
      next = nextFalse(map.order, map.scores, step, [], APART_MM, data.dims, data.spacing_mm);
    }
    if (next < 0) return;
    visited.falses.push(next);
    go(next, `False positive ${visited.falses.length}: score ${levelText(data.maps[0], map.scores[next])}${visited.falses.length > 1 ? `, at least ${APART_MM} mm from the earlier ones` : ""}.`);
  };

  parts.panel.addEventListener("keydown", (event) => {
    if (!loaded || event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
    const press = { m: "show-overlay", g: "show-lesion", s: "show-segmentation", c: "show-categories", n: "next-lesion", f: "worst-false" }[event.key];
    if (!press) return;
    event.preventDefault();
    event.stopPropagation();
    parts[press].click();
  });

  // ---- the rest -------------------------------------------------------------------------------------------------

  function notice(text, wrong = false) {
    parts.notice.textContent = text;
    parts.notice.hidden = !text;
    parts.notice.classList.toggle("wrong", wrong);
    parts.panel.classList.toggle("empty", Boolean(text) && (wrong || !loaded));
  }

  /** For tests: the view, the counts and a hash of what is on the canvases. */
  function hook(at, found) {
    return {
      view: structuredClone(view),
      steps: at,
      counts: loaded.maps.map((map, m) => countsAt(map, at[m], loaded.unreachable)),
      categories: found?.counts ? [...found.counts] : null,
      onScreen: (n, voxel) => {
        const area = panes[n].canvas.getBoundingClientRect();
        const at = place(geometry(panes[n]), fit(geometry(panes[n]), area.width, area.height), voxel);
        return [area.left + at.x, area.top + at.y];
      },
      hash: () => panes.map((p) => hash(p.canvas)),
    };
  }

  function hash(canvas) {
    const { data: pixels } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let sum = 2166136261;
    for (let i = 0; i < pixels.length; i++) sum = Math.imul(sum ^ pixels[i], 16777619) >>> 0;
    return sum;
  }

  const resized = new ResizeObserver(() => {
    measure();
    repaint();
  });
  resized.observe(parts.stage);
  parts.panel.style.setProperty("--score-gradient", gradient());
  for (const [name, rgb] of Object.entries(OUTCOME)) parts.panel.style.setProperty(`--${name}`, `rgb(${rgb.join(" ")})`);

  function dispose() {
    round++;
    resized.disconnect();
    clearTimeout(timer);
    cancelAnimationFrame(pending);
    parts.panel.remove();
  }

  return self;
}

/** Whether Python echoes what it was sent; an address keeps six digits of a number. */
function alike(old, value) {
  if (typeof old === "number" && typeof value === "number") return Math.abs(old - value) <= 1e-5 * Math.abs(old);
  return JSON.stringify(old) === JSON.stringify(value);
}

function outside(lesion, brain) {
  if (!lesion) return 0;
  let n = 0;
  for (let i = 0; i < lesion.length; i++) if (lesion[i] && !brain[i]) n++;
  return n;
}

function put(control, value) {
  if (control.value !== String(value)) control.value = value;
}

function enable(button, possible, why) {
  button.disabled = !possible;
  button.title = possible ? "" : why;
}

function clamp(value, low, high) {
  return Math.min(high, Math.max(low, value));
}

function number(value) {
  const size = Math.abs(value);
  const digits = size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3;
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits, useGrouping: size >= 1e4 });
}

const signed = (value) => (Math.abs(value) < 0.05 ? 0 : value).toFixed(1).replace("-", "−");
const plain = (value) => String(Math.round(value * 100) / 100);
const ratio = (value) => (Number.isFinite(value) ? value.toFixed(3) : "undefined");
const percent = (value) => `${(100 * value).toFixed(2)} %`;
