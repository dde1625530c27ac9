// Recordings with known numbers.

import path from 'node:path';
import { writeFileSync } from 'node:fs';

const machine = {
  processor: 'Test <processor> & "more"',
  cores: 2,
  memory: 2 ** 34,
  system: 'linux 6 x64',
  node: 'v20.17.0',
  package: '0.1.0',
  instructionSet: 'avx2',
  build: 'local',
  cuda: 'no device',
};

/** A measured case; `changes` go to the case, the times are around `median`. */
export function result(median, changes = {}, more = {}) {
  const length = changes.length ?? 1024;
  return {
    case: {
      implementation: 'cluster-attention',
      method: changes.method ?? 'exact',
      parameters: changes.parameters ?? {},
      problem: {
        batch: 1,
        heads: 8,
        queryLength: length,
        keyLength: length,
        headDim: 64,
        valueDim: 64,
      },
      threads: changes.threads ?? 1,
      device: 'cpu',
      precision: 'float32',
      gradient: false,
      data: changes.data ?? 'gaussian',
    },
    status: 'measured',
    accuracy: { rows: 64, rounding: 1e-7, error: 1e-7, weights: 0, recall: 1, k: 32 },
    time: { median, lower: median * 0.95, upper: median * 1.05, samples: [median], repeats: 1 },
    share: 0.5,
    gflops: 100,
    memory: length * 1024,
    ...more,
  };
}

export function recording(results, changes = {}) {
  return {
    format: 'cluster-attention/bench',
    version: 1,
    command: 'npx cluster-attention bench',
    started: '2026-01-02T03:04:05.000Z',
    finished: '2026-01-02T03:05:05.000Z',
    complete: true,
    machine: { ...machine, ...changes },
    results,
  };
}

export function store(folder, name, content) {
  const file = path.join(folder, name);
  writeFileSync(file, typeof content === 'string' ? content : JSON.stringify(content));
  return file;
}
