// Non-local means as attention. The denoised pixel i is a mean of all pixels j, weighted by how
// alike the patches around them are:
//
//     w_ij ∝ exp(−|p_i − p_j|² / h²) = exp(2/h² · (p_i·p_j − |p_j|²/2)) · exp(−|p_i|²/h²)
//
// The last factor is the same for all j and cancels in the softmax. So with
//
//     query_i = [p_i, 1],   key_j = [p_j, −|p_j|²/2],   value_j = pixel j,   scale = 2/h²
//
// softmax(scale · query keyᵀ) value is non-local means over the whole picture.
//
// A patch is the luminance around a pixel under a Gaussian window, and the two chroma components
// averaged by the same window. The colour transform is orthonormal and the window's weights sum to
// one, so the noise in |p_i − p_j|² is that of one pixel: h is `strength` times the noise.

/** Width of the Gaussian window as a share of the patch; tuned for PSNR, as CHROMA_WEIGHT. */
const WINDOW = 0.125;
const CHROMA_WEIGHT = 1.5;

/** Rows of orthonormal colour axes: luminance, red against blue, green against both. */
const COLOR_AXES = [
  [1 / Math.sqrt(3), 1 / Math.sqrt(3), 1 / Math.sqrt(3)],
  [1 / Math.sqrt(2), 0, -1 / Math.sqrt(2)],
  [1 / Math.sqrt(6), -2 / Math.sqrt(6), 1 / Math.sqrt(6)],
];

/** The weights of a patch's pixels, row by row, with sum 1. */
function windowWeights(patch) {
  const center = (patch - 1) / 2;
  const profile = Array.from({ length: patch }, (_, index) =>
    Math.exp(-0.5 * ((index - center) / (WINDOW * patch)) ** 2),
  );
  const weights = profile.flatMap((row) => profile.map((column) => row * column));
  const sum = weights.reduce((total, weight) => total + weight, 0);
  return weights.map((weight) => weight / sum);
}

/** The three planes of the picture along COLOR_AXES, each with mean 0 (distances do not change). */
function colorPlanes({ pixels, width, height }) {
  return COLOR_AXES.map(([r, g, b]) => {
    const plane = new Float64Array(width * height);
    for (let i = 0; i < plane.length; i++) {
      plane[i] = r * pixels[3 * i] + g * pixels[3 * i + 1] + b * pixels[3 * i + 2];
    }
    const mean = plane.reduce((sum, value) => sum + value, 0) / plane.length;
    return plane.map((value) => value - mean);
  });
}

/** The position outside [0, length) mirrored back into it, the border pixel repeated. */
function mirror(position, length) {
  const period = 2 * length;
  const wrapped = ((position % period) + period) % period;
  return Math.min(wrapped, period - 1 - wrapped);
}

/** Positions in the picture of the pixels of the patch around (x, y), row by row. */
function patchPositions(x, y, width, height, patch, positions) {
  const radius = (patch - 1) / 2;
  let next = 0;
  for (let dy = -radius; dy <= radius; dy++) {
    const row = mirror(y + dy, height) * width;
    for (let dx = -radius; dx <= radius; dx++) positions[next++] = row + mirror(x + dx, width);
  }
}

/** Patch vectors, (pixels, patch² + 2). */
function patchVectors(picture, patch) {
  const { width, height } = picture;
  const area = patch * patch;
  const dim = area + 2;
  const weights = windowWeights(patch);
  const [luminance, ...chroma] = colorPlanes(picture);
  const vectors = new Float32Array(width * height * dim);
  const positions = new Int32Array(area);
  for (let pixel = 0; pixel < width * height; pixel++) {
    patchPositions(pixel % width, Math.floor(pixel / width), width, height, patch, positions);
    const start = pixel * dim;
    for (let i = 0; i < area; i++) {
      vectors[start + i] = Math.sqrt(weights[i]) * luminance[positions[i]];
    }
    chroma.forEach((plane, index) => {
      const mean = weights.reduce((sum, weight, i) => sum + weight * plane[positions[i]], 0);
      vectors[start + area + index] = CHROMA_WEIGHT * mean;
    });
  }
  return { vectors, dim };
}

/**
 * The attention problem whose output is the denoised picture.
 *
 * @param {{ pixels: Float32Array, width: number, height: number }} picture RGB, 0 to 255
 * @param {{ patch: number, noise: number, strength: number }} options an odd patch width, the
 *   noise's deviation, and h as a multiple of it
 * @returns options of any attention kind: query, key, value, shape and scale
 */
export function nonLocalMeans(picture, { patch, noise, strength }) {
  const tokens = picture.width * picture.height;
  const { vectors, dim } = patchVectors(picture, patch);
  // In units of h, all numbers are of order one.
  const unit = 1 / (strength * Math.max(noise, 1));
  const headDim = dim + 1;
  const query = new Float32Array(tokens * headDim);
  const key = new Float32Array(tokens * headDim);
  for (let token = 0; token < tokens; token++) {
    let squares = 0;
    for (let i = 0; i < dim; i++) {
      const value = vectors[token * dim + i] * unit;
      query[token * headDim + i] = value;
      key[token * headDim + i] = value;
      squares += value * value;
    }
    query[token * headDim + dim] = 1;
    key[token * headDim + dim] = -squares / 2;
  }
  const shape = { batch: 1, heads: 1, queryLength: tokens, headDim, valueDim: 3 };
  return { query, key, value: picture.pixels, shape, scale: 2 };
}
