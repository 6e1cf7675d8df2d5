// One sequential map for scores: lightness rises evenly in OKLab from violet through red to yellow.
// OKLab: Ottosson 2020, https://bottosson.github.io/posts/oklab/

export const LESION = "#3fd8ff";
export const SEGMENTATION = "#a6f26b";
export const OUTCOME = { tp: [84, 214, 160], fp: [255, 158, 61], fn: [240, 98, 222] };

// Warm for what is too much, blue to pink for what is missing; neighbours in the table differ in hue and lightness.
const CATEGORY_COLOURS = {
  fp: [[255, 214, 76], [255, 158, 61], [239, 71, 71], [255, 240, 184], [196, 106, 26], [206, 224, 44], [255, 160, 140], [172, 140, 112]],
  fn: [[98, 106, 255], [64, 156, 255], [240, 98, 222], [152, 86, 230], [255, 190, 240], [134, 150, 206]],
};

/** [r, g, b] of an error category by its code, counted from 1 over false positives, then misses. */
export function categoryColour(kind, code) {
  if (kind === "tp") return OUTCOME.tp;
  const own = CATEGORY_COLOURS[kind];
  const place = kind === "fp" ? code - 1 : code - 1 - CATEGORY_COLOURS.fp.length;
  return own[((place % own.length) + own.length) % own.length];
}

/** 256 colours [r, g, b], darkest first. */
export const SCORE_MAP = Array.from({ length: 256 }, (_, q) => {
  const f = q / 255;
  const hue = ((305 + 160 * f) * Math.PI) / 180;
  return srgb(0.3 + 0.65 * f, 0.1 + 0.32 * f * (1 - f) * 1.25 + 0.04 * f, hue);
});

/** CSS gradient of the map. */
export function gradient() {
  const stops = [0, 32, 64, 96, 128, 160, 192, 224, 255].map((q) => `rgb(${SCORE_MAP[q].join(" ")})`);
  return `linear-gradient(to right, ${stops.join(", ")})`;
}

/** RGBA words for every byte: opaque at the threshold and above, fading to nothing at half of it. */
export function overlayWords(step, opacity) {
  const words = new Uint32Array(256);
  for (let q = 1; q < 256; q++) {
    const below = Math.max(0, (q - step / 2) / (step / 2));
    const alpha = opacity * (q >= step ? 1 : 0.75 * below * below);
    words[q] = word(SCORE_MAP[q], alpha);
  }
  return words;
}

/** RGBA words for true positives, false positives and misses. */
export function outcomeWords(opacity) {
  return { tp: word(OUTCOME.tp, opacity), fp: word(OUTCOME.fp, opacity), fn: word(OUTCOME.fn, opacity) };
}

function word([r, g, b], alpha) {
  return ((Math.round(alpha * 255) << 24) | (b << 16) | (g << 8) | r) >>> 0;
}

function srgb(lightness, chroma, hue) {
  const a = chroma * Math.cos(hue);
  const b = chroma * Math.sin(hue);
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  const linear = [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ];
  return linear.map((v) => {
    const clipped = Math.min(1, Math.max(0, v));
    return Math.round(255 * (clipped <= 0.0031308 ? 12.92 * clipped : 1.055 * clipped ** (1 / 2.4) - 0.055));
  });
}
