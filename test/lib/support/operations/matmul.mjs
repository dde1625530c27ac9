// Matrix products.

import { normals } from '../data.mjs';
import { boolean, callArguments, floats, shapeArguments, size } from './kinds.mjs';

export const matmulOperations = {
  matmul: {
    minimal: () => ({
      a: normals(2 * 5 * 4, 85),
      b: normals(2 * 4 * 3, 86),
      shape: { batch: 2, rows: 5, columns: 3, depth: 4 },
    }),
    typical: () => ({
      a: normals(3 * 67 * 300, 87),
      b: normals(3 * 300 * 53, 88),
      shape: { batch: 3, rows: 67, columns: 53, depth: 300 },
      transposeA: true,
      transposeB: true,
    }),
    arguments: {
      ...callArguments,
      a: floats(),
      b: floats(),
      ...shapeArguments('batch', 'rows'),
      'shape.columns': size(1, { fits: true }),
      'shape.depth': size(1, { fits: true }),
      transposeA: boolean,
      transposeB: boolean,
      out: floats(() => new Float32Array(2 * 5 * 3)),
    },
    batched: ['a', 'b'],
  },
};
