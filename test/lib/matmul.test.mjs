import { describe, expect, test } from 'vitest';
import { expectClose, expectSameBits } from './support/compare.mjs';
import { normals, oddView } from './support/data.mjs';
import { bothForms, imported, required } from './support/package.mjs';
import { expectBothRefuse, WRONG_KIND } from './support/refusal.mjs';

const SHAPES = [
  { rows: 1, columns: 1, depth: 1 },
  { batch: 3, rows: 7, columns: 5, depth: 11 },
  { batch: 2, rows: 65, columns: 49, depth: 257 },
  { rows: 64, columns: 96, depth: 1030 },
  { rows: 0, columns: 4, depth: 3 },
  { batch: 0, rows: 2, columns: 4, depth: 3 },
];

/** A·B in float64, from whatever is stored. */
function product({ a, b, shape, transposeA = false, transposeB = false }) {
  const { batch = 1, rows, columns, depth } = shape;
  const output = new Float64Array(batch * rows * columns);
  for (let at = 0; at < output.length; ++at) {
    const column = at % columns;
    const row = Math.floor(at / columns) % rows;
    const entry = Math.floor(at / (rows * columns)) * depth;
    for (let k = 0; k < depth; ++k) {
      const left = transposeA ? (entry + k) * rows + row : entry * rows + row * depth + k;
      const right = transposeB
        ? entry * columns + column * depth + k
        : (entry + k) * columns + column;
      output[at] += a[left] * b[right];
    }
  }
  return output;
}

function call(shape, seed, more) {
  const { batch = 1, rows, columns, depth } = shape;
  const a = normals(batch * rows * depth, seed);
  return { a, b: normals(batch * depth * columns, seed + 1), shape, ...more };
}

describe('matmul', () => {
  const matmul = bothForms('matmul');
  const transposes = [false, true].flatMap((transposeA) =>
    [false, true].map((transposeB) => ({ transposeA, transposeB })),
  );

  test.each(transposes)('is the product of the definition: %o', async (flags) => {
    for (const shape of SHAPES) {
      const options = call(shape, 900, flags);
      expectClose(await matmul(options), product(options), 1e-6);
    }
  });

  test('takes views, and any product alone equals the one in a batch', async () => {
    const options = call({ batch: 3, rows: 19, columns: 23, depth: 300 }, 910);
    const output = await matmul({ ...options, a: oddView(options.a), b: oddView(options.b) });
    for (let entry = 0; entry < 3; ++entry) {
      const part = (array, size) => array.subarray(entry * size, (entry + 1) * size);
      const alone = await matmul({
        a: part(options.a, 19 * 300),
        b: part(options.b, 300 * 23),
        shape: { rows: 19, columns: 23, depth: 300 },
      });
      expectSameBits(part(output, 19 * 23).slice(), alone);
    }
  });

  test.each([
    ['matmulSync', () => new Float32Array(67 * 53)],
    ['matmul', () => new Float32Array(67 * 53)],
    ['matmulSync', () => new Float32Array(new SharedArrayBuffer(67 * 53 * 4))],
  ])('%s adds to out', async (name, make) => {
    const options = call({ rows: 67, columns: 53, depth: 40 }, 920);
    const before = normals(67 * 53, 930);
    const out = make();
    out.set(before);
    const form = name === 'matmul' ? imported[name] : required[name];
    const output = await form({ ...options, out, accumulate: true });
    expect(output).toBe(out);
    expectClose(
      out,
      product(options).map((sum, i) => sum + before[i]),
      1e-6,
    );
  });

  test('refuses to accumulate without out', async () => {
    const options = () => ({ ...call(SHAPES[1], 940), accumulate: true });
    await expectBothRefuse('matmul', options, WRONG_KIND, 'out');
  });
});
