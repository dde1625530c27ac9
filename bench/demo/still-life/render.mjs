// A small ray marcher: one ray per sample, sunlight through a window with soft shadows, skylight
// with ambient occlusion, a gloss term, and a film-like tone curve.

import { setImmediate } from 'node:timers/promises';

import { buildShapes, paintTable, paintWall, WALL } from './scene.mjs';
import { cross, unit } from './vector.mjs';

const { abs, exp, max, min, sqrt } = Math;

const smooth = (low, high, value) => {
  const t = min(max((value - low) / (high - low), 0), 1);
  return t * t * (3 - 2 * t);
};

const CAMERA = { at: [0.1, 1.75, 6.4], towards: [0.08, 0.98, 0], tanHalfAngle: 0.25 };
const SUN = unit([-0.62, 0.62, 0.62]);
const SUN_RIGHT = unit(cross([0, 1, 0], SUN));
const SUN_UP = cross(SUN, SUN_RIGHT);
const SUN_COLOR = [3.3, 2.85, 2.2];
const SKY_COLOR = [0.5, 0.6, 0.78];
const BOUNCE_COLOR = [0.3, 0.22, 0.15];
const MISS = 1e9;

class Renderer {
  #shapes;
  #textures;
  /** The shapes whose bounds the current ray crosses: only these are asked for distances. */
  #crossed = [];
  #color = new Float64Array(3);
  #normal = new Float64Array(3);

  constructor(textures) {
    this.#textures = textures;
    this.#shapes = buildShapes(textures);
  }

  /** Fills #crossed, bounds widened by `margin`; returns the stretch of the ray inside bounds. */
  #cross([ox, oy, oz], [dx, dy, dz], far, margin) {
    this.#crossed.length = 0;
    let enter = far;
    let leave = 0;
    for (const shape of this.#shapes) {
      const bound = shape.bound;
      const cx = bound[0] - ox;
      const cy = bound[1] - oy;
      const cz = bound[2] - oz;
      const radius = bound[3] + margin;
      const middle = cx * dx + cy * dy + cz * dz;
      const half = radius * radius - (cx * cx + cy * cy + cz * cz - middle * middle);
      if (half <= 0) continue;
      const reach = sqrt(half);
      if (middle + reach <= 0 || middle - reach >= far) continue;
      this.#crossed.push(shape);
      enter = min(enter, middle - reach);
      leave = max(leave, middle + reach);
    }
    return [max(enter, 0), min(leave, far)];
  }

  #distance(x, y, z, limit) {
    let nearest = limit;
    for (const shape of this.#crossed) nearest = min(nearest, shape.distance(x, y, z));
    return nearest;
  }

  #nearestShape(x, y, z) {
    const distances = this.#crossed.map((shape) => shape.distance(x, y, z));
    return this.#crossed[distances.indexOf(min(...distances))];
  }

  /** How far along the ray a shape is hit before `far`, or MISS. */
  #march(origin, direction, far) {
    const [enter, leave] = this.#cross(origin, direction, far, 0);
    let t = enter;
    for (let step = 0; step < 160 && t < leave; step++) {
      const x = origin[0] + direction[0] * t;
      const y = origin[1] + direction[1] * t;
      const z = origin[2] + direction[2] * t;
      const distance = this.#distance(x, y, z, MISS);
      if (distance < 0.0012) return t;
      t += distance;
    }
    return MISS;
  }

  /** Share of the sun that reaches a point: the nearer a ray passes a shape, the less. */
  #sunlight(x, y, z) {
    const [enter, leave] = this.#cross([x, y, z], SUN, 6, 0.1);
    let light = 1;
    let t = max(enter, 0.02);
    for (let step = 0; step < 70 && t < leave; step++) {
      const distance = this.#distance(x + SUN[0] * t, y + SUN[1] * t, z + SUN[2] * t, MISS);
      light = min(light, (14 * distance) / t);
      if (light < 0.01) return 0;
      t += max(distance, 0.015);
    }
    return light * light * (3 - 2 * light);
  }

  /** Gathers in #crossed what is near a point. */
  #gather(x, y, z, reach) {
    this.#crossed.length = 0;
    for (const shape of this.#shapes) {
      const [cx, cy, cz, radius] = shape.bound;
      const far = (x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2 > (radius + reach) ** 2;
      if (!far) this.#crossed.push(shape);
    }
  }

  #occlusion(x, y, z, normal) {
    this.#gather(x, y, z, 0.56);
    let hidden = 0;
    let weight = 1;
    for (const reach of [0.04, 0.12, 0.28]) {
      const px = x + normal[0] * reach;
      const py = y + normal[1] * reach;
      const pz = z + normal[2] * reach;
      hidden += weight * max(reach - min(this.#distance(px, py, pz, reach), py, pz - WALL), 0);
      weight *= 0.6;
    }
    return max(1 - 3.2 * hidden, 0.12);
  }

  /** The gradient of the distance, from four places around the point. */
  #shapeNormal(shape, x, y, z) {
    const h = 0.0008;
    const a = shape.distance(x + h, y - h, z - h);
    const b = shape.distance(x - h, y - h, z + h);
    const c = shape.distance(x - h, y + h, z - h);
    const d = shape.distance(x + h, y + h, z + h);
    const gradient = unit([a - b - c + d, -a - b + c + d, -a + b - c + d]);
    this.#normal.set(gradient);
  }

  /** Writes the light that arrives along the ray to `light`. */
  trace(origin, direction, light) {
    const table = direction[1] < 0 ? -origin[1] / direction[1] : MISS;
    const wall = (WALL - origin[2]) / direction[2];
    const plane = min(table, wall);
    const hit = this.#march(origin, direction, plane);
    const t = min(hit, plane);
    const [x, y, z] = origin.map((value, axis) => value + direction[axis] * t);
    this.#normal.fill(0);
    let gloss;
    if (hit < plane) {
      const shape = this.#nearestShape(x, y, z);
      this.#shapeNormal(shape, x, y, z);
      gloss = shape.paint(x, y, z, this.#normal, this.#color);
    } else if (table < wall) {
      gloss = paintTable(this.#textures, x, z, this.#normal, this.#color);
      this.#normal[1] = 1;
    } else {
      gloss = paintWall(this.#textures, x, y, this.#color);
      this.#normal[2] = 1;
    }
    this.#shade(x, y, z, direction, gloss, light);
  }

  #shade(x, y, z, direction, gloss, light) {
    const normal = unit([...this.#normal]);
    const facing = normal[0] * SUN[0] + normal[1] * SUN[1] + normal[2] * SUN[2];
    const reach = 0.015;
    const sun =
      facing > 0
        ? this.#sunlight(x + normal[0] * reach, y + normal[1] * reach, z + normal[2] * reach) *
          windowLight(x, y, z)
        : 0;
    const open = this.#occlusion(x, y, z, normal);
    const half = unit(SUN.map((value, axis) => value - direction[axis]));
    const shine = max(normal[0] * half[0] + normal[1] * half[1] + normal[2] * half[2], 0) ** 60;
    const sky = 0.55 + 0.45 * normal[1];
    for (let channel = 0; channel < 3; channel++) {
      const ambient = open * (sky * SKY_COLOR[channel] + (1 - sky) * BOUNCE_COLOR[channel]);
      light[channel] =
        this.#color[channel] * (ambient + max(facing, 0) * sun * SUN_COLOR[channel]) +
        gloss * shine * sun * 1.6;
    }
  }
}

/** The sun comes through a window with two columns of panes; its frame leaves soft shadows. */
function windowLight(x, y, z) {
  const across = x * SUN_RIGHT[0] + y * SUN_RIGHT[1] + z * SUN_RIGHT[2] - 0.28;
  const up = x * SUN_UP[0] + y * SUN_UP[1] + z * SUN_UP[2] - 0.5;
  const soft = 0.07;
  const pane = (value, size, half) =>
    smooth(half + soft, half - soft, abs(value)) *
    smooth(0.02, 0.02 + soft, abs(value - size * Math.round(value / size)));
  return 0.06 + 0.94 * pane(across, 1.55, 1.6) * pane(up - 0.55, 1.35, 1.75);
}

/** Renders `size` × `size` samples; resolves to RGB bytes. Timers run in between. */
export async function render(textures, size) {
  const renderer = new Renderer(textures);
  const forward = unit(CAMERA.towards.map((value, axis) => value - CAMERA.at[axis]));
  const right = unit(cross(forward, [0, 1, 0]));
  const up = cross(right, forward);
  const light = new Float64Array(3);
  const bytes = Buffer.alloc(size * size * 3);
  for (let row = 0; row < size; row++) {
    // oxlint-disable-next-line no-await-in-loop -- the rows share one thread anyway
    if (row % 16 === 0) await setImmediate();
    const v = (1 - (2 * (row + 0.5)) / size) * CAMERA.tanHalfAngle;
    for (let column = 0; column < size; column++) {
      const u = ((2 * (column + 0.5)) / size - 1) * CAMERA.tanHalfAngle;
      const direction = unit(forward.map((value, i) => value + u * right[i] + v * up[i]));
      renderer.trace(CAMERA.at, direction, light);
      for (let channel = 0; channel < 3; channel++) {
        const tone = 1 - exp(-1.15 * light[channel]);
        bytes[(row * size + column) * 3 + channel] = 255 * tone ** (1 / 2.2) + 0.5;
      }
    }
  }
  return bytes;
}
