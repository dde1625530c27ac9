import { describe, test } from 'vitest';
import * as oracle from './oracle/index.mjs';
import { cases } from './support/cases.mjs';
import { expectAll, expectClose, expectSameBits } from './support/compare.mjs';
import { indices, normals } from './support/data.mjs';
import { bothForms, sync } from './support/package.mjs';

function call(entry, seed) {
  const { batch, queryLength: length, headDim: dim, clusters } = entry;
  const labels = indices(batch * length, seed + 1, -1, clusters - 1);
  return {
    inputs: normals(batch * length * dim, seed),
    labels,
    shape: { batch, length, dim },
    clusters,
  };
}

describe('aggregate', () => {
  const aggregate = bothForms('aggregate');

  test.each(cases)('means and sums of the members: $name', async (entry) => {
    const options = call(entry, 700);
    expectClose(await aggregate(options), oracle.aggregate(options));
    const sums = { ...options, reduce: 'sum' };
    expectClose(await aggregate(sums), oracle.aggregate(sums));
  });

  test('sums are wider than float32', async () => {
    const cancelling = {
      inputs: Float32Array.of(1e8, 1, -1e8, 0.5),
      labels: new Int32Array(4),
      shape: { batch: 1, length: 4, dim: 1 },
      clusters: 1,
      reduce: 'sum',
    };
    expectSameBits(await aggregate(cancelling), Float32Array.of(1.5));
    const length = 100_000;
    const many = {
      inputs: new Float32Array(length).fill(0.1),
      labels: new Int32Array(length),
      shape: { batch: 1, length, dim: 1 },
      clusters: 1,
    };
    expectSameBits(await aggregate(many), Float32Array.of(0.1));
  });

  test('an empty cluster gives 0', async () => {
    const options = {
      ...call(
        cases.find(({ name }) => name === 'prime'),
        710,
      ),
    };
    const output = await aggregate({ ...options, clusters: 9 });
    expectClose(output, oracle.aggregate({ ...options, clusters: 9 }));
    expectAll(output.subarray(7 * 17, 9 * 17), 0);
  });
});

describe('broadcast', () => {
  const broadcast = bothForms('broadcast');

  test.each(cases)('each row takes the row of its cluster: $name', async (entry) => {
    const { labels, shape, clusters } = call(entry, 720);
    const inputs = normals(shape.batch * clusters * shape.dim, 721);
    const options = { inputs, labels, shape, clusters };
    expectSameBits(await broadcast(options), Float32Array.from(oracle.broadcast(options)));
  });

  test('undoes aggregate where every row has a cluster of its own', async () => {
    const inputs = normals(12 * 3, 730);
    const labels = Int32Array.from({ length: 12 }, (_, i) => (i * 5) % 12);
    const options = { labels, shape: { batch: 1, length: 12, dim: 3 }, clusters: 12 };
    const means = sync('aggregate')({ ...options, inputs });
    expectSameBits(await broadcast({ ...options, inputs: means }), inputs);
  });
});
