// Signed distances of the things on the table. A shape is { bound, distance, paint }: a sphere
// [x, y, z, radius] around it, the distance of a point to its surface (never too large), and the
// linear colour of a surface point, written to `color`; paint returns the gloss.

import { cross, unit } from './vector.mjs';

const { abs, cos, max, min, sin, sqrt } = Math;

/** Math.hypot guards against overflow, which makes it several times slower. */
const hypot = (x, y, z = 0) => sqrt(x * x + y * y + z * z);

const set = (color, r, g, b) => {
  color[0] = r;
  color[1] = g;
  color[2] = b;
};

/** A turned jug. `profile` lists [height, radius] from foot to lip. */
export function jug([cx, cz], profile, texture) {
  const height = profile.at(-1)[0];
  const radius = radiusTable(profile);
  const last = radius.length - 1;
  const radiusAt = (y) => {
    const place = (min(max(y, 0), height) / height) * last;
    const low = min(Math.floor(place), last - 1);
    return radius[low] + (radius[low + 1] - radius[low]) * (place - low);
  };
  return {
    bound: [cx, height / 2, cz, 0.87],
    distance(x, y, z) {
      const side = 0.7 * (hypot(x - cx, z - cz) - radiusAt(y));
      return max(side, y - height, -y);
    },
    paint(x, y, z, normal, color) {
      const inside = hypot(x - cx, z - cz) < radiusAt(height) * 0.86;
      if (normal[1] > 0.8 && y > height - 0.02 && inside) {
        set(color, 0.01, 0.008, 0.006);
        return 0;
      }
      texture.sample(Math.atan2(x - cx, z - cz) / (2 * Math.PI) + 0.5, 1 - y / height, color);
      return 0.25;
    },
  };
}

/** The profile as equally spaced radii, joined by smooth (Catmull-Rom) curves. */
function radiusTable(profile) {
  const samples = 128;
  const height = profile.at(-1)[0];
  return Float64Array.from({ length: samples + 1 }, (_, index) => {
    const y = (index / samples) * height;
    const next = min(
      max(
        profile.findIndex(([at]) => at >= y),
        1,
      ),
      profile.length - 1,
    );
    const point = (i) => profile[min(max(i, 0), profile.length - 1)];
    const [[, a], [y0, b], [y1, c], [, d]] = [-2, -1, 0, 1].map((step) => point(next + step));
    const t = (y - y0) / (y1 - y0);
    return b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)));
  });
}

/** A closed book lying flat, turned by `turn` around the vertical, its spine towards +z. */
export function book([cx, cy, cz], [hx, hy, hz], turn, spine, [r, g, b]) {
  const c = cos(turn);
  const s = sin(turn);
  const rounding = 0.025;
  return {
    bound: [cx, cy, cz, hypot(hx, hy, hz)],
    distance(x, y, z) {
      const dx = x - cx;
      const dz = z - cz;
      const qx = abs(c * dx - s * dz) - hx + rounding;
      const qy = abs(y - cy) - hy + rounding;
      const qz = abs(s * dx + c * dz) - hz + rounding;
      const outside = sqrt(max(qx, 0) ** 2 + max(qy, 0) ** 2 + max(qz, 0) ** 2);
      return outside + min(max(qx, qy, qz), 0) - rounding;
    },
    paint(x, y, z, normal, color) {
      const along = (c * (x - cx) - s * (z - cz)) / hx;
      const up = (y - cy) / hy;
      const side = c * normal[0] - s * normal[2];
      if (s * normal[0] + c * normal[2] > 0.5) {
        spine.sample(0.5 + along / 2, 0.5 - up / 2, color);
        return 0.15;
      }
      if (abs(side) > 0.7 && abs(up) < 0.82) {
        const shade = 0.62 + 0.16 * sin(up * 44);
        set(color, shade, shade * 0.9, shade * 0.7);
        return 0;
      }
      set(color, r, g, b);
      return 0.15;
    },
  };
}

/** Fine dimples, and a slow variation of the shade, from the direction of the surface. */
function peel(normal, color, [r, g, b]) {
  const [x, y, z] = normal;
  const dimple = sin(41 * x + 3 * y) * sin(43 * y + 5 * z) * sin(47 * z + 7 * x);
  const shade = 1 + 0.1 * dimple + 0.08 * sin(5 * x + 2 * y);
  set(color, r * shade, g * shade, b * shade);
  return 0.45;
}

export function fruit([cx, cy, cz], radius, tint) {
  return {
    bound: [cx, cy, cz, radius],
    distance: (x, y, z) => hypot(x - cx, y - cy, z - cz) - radius,
    paint: (x, y, z, normal, color) => peel(normal, color, tint),
  };
}

/** A lemon: an ellipsoid with a nipple at both ends of its long axis, which lies flat. */
export function lemon([cx, cy, cz], [length, radius], turn, tint) {
  const c = cos(turn);
  const s = sin(turn);
  return {
    bound: [cx, cy, cz, length * 1.2],
    distance(x, y, z) {
      const along = c * (x - cx) - s * (z - cz);
      const across = hypot(y - cy, s * (x - cx) + c * (z - cz));
      const body = (hypot(along / length, across / radius) - 1) * radius;
      const tip = hypot(abs(along) - length * 0.98, across) - radius * 0.2;
      const blend = max(0.09 - abs(body - tip), 0) / 0.09;
      return 0.8 * (min(body, tip) - blend * blend * 0.0225);
    },
    paint: (x, y, z, normal, color) => peel(normal, color, tint),
  };
}

/** Half a fruit; `facing` is the unit normal of its cut. */
export function halfFruit([cx, cy, cz], radius, facing, tint, texture) {
  const [fx, fy, fz] = facing;
  const level = hypot(fx, fz);
  const [ux, uz] = [fz / level, -fx / level];
  const [vx, vy, vz] = [-fy * uz * -1, fz * ux - fx * uz, -fy * ux];
  return {
    bound: [cx, cy, cz, radius],
    distance(x, y, z) {
      const [dx, dy, dz] = [x - cx, y - cy, z - cz];
      return max(hypot(dx, dy, dz) - radius, fx * dx + fy * dy + fz * dz);
    },
    paint(x, y, z, normal, color) {
      const [dx, dy, dz] = [x - cx, y - cy, z - cz];
      if (fx * normal[0] + fy * normal[1] + fz * normal[2] < 0.9) return peel(normal, color, tint);
      const u = (ux * dx + uz * dz) / radius;
      const v = (vx * dx + vy * dy + vz * dz) / radius;
      texture.sample(0.5 + u * 0.49, 0.5 - v * 0.49, color);
      return 0.6;
    },
  };
}

/** A twig along a quadratic Bézier curve, with leaves on both sides: a list of shapes. */
export function branch([start, control, end], pairs, random) {
  const curve = (t) =>
    start.map((_, i) => (1 - t) ** 2 * start[i] + 2 * t * (1 - t) * control[i] + t * t * end[i]);
  const joints = Array.from({ length: 9 }, (_, index) => curve(index / 8));
  const leaves = Array.from({ length: pairs * 2 + 1 }, (_, index) => {
    const t = 0.22 + (0.78 * (index + 1)) / (pairs * 2 + 1);
    const base = curve(t);
    const ahead = curve(t - 0.02).map((value, i) => base[i] - value);
    return leaf(base, ahead, index === pairs * 2 ? 0 : index % 2 ? 1 : -1, random);
  });
  return [...joints.slice(1).map((joint, index) => twig(joints[index], joint)), ...leaves];
}

function twig(from, to) {
  const middle = from.map((value, i) => (value + to[i]) / 2);
  return {
    bound: [...middle, hypot(...from.map((value, i) => value - middle[i])) + 0.014],
    distance: (x, y, z) => segmentDistance(from, to, x, y, z) - 0.014,
    paint(x, y, z, normal, color) {
      set(color, 0.12, 0.08, 0.035);
      return 0;
    },
  };
}

/** A pointed leaf that grows from `base` to one `side` of the twig's direction `ahead`. */
function leaf(base, ahead, side, random) {
  const jitter = () => (random() - 0.5) * 0.5;
  const forward = unit(ahead);
  const outward = unit(cross(forward, [0.15, 0.1, 1]));
  const along = unit(
    forward.map(
      (value, i) => value * 0.75 + outward[i] * side * 0.8 + jitter() * (i === 2 ? 1 : 0.4),
    ),
  );
  const across = unit(cross(along, unit([jitter() * 1.4, 0.35 + jitter(), 1])));
  const thick = cross(along, across);
  const length = 0.15 + 0.05 * random();
  const width = length * 0.36;
  const young = random();
  const [cx, cy, cz] = base.map((value, i) => value + along[i] * length * 1.05);
  const project = ([a, b, c], x, y, z) => a * (x - cx) + b * (y - cy) + c * (z - cz);
  return {
    bound: [cx, cy, cz, length * 1.04],
    distance(x, y, z) {
      const a = project(along, x, y, z) / length;
      const b = project(across, x, y, z);
      // A leaf bends a little along its length and tapers to a point.
      const c = project(thick, x, y, z) + 0.03 * a * a;
      const taper = max(1 - a * a, 0.02);
      return 0.6 * max(abs(b) - width * taper, abs(c) - 0.006, (abs(a) - 1) * length);
    },
    paint(x, y, z, normal, color) {
      const light = abs(project(across, x, y, z)) < width * 0.1 ? 1.9 : 1;
      const [r, g, b] = [0.07 + 0.13 * young, 0.17 + 0.16 * young, 0.045 + 0.03 * young];
      set(color, r * light, g * light, b * light);
      return 0.3;
    },
  };
}

function segmentDistance(from, to, x, y, z) {
  const ax = to[0] - from[0];
  const ay = to[1] - from[1];
  const az = to[2] - from[2];
  const px = x - from[0];
  const py = y - from[1];
  const pz = z - from[2];
  const t = min(max((px * ax + py * ay + pz * az) / (ax * ax + ay * ay + az * az), 0), 1);
  return sqrt((px - ax * t) ** 2 + (py - ay * t) ** 2 + (pz - az * t) ** 2);
}
