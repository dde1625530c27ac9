// A small single-stroke alphabet, so that captions and the book spines of the test picture look the
// same on every machine: text in an SVG would take whatever fonts are installed, or none.

/** Cap height in glyph units; the baseline is y = CAP_HEIGHT. */
const CAP_HEIGHT = 6;
const SPACING = 1.9;

/** [advance width, SVG path]; strokes run along the centre line. */
const GLYPHS = {
  A: [4.4, 'M0 6L2.2 0L4.4 6M.8 4H3.6'],
  B: [3.7, 'M0 0V6H2.1A1.6 1.6 0 0 0 2.1 2.8H0M0 0H1.9A1.4 1.4 0 0 1 1.9 2.8'],
  C: [4.3, 'M4.3 1.3A2.4 2.4 0 0 0 0 2.4V3.6A2.4 2.4 0 0 0 4.3 4.7'],
  D: [4.2, 'M0 0V6H1.6A2.6 2.6 0 0 0 4.2 3.4V2.6A2.6 2.6 0 0 0 1.6 0Z'],
  E: [3.4, 'M3.4 0H0V6H3.4M0 2.9H2.9'],
  F: [3.3, 'M3.3 0H0V6M0 2.9H2.8'],
  G: [4.5, 'M4.4 1.3A2.4 2.4 0 0 0 0 2.4V3.6A2.25 2.4 0 0 0 4.5 3.6V3.2H2.6'],
  H: [4.2, 'M0 0V6M4.2 0V6M0 2.9H4.2'],
  I: [0.2, 'M.1 0V6'],
  J: [2.8, 'M2.8 0V4.5A1.45 1.5 0 0 1 0 4.6'],
  K: [3.9, 'M0 0V6M3.7 0L0 3.7M1.3 2.5L3.9 6'],
  L: [3.2, 'M0 0V6H3.2'],
  M: [5, 'M0 6V0L2.5 4L5 0V6'],
  N: [4.2, 'M0 6V0L4.2 6V0'],
  O: [4.6, 'M0 2.3A2.3 2.3 0 0 1 4.6 2.3V3.7A2.3 2.3 0 0 1 0 3.7Z'],
  P: [3.7, 'M0 6V0H2.1A1.6 1.6 0 0 1 2.1 3.3H0'],
  Q: [4.6, 'M0 2.3A2.3 2.3 0 0 1 4.6 2.3V3.7A2.3 2.3 0 0 1 0 3.7ZM2.9 4.5L4.6 6.3'],
  R: [3.8, 'M0 6V0H2.1A1.6 1.6 0 0 1 2.1 3.2H0M2.1 3.2L3.8 6'],
  S: [3.8, 'M3.6 1.2A1.8 1.5 0 0 0 .1 1.5C.1 3.3 3.8 2.6 3.8 4.4A1.9 1.6 0 0 1 0 4.7'],
  T: [4.2, 'M0 0H4.2M2.1 0V6'],
  U: [4.2, 'M0 0V3.9A2.1 2.1 0 0 0 4.2 3.9V0'],
  V: [4.4, 'M0 0L2.2 6L4.4 0'],
  W: [6, 'M0 0L1.5 6L3 .8L4.5 6L6 0'],
  X: [4, 'M0 0L4 6M4 0L0 6'],
  Y: [4.2, 'M0 0L2.1 3.1L4.2 0M2.1 3.1V6'],
  Z: [3.8, 'M0 0H3.8L0 6H3.8'],
  0: [3.8, 'M0 1.9A1.9 1.9 0 0 1 3.8 1.9V4.1A1.9 1.9 0 0 1 0 4.1Z'],
  1: [2, 'M0 1.5L1.7 0V6'],
  2: [3.6, 'M0 1.7A1.75 1.7 0 0 1 3.5 1.8C3.5 3.4 1 4.4 0 6H3.6'],
  3: [3.6, 'M0 1.2A1.7 1.4 0 1 1 1.7 2.8H1.3M1.7 2.8A1.75 1.6 0 1 1 0 4.7'],
  4: [4, 'M3 6V0L0 4.3H4'],
  5: [3.6, 'M3.2 0H.4L.2 2.7A1.8 1.85 0 1 1 0 5'],
  6: [3.7, 'M3 0C1.2 .9 0 2.6 0 4.15A1.85 1.85 0 1 0 .3 3.1'],
  7: [3.5, 'M0 0H3.5L1.2 6'],
  8: [3.6, 'M1.8 2.8A1.45 1.4 0 1 1 1.81 2.8M1.8 2.8A1.8 1.6 0 1 0 1.81 2.8'],
  9: [3.7, 'M.7 6C2.5 5.1 3.7 3.4 3.7 1.85A1.85 1.85 0 1 0 3.4 2.9'],
  d: [3, 'M3 0V6M3 4.4A1.5 1.6 0 1 1 2.99 4.3'],
  i: [0.2, 'M.1 2.8V6M.1 .9V1'],
  m: [4.2, 'M0 6V2.8M0 3.9A1.05 1.05 0 0 1 2.1 3.9V6M2.1 3.9A1.05 1.05 0 0 1 4.2 3.9V6'],
  s: [2.4, 'M2.3 3.4A1.2 .8 0 0 0 .1 3.5C.1 4.7 2.4 4.1 2.4 5.2A1.2 .8 0 0 1 0 5.4'],
  '.': [0.2, 'M.1 5.9V6'],
  ',': [0.4, 'M.4 5.8L.1 6.9'],
  ':': [0.2, 'M.1 2.4V2.5M.1 5.5V5.6'],
  '·': [0.2, 'M.1 3V3.1'],
  '-': [2.2, 'M0 3.1H2.2'],
  '−': [2.8, 'M0 3.1H2.8'],
  '+': [3, 'M0 3.1H3M1.5 1.6V4.6'],
  '=': [2.8, 'M0 2.2H2.8M0 4H2.8'],
  '×': [2.4, 'M0 2L2.4 4.6M2.4 2L0 4.6'],
  '/': [2.6, 'M0 6.5L2.6 -.5'],
  '%': [4.6, 'M.6 6L4 0M.1 1.2A.9 1.2 0 1 1 .1 1.3M2.7 4.8A.9 1.2 0 1 1 2.7 4.9'],
  '(': [1.1, 'M1.1 -.6A5 5 0 0 0 1.1 6.6'],
  ')': [1.1, 'M0 -.6A5 5 0 0 1 0 6.6'],
  ' ': [1.5, ''],
};

function advance(character) {
  return (GLYPHS[character] ?? GLYPHS[' '])[0] + SPACING;
}

/** Width of a line of text whose capitals are `height` high, in the units of `height`. */
export function textWidth(text, height) {
  const units = [...text].reduce((sum, character) => sum + advance(character), -SPACING);
  return (Math.max(units, 0) * height) / CAP_HEIGHT;
}

/**
 * One line of text as an SVG group; characters without a glyph become spaces.
 *
 * @param {string} text
 * @param {{ x: number, y: number, height: number, color: string, weight?: number,
 *   anchor?: 'start' | 'middle' | 'end' }} place `y` is the top of the capitals, `weight` the
 *   stroke width as a share of `height`
 */
export function textSvg(text, { x, y, height, color, weight = 0.13, anchor = 'start' }) {
  const scale = height / CAP_HEIGHT;
  const shift = { start: 0, middle: 0.5, end: 1 }[anchor] * textWidth(text, height);
  let pen = 0;
  const paths = [...text].map((character) => {
    const glyph = `<path transform="translate(${pen.toFixed(2)} 0)" d="${(GLYPHS[character] ?? GLYPHS[' '])[1]}"/>`;
    pen += advance(character);
    return glyph;
  });
  return (
    `<g transform="translate(${(x - shift).toFixed(2)} ${y}) scale(${scale})" fill="none" ` +
    `stroke="${color}" stroke-width="${weight * CAP_HEIGHT}" stroke-linecap="round" ` +
    `stroke-linejoin="round">${paths.join('')}</g>`
  );
}
