// A painting of the picture: centroid pooling gathers the pixels, by colour and place, around a few
// centroids, and each centroid becomes one brush stroke. Its colour and place are the centroid's,
// its length, width and direction follow the pixels that chose it.

import sharp from 'sharp';

import { createRandom } from './random.mjs';
import { toPng } from './picture.mjs';

const PIXELS_PER_STROKE = 10;
const MOST_STROKES = 2000;
/** Grey levels that one stroke width of distance weighs as much as. */
const PLACE_WEIGHT = 28;

/** The options of centroidPool. */
export function paintingProblem({ pixels, width, height }, seed) {
  const length = width * height;
  const centroids = Math.ceil(Math.min(length / PIXELS_PER_STROKE, MOST_STROKES));
  const place = PLACE_WEIGHT / Math.sqrt(length / centroids);
  const inputs = new Float32Array(length * 5);
  for (let pixel = 0; pixel < length; pixel++) {
    inputs.set(pixels.subarray(3 * pixel, 3 * pixel + 3), 5 * pixel);
    inputs[5 * pixel + 3] = (pixel % width) * place;
    inputs[5 * pixel + 4] = Math.floor(pixel / width) * place;
  }
  const shape = { batch: 1, length, dim: 5 };
  const pooling = { similarity: 'euclidean', temperature: 0, initial: 'kmeans++', seed };
  return { inputs, shape, centroids, ...pooling };
}

function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** Half axes and direction of the ellipse with the same second moments as a stroke's pixels. */
function spread(xs, ys) {
  const [x, y] = [mean(xs), mean(ys)];
  // A pixel is itself a square of variance 1/12.
  const xx = mean(xs.map((value) => (value - x) ** 2)) + 1 / 12;
  const yy = mean(ys.map((value) => (value - y) ** 2)) + 1 / 12;
  const xy = mean(xs.map((value, index) => (value - x) * (ys[index] - y)));
  const middle = (xx + yy) / 2;
  const apart = Math.hypot((xx - yy) / 2, xy);
  return {
    x,
    y,
    length: 2 * Math.sqrt(middle + apart) + 0.5,
    width: 2 * Math.sqrt(Math.max(middle - apart, 1 / 20)) + 0.4,
    turn: (Math.atan2(2 * xy, xx - yy) / 2) * (180 / Math.PI),
  };
}

/** The strokes, the largest first, so that details end on top. */
function strokes(width, labels, centroids) {
  const members = Array.from({ length: centroids.length / 5 }, () => ({ xs: [], ys: [] }));
  labels.forEach((label, pixel) => {
    members[label].xs.push((pixel % width) + 0.5);
    members[label].ys.push(Math.floor(pixel / width) + 0.5);
  });
  return members
    .map(({ xs, ys }, index) => ({ xs, ys, color: centroids.subarray(5 * index, 5 * index + 3) }))
    .filter(({ xs }) => xs.length > 0)
    .map(({ xs, ys, color }) => Object.assign(spread(xs, ys), { color }))
    .toSorted((a, b) => b.length * b.width - a.length * a.width);
}

const shade = (color, light) =>
  `rgb(${Array.from(color, (value) => Math.round(Math.min(Math.max(value * light, 0), 255)))})`;

/** One stroke as SVG: a ground, and bristles that are a little lighter or darker. */
function strokeSvg(stroke, scale, random) {
  const half = stroke.length * scale;
  const side = stroke.width * scale;
  const count = Math.max(2, Math.round(side / 2.2));
  const bristles = Array.from({ length: count }, (_, index) => {
    const y = (((index + 0.5) / count) * 2 - 1) * side * 0.9;
    const reach = half * Math.sqrt(1 - (y / side) ** 2) * (0.8 + 0.25 * random());
    const sway = random() * 4 - 2;
    const tint = shade(stroke.color, 0.9 + 0.2 * random());
    const line = `M${-reach.toFixed(1)} ${y.toFixed(1)}q${reach.toFixed(1)} ${sway.toFixed(1)} ${(2 * reach).toFixed(1)} 0`;
    return `<path d="${line}" stroke="${tint}" stroke-width="${((2.3 * side) / count).toFixed(1)}"/>`;
  });
  const place = `translate(${(stroke.x * scale).toFixed(1)} ${(stroke.y * scale).toFixed(1)})`;
  return (
    `<g transform="${place} rotate(${stroke.turn.toFixed(1)})">` +
    `<ellipse rx="${half.toFixed(1)}" ry="${side.toFixed(1)}" fill="${shade(stroke.color, 1)}"/>` +
    `${bristles.join('')}</g>`
  );
}

/**
 * @param {{ width: number, height: number }} picture what was pooled
 * @param {{ output: Float32Array, labels: Int32Array }} pooled what centroidPool returned
 * @param {number} longest side of the painting
 * @returns {Promise<{ png: Buffer, strokes: number }>}
 */
export async function paint(picture, { output, labels }, longest) {
  const { width, height } = picture;
  const scale = longest / Math.max(width, height);
  const [paintedWidth, paintedHeight] = [width, height].map((side) => Math.round(side * scale));
  const random = createRandom(1);
  const all = strokes(width, labels, output);
  const svg =
    `<svg xmlns="http://www.w3.org/2000/svg" width="${paintedWidth}" height="${paintedHeight}">` +
    '<g fill="none" stroke-linecap="round">' +
    `${all.map((stroke) => strokeSvg(stroke, scale, random)).join('')}</g></svg>`;
  // Where strokes leave gaps, the picture shows through, out of focus.
  const ground = await sharp(await toPng(picture))
    .resize(paintedWidth, paintedHeight, { kernel: 'cubic', fit: 'fill' })
    .blur(4)
    .toBuffer();
  const png = await sharp(ground)
    .composite([{ input: Buffer.from(svg) }])
    .png({ compressionLevel: 9 })
    .toBuffer();
  return { png, strokes: all.length };
}
