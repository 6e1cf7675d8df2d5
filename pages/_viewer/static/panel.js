// The elements around the planes: built once, filled by viewer.js. Text goes in as text, never as markup.

export const KEYS = "Arrows or wheel: slice · PageUp/PageDown: 5 slices · m overlay · g lesion · s segmentation · c error categories · n next lesion · f worst false positive";

/** Build the panel inside `root`; returns its parts by name. */
export function build(root) {
  const parts = {};
  const make = (tag, name, attributes = {}, children = []) => {
    const element = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "text") element.textContent = value;
      else element.setAttribute(key, value);
    }
    if (name) {
      parts[name] = element;
      element.dataset.testid = name;
    }
    element.append(...children);
    return element;
  };
  const range = (name, label, min, max, step) =>
    make("label", null, { class: "field" }, [
      make("span", null, { class: "name", text: label }),
      make("input", name, { type: "range", min, max, step, "aria-label": label }),
    ]);
  const toggle = (name, label, swatch) =>
    make("button", name, { type: "button", class: "toggle", "aria-pressed": "false" }, [
      ...(swatch ? [make("i", null, { class: `swatch ${swatch}`, "aria-hidden": "true" })] : []),
      make("span", null, { text: label }),
    ]);
  const button = (name, label) => make("button", name, { type: "button", text: label });
  const choice = (name, label, options) =>
    make("label", null, { class: "field" }, [
      make("span", null, { class: "name", text: label }),
      make("select", name, { "aria-label": label }, options.map(([value, text]) => make("option", null, { value, text }))),
    ]);

  const panel = make("section", "panel", { class: "viewer", "aria-label": "Slice viewer" }, [
    make("div", "notice", { class: "notice", role: "status", hidden: "" }),
    make("div", "stage", { class: "stage" }),
    make("div", null, { class: "below" }, [
      make("div", null, { class: "controls" }, [
        make("div", null, { class: "threshold" }, [
          make("div", null, { class: "line" }, [
            make("span", null, { class: "name", text: "Threshold" }),
            make("output", "level", { class: "level" }),
            make("span", "origin", { class: "origin" }),
          ]),
          make("div", null, { class: "slider" }, [
            make("input", "threshold", { type: "range", min: 1, max: 256, step: 1, "aria-label": "Score threshold" }),
            make("div", "ticks", { class: "ticks", "aria-hidden": "true" }),
          ]),
          make("div", null, { class: "ends" }, [make("span", "lowest"), make("span", "highest")]),
          make("div", "protocols", { class: "buttons", role: "group", "aria-label": "Threshold protocols" }),
        ]),
        make("div", null, { class: "groups" }, [
          make("div", null, { class: "buttons", role: "group", "aria-label": "What is drawn" }, [
            toggle("show-overlay", "Scores", "scores"),
            toggle("show-lesion", "Lesion", "lesion"),
            toggle("show-segmentation", "Segmentation", "segmentation"),
            toggle("show-outcome", "Hits and misses", "outcome"),
            toggle("show-categories", "Error categories", "categories"),
          ]),
          make("div", null, { class: "buttons", role: "group", "aria-label": "Jump to" }, [
            button("next-lesion", "Next lesion"),
            button("missed-lesion", "Missed lesion"),
            button("worst-false", "Worst false positive"),
          ]),
        ]),
        make("p", "jumped", { class: "jumped", role: "status" }),
        make("section", "categories", { class: "kinds", "aria-label": "Error categories", hidden: "" }, [
          make("p", "categories-note", { class: "origin", role: "status" }),
          make("div", "categories-back", { class: "buttons" }),
          make("div", "legend", { class: "legend" }),
        ]),
        make("div", null, { class: "fields" }, [
          range("opacity", "Opacity", 0, 1, 0.02),
          range("window-low", "Darkest", 0, 1, 0.01),
          range("window-high", "Brightest", 0, 1, 0.01),
          choice("convention", "Left and right", [
            ["radiological", "Radiological"],
            ["neurological", "Neurological"],
          ]),
          choice("plane", "Plane", [["axial", "Axial"], ["coronal", "Coronal"], ["sagittal", "Sagittal"]]),
        ]),
      ]),
      make("div", "numbers", { class: "numbers", "aria-live": "polite" }),
      make("div", null, { class: "readout" }, [
        make("h4", null, { text: "At the cross-hair" }),
        make("dl", "readout"),
      ]),
    ]),
    make("p", "foot", { class: "foot" }, [make("span", "grid"), make("span", "keys")]),
  ]);
  root.append(panel);
  return parts;
}

/** Replace the rows of a definition list. */
export function fillList(list, rows) {
  list.replaceChildren(
    ...rows.flatMap(([term, value, name]) => {
      const [dt, dd] = [document.createElement("dt"), document.createElement("dd")];
      dt.textContent = term;
      dd.textContent = value;
      if (name) dt.className = dd.dataset.testid = name;
      return [dt, dd];
    }),
  );
}

/** A card with the whole-volume numbers of one map. */
export function card(titled) {
  const element = document.createElement("article");
  element.innerHTML = '<h4></h4><p class="headline"><strong data-testid="dice"></strong> <span></span></p><dl></dl><p class="reported"></p>';
  const [title, headline, list, reported] = element.children;
  title.hidden = !titled;
  return {
    element,
    fill({ label, value, caption, rows, exact }) {
      title.textContent = label;
      headline.firstElementChild.textContent = value;
      headline.lastElementChild.textContent = caption;
      fillList(list, rows);
      reported.textContent = exact ?? "";
      reported.hidden = !exact;
    },
  };
}

/** One pane: a canvas that can take the keyboard, under an optional title. */
export function pane(title) {
  const element = document.createElement("figure");
  const canvas = document.createElement("canvas");
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "slider");
  if (title) {
    const caption = document.createElement("figcaption");
    caption.textContent = title;
    element.append(caption);
  }
  element.append(canvas);
  return { element, canvas };
}
