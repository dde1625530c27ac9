// Which cases follow from a command line.

import { describe, expect, test } from 'vitest';
import { Arguments } from '../../dist/bench/arguments.js';
import { planGroups } from '../../dist/bench/plan.js';
import {
  FLAGS,
  METHOD_OPTIONS,
  readSelection,
  readSettings,
  RUN_OPTIONS,
  SOURCE_OPTIONS,
} from '../../dist/bench/selection.js';

const read = (text) =>
  new Arguments(
    text.split(' ').filter(Boolean),
    [...SOURCE_OPTIONS, ...METHOD_OPTIONS, ...RUN_OPTIONS],
    FLAGS,
  );
const plan = (text) => planGroups(readSelection(read(text)));
const parametersOf = (text) =>
  plan(text).flatMap(({ entries }) => entries.map(({ case: one }) => one.parameters));

describe('cases', () => {
  test('lists make every combination, without what says nothing', () => {
    const text = '--length 64 --methods clustered --clusters 4,8 --grouping hamming,euclidean';
    expect(parametersOf(`${text} --bits 15,31`)).toEqual(
      [4, 8].flatMap((clusters) => [
        { clusters, grouping: 'hamming', threshold: 'normal', bits: 15 },
        { clusters, grouping: 'hamming', threshold: 'normal', bits: 31 },
        { clusters, grouping: 'euclidean' },
      ]),
    );
  });

  test('what is not given is left to the package', () => {
    expect(parametersOf('--length 64 --methods exact,improved,centroid')).toEqual([
      {},
      { clusters: 100, grouping: 'hamming', threshold: 'normal', topK: 32 },
      { centroids: 64 },
    ]);
  });

  test('CAST has as many clusters as its size needs', () => {
    expect(parametersOf('--length 1000 --methods cast --cluster-size 256 --clusters 7')).toEqual([
      { clusters: 4, clusterSize: 256 },
    ]);
  });

  test('queries may be fewer than the tokens they attend to', () => {
    const [group] = plan('--length 64 --queries 3 --methods exact,cast');
    const shapes = group.entries.map(({ case: { problem }, absent }) => [
      problem.queryLength,
      problem.keyLength,
      absent?.reason,
    ]);
    expect(shapes).toEqual([
      [3, 64, undefined],
      [3, 64, 'CAST is self-attention only'],
    ]);
  });

  test('a group holds all methods of a length and a number of threads', () => {
    const groups = plan('--length 32,64 --threads 1,2 --methods exact,clustered');
    const names = groups.map(({ problem, entries }) => {
      const counts = entries.map(({ case: one }) => one.threads);
      return `${problem.keyLength}: ${counts.join(' ')}`;
    });
    expect(names).toEqual(['32: 1 1', '32: 2 2', '64: 1 1', '64: 2 2']);
  });

  test('exact attention stops at its limit', () => {
    const absent = plan('--length 64,65 --methods exact --exact-up-to 64').map(
      ({ entries }) => entries[0].absent?.status,
    );
    expect(absent).toEqual([undefined, 'skipped']);
  });

  test('repeated values count once', () => {
    expect(plan('--length 64,64 --threads 1,1 --methods exact,exact')).toHaveLength(1);
  });
});

test('the recall looks at the most keys that any method is given', () => {
  expect(readSettings(read('')).recallKeys).toBe(32);
  expect(readSettings(read('--topk 8,64,16')).recallKeys).toBe(64);
});
