// precision: 'bfloat16' is the same operation on operands rounded to bfloat16, accumulated in
// float32; discrete choices are made on the rounded values.

import { describe, expect, test } from 'vitest';
import { BFLOAT16_BOUND, expectClose, expectSameBits } from './support/compare.mjs';
import { roundToBfloat16 } from './support/data.mjs';
import { inputArrays, names, operations, resultArrays } from './support/operations.mjs';
import { imported, required } from './support/package.mjs';

const withFloats = names.filter((name) =>
  inputArrays(operations[name].typical()).some(([, array]) => array instanceof Float32Array),
);

/** The typical call with its planes spelt out: drawn planes are operands like given ones. */
function typicalCall(name) {
  const options = operations[name].typical();
  if (name !== 'clusteredAttention') return options;
  const { seed } = options;
  const planes = required.lshPlanesSync({ bits: 63, dim: options.shape.headDim, seed });
  return { ...options, planes };
}

describe.each(withFloats)('%s', (name) => {
  test('bfloat16 agrees with float32 on rounded operands', async () => {
    const options = typicalCall(name);
    const rounded = { ...options };
    for (const [input, array] of inputArrays(options)) {
      if (array instanceof Float32Array) rounded[input] = roundToBfloat16(array);
    }
    const actual = resultArrays(await imported[name]({ ...options, precision: 'bfloat16' }));
    const expected = resultArrays(required[`${name}Sync`](rounded));
    for (const [output, array] of Object.entries(expected)) {
      const discrete = array instanceof Int32Array || array instanceof BigUint64Array;
      if (discrete) expectSameBits(actual[output], array);
      else expectClose(actual[output], array, BFLOAT16_BOUND);
    }
  });

  test('float32 is the default, and another precision gives another result', async () => {
    const options = operations[name].typical();
    const plain = await imported[name](options);
    expect(await imported[name]({ ...options, precision: 'float32' })).toEqual(plain);
    if (['hash', 'broadcast', 'topK'].includes(name)) return;
    expect(await imported[name]({ ...options, precision: 'bfloat16' })).not.toEqual(plain);
  });
});
