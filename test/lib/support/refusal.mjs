// What a refused call looks like: class, code, and a message with argument and received value.

import { expect } from 'vitest';
import { imported, required } from './package.mjs';

export { CODES } from './codes.mjs';

export const WRONG_KIND = { type: TypeError, codes: ['ERR_INVALID_ARG_TYPE'] };
export const WRONG_VALUE = { type: RangeError, codes: ['ERR_OUT_OF_RANGE'] };
export const WRONG_LENGTH = { type: RangeError, codes: ['ERR_SHAPE_MISMATCH'] };
export const WRONG_SIZE = { type: RangeError, codes: ['ERR_OUT_OF_RANGE', 'ERR_SHAPE_MISMATCH'] };

/** The error of a call that must fail, whichever way the form reports it. */
export async function errorOf(call) {
  try {
    await call();
  } catch (error) {
    return error;
  }
  return undefined;
}

export function expectRefused(error, { type, codes }, argument) {
  expect(error, 'the call must fail').toBeInstanceOf(type);
  expect(codes).toContain(error.code);
  expect(error.message).toMatch(/received/i);
  if (argument !== undefined) expect(error.message).toContain(argument.split('.').at(-1));
}

/**
 * Both forms refuse what `make` builds. The asynchronous one returns a promise even then, and
 * neither touches `out`.
 */
export async function expectBothRefuse(name, make, refusal, argument) {
  for (const form of [`${name}Sync`, name]) {
    const options = make();
    const out = options?.out;
    const before = out instanceof Float32Array && out.slice();
    const operation = form === name ? imported[form] : required[form];
    let promise;
    const error = await errorOf(() => {
      promise = operation(options);
      return promise;
    });
    if (form === name) expect(promise).toBeInstanceOf(Promise);
    expectRefused(error, refusal, argument);
    if (before) expect(out).toEqual(before);
  }
}
