// What stands where: a tiled wall (the plane z = WALL), a table (the plane y = 0) with a striped
// runner, and the shapes on it. x goes right, y up, z towards the viewer; one unit is about 20 cm.

import { createRandom } from '../random.mjs';
import { book, branch, fruit, halfFruit, jug, lemon } from './shapes.mjs';
import { unit } from './vector.mjs';

const { abs, cos, floor, min, sin } = Math;

export const WALL = -1.5;
const TILE = 0.8;
const RUNNER = { turn: 0.24, halfWidth: 1.02, repeat: 0.68 };

const ORANGE = [0.8, 0.2, 0.008];
const LEMON = [0.86, 0.6, 0.05];

const JUG_PROFILE = [
  [0, 0.27],
  [0.1, 0.3],
  [0.5, 0.47],
  [0.85, 0.38],
  [1.1, 0.215],
  [1.25, 0.215],
  [1.38, 0.28],
];

export function buildShapes(textures) {
  const random = createRandom(7);
  const mouth = [0.74, 1.3, -0.45];
  return [
    jug([0.74, -0.45], JUG_PROFILE, textures.jug),
    book([-0.84, 0.15, -0.3], [0.78, 0.15, 0.5], 0.14, textures.lowerSpine, [0.2, 0.015, 0.03]),
    book([-0.78, 0.43, -0.36], [0.68, 0.13, 0.42], -0.1, textures.upperSpine, [0.012, 0.1, 0.095]),
    fruit([-1.06, 0.83, -0.34], 0.27, ORANGE),
    lemon([-0.52, 0.745, -0.26], [0.26, 0.18], 0.5, LEMON),
    halfFruit([-0.1, 0.33, 0.52], 0.33, unit([0.05, 0.34, 0.94]), ORANGE, textures.orange),
    fruit([0.62, 0.3, 0.4], 0.3, ORANGE),
    lemon([1.2, 0.2, 0.36], [0.29, 0.2], -0.7, LEMON),
    ...branch([mouth, [0.72, 2, -0.35], [0.02, 2.3, -0.25]], 7, random),
    ...branch([mouth, [0.8, 1.9, -0.5], [1.0, 2.55, -0.5]], 6, random),
    ...branch([mouth, [0.85, 1.85, -0.3], [1.62, 1.95, -0.25]], 6, random),
  ];
}

/** A value in [0,1) of a tile's own. */
function shadeOf(column, row) {
  const value = sin(column * 127.1 + row * 311.7) * 43758.5453;
  return value - floor(value);
}

/** The tiled wall at (x, y): colour, returns the gloss. */
export function paintWall(textures, x, y, color) {
  textures.tile.sample(x / TILE, -y / TILE, color);
  const shade = 0.84 + 0.2 * shadeOf(floor(x / TILE), floor(y / TILE));
  for (let channel = 0; channel < 3; channel++) color[channel] *= shade;
  return 0.2;
}

/** The table at (x, z): colour, and the slope of the cloth in `normal`; returns the gloss. */
export function paintTable(textures, x, z, normal, color) {
  const across = x * cos(RUNNER.turn) - z * sin(RUNNER.turn);
  const along = x * sin(RUNNER.turn) + z * cos(RUNNER.turn);
  const edge = abs(across) - RUNNER.halfWidth;
  if (edge > 0) {
    textures.wood.sample(x / 2.1, z / 1.5 + 0.15, color);
    const shadow = min(0.45 + edge * 9, 1);
    for (let channel = 0; channel < 3; channel++) color[channel] *= shadow;
    return 0.35;
  }
  textures.cloth.sample(across / RUNNER.repeat + 0.5, 0, color);
  const weave = 1 + 0.06 * sin(across * 210) * sin(along * 210);
  for (let channel = 0; channel < 3; channel++) color[channel] *= weave;
  const wave = cos(across * 5.2 + 1.3 * sin(along * 1.6)) + 0.6 * cos(across * 9.1 - along * 2.3);
  normal[0] = 0.085 * wave;
  normal[2] = 0.03 * sin(along * 4.2 + across * 2);
  return 0;
}
