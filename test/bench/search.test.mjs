// The tuner's search against error surfaces that are known.

import { describe, expect, test } from 'vitest';
import { finalists, modelCost, paretoFront, searchSettings } from '../../dist/bench/search.js';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { drawTensors } from '../../dist/bench/distributions.js';
import {
  chooseFastest,
  codeOf,
  comparedQueries,
  errorMeter,
  withErrors,
} from '../../dist/bench/tune.js';
import * as library from '../../dist/index.js';
import { run, temporaryFolder } from './support/cli.mjs';
import { result } from './support/recording.mjs';

const problem = {
  batch: 1,
  heads: 2,
  queryLength: 8192,
  keyLength: 8192,
  headDim: 64,
  valueDim: 64,
};

/** Falls with clusters and keys; groups by distance are twice as good as codes. */
function surface({
  method,
  parameters: { clusters, topK = 1, grouping, iterations = 4, bits = 63 },
}) {
  const groups = (grouping === 'euclidean' ? 4 : 8) / Math.sqrt(clusters);
  const keys = method === 'improved' ? 1 / (1 + topK / 16) : 1;
  return groups * keys * (1 + 0.5 / iterations) * (1 + 4 / bits);
}

const search = (target, measure = surface) => searchSettings(problem, target, measure);
const cheapestWithin = (trials, target) =>
  Math.min(...trials.filter(({ error }) => error <= target).map(({ cost }) => cost));

const mostExact = (trials) => Math.min(...trials.map(({ error }) => error));

describe('searchSettings', () => {
  test.each([0.02, 0.05, 0.2])('comes near the cheapest setting for an error of %d', (target) => {
    const found = cheapestWithin(search(target), target);
    // All of a fine grid.
    let best = Infinity;
    for (const iterations of [1, 2, 4, 8]) {
      for (let clusters = 8; clusters <= 4096; clusters *= Math.SQRT2) {
        for (let topK = 4; topK <= 1024; topK *= 2) {
          const parameters = {
            clusters: Math.round(clusters),
            topK,
            grouping: 'euclidean',
            iterations,
          };
          const setting = { method: 'improved', parameters };
          if (surface(setting) <= target) best = Math.min(best, modelCost(setting, problem));
        }
      }
    }
    expect(found).toBeLessThan(1.5 * best);
  });

  test.each(['euclidean', 'hamming'])(
    'tries the same in the same order every time, nothing twice: %s is better',
    (better) => {
      const measure = (setting) =>
        surface(setting) * (setting.parameters.grouping === better ? 1 : 5);
      const trials = search(0.05, measure);
      expect(search(0.05, measure)).toEqual(trials);
      const keys = trials.map(({ method, parameters }) => {
        const { grouping, ...others } = parameters;
        const usual = grouping === 'hamming' ? { bits: 63 } : {};
        return JSON.stringify([
          method,
          grouping,
          Object.entries({ ...usual, ...others }).toSorted(),
        ]);
      });
      expect(new Set(keys).size).toBe(keys.length);
      expect(trials.length).toBeLessThan(150);
    },
  );

  test('stays within the problem, also a tiny one', () => {
    const tiny = { ...problem, queryLength: 40, keyLength: 24 };
    for (const { parameters } of searchSettings(tiny, 0.01, surface)) {
      expect(parameters.clusters).toBeGreaterThanOrEqual(1);
      expect(parameters.clusters).toBeLessThanOrEqual(40);
      expect(parameters.topK ?? 1).toBeLessThanOrEqual(24);
    }
  });

  test('heads for the exact while outside the target, for the cheap within', () => {
    const [never, often] = [search(0), search(0.2)];
    expect(mostExact(never)).toBeLessThan(mostExact(often));
    expect(cheapestWithin(often, 0.2)).toBeLessThan(cheapestWithin(never, 0.2));
  });

  test('ends when nothing reaches the target', () => {
    const trials = search(0.05, () => 0.9);
    expect(cheapestWithin(trials, 0.05)).toBe(Infinity);
    expect(finalists(trials, 0.05, 5).length).toBeGreaterThan(0);
  });
});

const point = (error, cost) => ({ error, cost });

test('the front holds what nothing beats in both', () => {
  const front = [point(0.1, 9), point(0.2, 5), point(0.4, 1)];
  const beaten = [point(0.2, 9), point(0.3, 5), point(0.5, 2), point(0.4, 1)];
  expect(paretoFront([...beaten, ...front])).toEqual(front);
});

test('finalists hold the cheapest within the target', () => {
  const trials = search(0.05);
  const chosen = finalists(trials, 0.05, 6);
  expect(chosen.length).toBeLessThanOrEqual(6);
  expect(cheapestWithin(chosen, 0.05)).toBe(cheapestWithin(trials, 0.05));
});

const candidate = (median, error, parameters) =>
  result(median, { method: 'improved', parameters }, { accuracy: { error } });

describe('the choice', () => {
  test('is the fastest within the target', () => {
    const fast = candidate(5, 0.2, { clusters: 10, topK: 8 });
    const right = candidate(10, 0.04, { clusters: 20, topK: 8 });
    const slow = candidate(20, 0.01, { clusters: 40, topK: 8 });
    expect(chooseFastest([result(100), slow, right, fast], 0.05)).toBe(right);
    expect(chooseFastest([fast], 0.05)).toBeUndefined();
    expect(chooseFastest([result(1), slow], 0.05).case.method).toBe('exact');
  });

  test('of times that cannot be told apart: the one with less work', () => {
    const less = candidate(10.2, 0.04, { clusters: 20, topK: 8 });
    const more = candidate(10, 0.03, { clusters: 40, topK: 8 });
    expect(chooseFastest([more, less], 0.05)).toBe(less);
  });

  test('goes by the errors of the search, not by those of the few rows beside the time', () => {
    const [exact, lucky, good] = [
      result(100),
      candidate(5, 0.049, { clusters: 10 }),
      candidate(10, 0.06, { clusters: 20 }),
    ];
    const settings = [{ error: 0.051 }, { error: 0.04 }];
    const judged = withErrors([exact, lucky, good], { settings });
    expect(judged.map(({ accuracy }) => accuracy.error)).toEqual([1e-7, 0.051, 0.04]);
    expect(chooseFastest(judged, 0.05).case).toBe(good.case);
  });

  test('is printed as a call', () => {
    const { case: one } = candidate(1, 0, { clusters: 20, grouping: 'euclidean' });
    expect(codeOf({ ...one, precision: 'bfloat16' })).toBe(
      "await improvedClusteredAttention({\n  query, key, value, shape,\n  clusters: 20,\n  grouping: 'euclidean',\n  precision: 'bfloat16',\n});",
    );
    const { case: exact } = result(1);
    expect(codeOf({ ...one, seed: 7 })).toContain('\n  seed: 7,\n');
    expect(codeOf({ ...exact, seed: 7 })).not.toContain('seed');
  });
});

const inputsOf = (sizes, seed) => {
  const drawn = { ...problem, ...sizes };
  return { problem: drawn, ...drawTensors('mixture', drawn, seed) };
};

/** The error over the rows of these queries of every sequence. */
function errorOf({ problem: { batch, heads, queryLength, valueDim } }, output, exact, queries) {
  let [error, norm] = [0, 0];
  for (let sequence = 0; sequence < batch * heads; ++sequence) {
    for (const query of queries) {
      for (let e = 0; e < valueDim; ++e) {
        const place = (sequence * queryLength + query) * valueDim + e;
        error += (output[place] - exact[place]) ** 2;
        norm += exact[place] ** 2;
      }
    }
  }
  return Math.sqrt(error / norm);
}

describe('the errors of the search', () => {
  test('are over all queries of up to 16,384 keys, beyond over some', () => {
    const all = Array.from({ length: 300 }, (_, i) => i);
    expect(comparedQueries({ queryLength: 300, keyLength: 16_384 }, 0)).toEqual(all);
    const some = comparedQueries({ queryLength: 300, keyLength: 2 ** 21 }, 0);
    expect(new Set(some).size).toBe(128);
    expect(comparedQueries({ queryLength: 300, keyLength: 2 ** 21 }, 1)).not.toEqual(some);
    expect(comparedQueries({ queryLength: 300, keyLength: 2 ** 30 }, 0)).toHaveLength(1);
  });

  test.each([
    ['all', Array.from({ length: 90 }, (_, i) => i)],
    ['some', [3, 40, 41, 89]],
  ])('are those of the output on %s queries', (_, queries) => {
    const inputs = inputsOf({ queryLength: 90, keyLength: 110, headDim: 8, valueDim: 12 }, 5);
    const { problem: shape, query, key, value } = inputs;
    const parameters = { clusters: 9, topK: 4 };
    const call = { query, key, value, shape };
    const exact = library.attentionSync(call);
    const output = library.improvedClusteredAttentionSync({ ...call, ...parameters, seed: 3 });
    const conditions = { device: 'cpu', precision: 'float32' };
    const error = errorMeter(inputs, conditions, queries, 3)({ method: 'improved', parameters });
    expect(error).toBeGreaterThan(0.01);
    expect(error).toBeCloseTo(errorOf(inputs, output, exact, queries), 5);
  });
});

describe('the command', () => {
  const small = ['--length', '192', '--heads', '1', '--dim', '16', '--distribution', 'mixture',
    '--rounds', '3', '--rows', '16']; // prettier-ignore

  test('prints the front and a call to paste', () => {
    const { status, stdout } = run('tune', ...small, '--target-error', '0.9');
    expect(status).toBe(0);
    expect(stdout).toMatch(/\d+ settings tried, \d+ within an error of 0\.9/);
    expect(stdout).toContain(
      'Beaten by no other in both speed and error, errors over all 192 rows:',
    );
    expect(stdout).toMatch(/await \w*[aA]ttention\(\{\n {2}query, key, value, shape,/);
  });

  test('prints a call that does what was measured, over all rows and with its seed', async () => {
    const json = path.join(temporaryFolder(), 'a.json');
    const target = 0.5;
    const { status, stdout } = run('tune', ...small, '--length', '1024', '--seed', '7', '--target-error', `${target}`,
      '--json', json); // prettier-ignore
    expect(status).toBe(0);
    expect(stdout).toContain('errors over all 1,024 rows:');
    const { results } = JSON.parse(readFileSync(json, 'utf8'));
    expect(results.map(({ case: { seed } }) => seed)).toEqual(results.map(() => 7));
    expect(Object.keys(results[1].case).toSorted()).toEqual(
      Object.keys(result(1).case).concat('seed').toSorted(),
    );

    const sizes = { heads: 1, queryLength: 1024, keyLength: 1024, headDim: 16, valueDim: 16 };
    const inputs = inputsOf(sizes, 7);
    const { problem: shape, query, key, value } = inputs;
    const call = { query, key, value, shape };
    const [, printed, code] = /^Fastest within .*: error ([\d.e-]+), .*\n\n([^]*)$/m.exec(stdout);
    const names = ['attention', 'clusteredAttention', 'improvedClusteredAttention'];
    const functions = names.map((name) => library[name]);
    // oxlint-disable-next-line no-new-func -- the call is what a user would paste
    const pasted = new Function(...Object.keys(call), ...names, code.replace('await', 'return'));
    const output = await pasted(...Object.values(call), ...functions);
    const exact = library.attentionSync(call);
    const error = errorOf(inputs, output, exact, comparedQueries(inputs.problem, 0));
    expect(error).toBeLessThanOrEqual(target);
    if (code.includes('lusteredAttention')) {
      expect(code).toContain('seed: 7,');
      expect(Math.abs(error - Number(printed))).toBeLessThan(0.01 * error + 1e-4);
    }
  });

  test.each([
    ['an error of 0', ['--target-error', '0'], /--target-error expects a number > 0/],
    ['no number', ['--target-error', 'small'], /--target-error expects a number > 0/],
    ['no inputs', [], /needs --input or --length/],
    ['two lengths', ['--length', '64,128'], /takes one --length/],
    ['two numbers of threads', ['--length', '64', '--threads', '1,2'], /takes one --threads/],
    ['gradients', ['--grad'], /--grad is for bench/],
    ['methods', ['--methods', 'exact'], /methods/],
    ['a missing file', ['--input', '/no/such/file'], /cannot read/],
  ])('refuses %s', (_, parameters, message) => {
    const { status, stdout, stderr } = run('tune', ...parameters);
    expect(stderr).toMatch(message);
    expect(stderr.trim().split('\n')).toHaveLength(1);
    expect([status, stdout]).toEqual([2, '']);
  });
});
