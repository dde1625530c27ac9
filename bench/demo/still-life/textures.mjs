// The painted surfaces of the test picture: each is an SVG that sharp renders once, sampled in
// linear light by the renderer.

import sharp from 'sharp';

import { textSvg } from '../lettering.mjs';

const svg = (width, height, body) =>
  `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}">${body}</svg>`;

const rect = (x, y, width, height, fill) =>
  `<rect x="${x}" y="${y}" width="${width}" height="${height}" fill="${fill}"/>`;

const path = (d, attributes) => `<path d="${d}" ${attributes}/>`;

/** The same drawing in the four quarter turns around (x, y). */
const quarterTurns = (x, y, body) =>
  [0, 90, 180, 270].map((turn) => `<g transform="rotate(${turn} ${x} ${y})">${body}</g>`).join('');

/** A glazed wall tile: a star in a ring, and quarter rings that meet those of its neighbours. */
function tile() {
  const blue = '#24539f';
  const corner =
    `<circle cx="0" cy="0" r="66" fill="none" stroke="${blue}" stroke-width="15"/>` +
    `<circle cx="0" cy="0" r="38" fill="#d9a441"/><circle cx="0" cy="0" r="19" fill="${blue}"/>`;
  const petal = path('M128 112C96 84 100 54 128 34C156 54 160 84 128 112Z', `fill="${blue}"`);
  const bud = path('M128 0L146 16L128 32L110 16Z', 'fill="#5f8fd0"');
  const diagonal = path('M141 115C150 92 168 78 184 72C178 88 164 106 141 115Z', 'fill="#5f8fd0"');
  return svg(
    256,
    256,
    rect(0, 0, 256, 256, '#f1ebdd') +
      quarterTurns(128, 128, corner + bud + petal + diagonal) +
      '<circle cx="128" cy="128" r="13" fill="#d9a441"/>' +
      rect(0, 0, 256, 5, '#b9b09d') +
      rect(0, 251, 256, 5, '#b9b09d') +
      rect(0, 0, 5, 256, '#b9b09d') +
      rect(251, 0, 5, 256, '#b9b09d'),
  );
}

/** The runner on the table, one repeat of its stripes across (x); plain along (y). */
function cloth() {
  const stripes = [
    [0, 256, '#ece2cd'],
    [16, 30, '#a8322d'],
    [56, 10, '#a8322d'],
    [76, 10, '#a8322d'],
    [96, 30, '#a8322d'],
    [160, 12, '#2f4d78'],
    [182, 24, '#2f4d78'],
    [216, 12, '#2f4d78'],
  ];
  return svg(256, 4, stripes.map(([x, width, fill]) => rect(x, 0, width, 4, fill)).join(''));
}

/** Table boards seen from above: three boards across (y), grain along (x). */
function wood() {
  const grain = Array.from({ length: 60 }, (_, index) => {
    const y = index * 8.6 + 3;
    const sway = 7 * Math.sin(index * 1.7);
    const shade = ['#5f3b20', '#8a5a34', '#6b4426'][index % 3];
    return path(
      `M0 ${y}C170 ${y + sway} 340 ${y - sway} 512 ${y}`,
      `fill="none" stroke="${shade}" stroke-width="${2 + (index % 4)}" opacity=".75"`,
    );
  });
  const joints = [0, 171, 342].map((y) => rect(0, y, 512, 5, '#2c190c'));
  return svg(512, 512, rect(0, 0, 512, 512, '#7a4c2a') + grain.join('') + joints.join(''));
}

/** A zigzag around the jug: 16 teeth, pointing up from y by `rise`. */
function zigzag(y, rise, color, width) {
  const teeth = Array.from({ length: 18 }, (_, index) => `l32 ${index % 2 ? rise : -rise}`);
  return path(
    `M-32 ${y}${teeth.join('')}`,
    `fill="none" stroke="${color}" stroke-width="${width}"`,
  );
}

/** The painted bands of the jug: around (x) and from foot to lip (y, the lip first). */
function jug() {
  const clay = '#b5643a';
  const cream = '#f0e2c4';
  const dark = '#3d2a2a';
  const dots = Array.from(
    { length: 16 },
    (_, i) => `<circle cx="${i * 32 + 16}" cy="330" r="9" fill="${cream}"/>`,
  );
  return svg(
    512,
    512,
    rect(0, 0, 512, 512, clay) +
      rect(0, 0, 512, 24, dark) +
      rect(0, 118, 512, 12, cream) +
      rect(0, 138, 512, 6, cream) +
      rect(0, 176, 512, 118, cream) +
      rect(0, 176, 512, 7, dark) +
      rect(0, 287, 512, 7, dark) +
      zigzag(262, 54, dark, 15) +
      rect(0, 308, 512, 46, dark) +
      dots.join('') +
      rect(0, 368, 512, 10, cream) +
      zigzag(420, 26, cream, 9) +
      rect(0, 440, 512, 10, cream),
  );
}

/** A book spine: bands at the ends, a title between. */
function spine(title, ground, ink) {
  const band = (x) => rect(x, 0, 9, 128, ink) + rect(x + 18, 0, 9, 128, ink);
  const text = textSvg(title, {
    x: 384,
    y: 42,
    height: 46,
    color: ink,
    weight: 0.2,
    anchor: 'middle',
  });
  return svg(768, 128, rect(0, 0, 768, 128, ground) + band(40) + band(701) + text);
}

/** The cut face of an orange: rind, pith and ten segments. */
function orange() {
  const segment = path(
    'M128 122L106 44C112 33 144 33 150 44Z',
    'fill="#f08c1c" stroke="#f5a53a" stroke-width="5" stroke-linejoin="round"',
  );
  const segments = Array.from(
    { length: 10 },
    (_, i) => `<g transform="rotate(${i * 36} 128 128)">${segment}</g>`,
  );
  return svg(
    256,
    256,
    rect(0, 0, 256, 256, '#e8730e') +
      '<circle cx="128" cy="128" r="112" fill="#f9e6b8"/>' +
      segments.join('') +
      '<circle cx="128" cy="128" r="6" fill="#f9e6b8"/>',
  );
}

const LINEAR = Float32Array.from({ length: 256 }, (_, byte) => (byte / 255) ** 2.2);

/** A picture that repeats in both directions, in linear light. */
class Texture {
  #width;
  #height;
  #texels;

  constructor({ data, info }) {
    this.#width = info.width;
    this.#height = info.height;
    this.#texels = Float32Array.from(data, (byte) => LINEAR[byte]);
  }

  static async render(source) {
    const image = sharp(Buffer.from(source)).flatten({ background: '#000' }).toColourspace('srgb');
    return new Texture(await image.removeAlpha().raw().toBuffer({ resolveWithObject: true }));
  }

  /** Bilinear; one repeat is [0,1) in u and v. Writes (r, g, b) to `color`. */
  sample(u, v, color) {
    const width = this.#width;
    const height = this.#height;
    const x = (u - Math.floor(u)) * width - 0.5;
    const y = (v - Math.floor(v)) * height - 0.5;
    const left = Math.floor(x);
    const top = Math.floor(y);
    const fx = x - left;
    const fy = y - top;
    const x0 = ((left + width) % width) * 3;
    const x1 = ((left + 1) % width) * 3;
    const y0 = ((top + height) % height) * width * 3;
    const y1 = ((top + 1) % height) * width * 3;
    for (let channel = 0; channel < 3; channel++) {
      const upper = this.#mix(y0 + x0 + channel, y0 + x1 + channel, fx);
      const lower = this.#mix(y1 + x0 + channel, y1 + x1 + channel, fx);
      color[channel] = upper + (lower - upper) * fy;
    }
  }

  #mix(from, to, share) {
    return this.#texels[from] + (this.#texels[to] - this.#texels[from]) * share;
  }
}

/** All surfaces of the scene, by name. */
export async function renderTextures() {
  const sources = {
    tile: tile(),
    cloth: cloth(),
    wood: wood(),
    jug: jug(),
    lowerSpine: spine('ATTENTION', '#7c2430', '#ecd9a6'),
    upperSpine: spine('CLUSTERS', '#1f5b57', '#f2e8cf'),
    orange: orange(),
  };
  const entries = Object.entries(sources).map(async ([name, source]) => [
    name,
    await Texture.render(source),
  ]);
  return Object.fromEntries(await Promise.all(entries));
}
