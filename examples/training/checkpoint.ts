/** A training run on disk: weights and moments as safetensors, the rest as metadata. */
import {
  SafetensorsError,
  SafetensorsFile,
  writeSafetensors,
  type Tensor,
} from 'cluster-attention/safetensors';
import type { AdamW, Parameters } from './parameters';

/** What a run has seen at one step. */
export interface Record {
  readonly step: number;
  /** Since the record before. */
  readonly loss: number;
  readonly accuracy: number;
}

/** What must be the same for a run to be continued. */
export type Settings = Readonly<{ [name: string]: string | number | undefined }>;

/** Each parameter with its moments, under the names they have in a file. */
function* stored(parameters: Parameters, optimiser: AdamW): Generator<[string, Tensor]> {
  for (const [name, { shape, value }] of parameters.all) {
    const { first, second } = optimiser.moments.get(name)!;
    yield [name, { shape, data: value }];
    yield [`moments.first.${name}`, { shape, data: first }];
    yield [`moments.second.${name}`, { shape, data: second }];
  }
}

export function saveCheckpoint(
  path: string,
  parameters: Parameters,
  optimiser: AdamW,
  settings: Settings,
  history: readonly Record[],
): void {
  writeSafetensors(path, new Map(stored(parameters, optimiser)), {
    step: String(optimiser.step),
    settings: JSON.stringify(settings),
    history: JSON.stringify(history),
  });
}

/**
 * Fills each of `targets` with the tensor of its name. All are read and their shapes compared before
 * the first is overwritten.
 */
export function fill(targets: Iterable<[string, Tensor]>, file: SafetensorsFile): void {
  const filled = Array.from(targets, ([name, { shape, data }]) => {
    const values = file.read(name);
    const found = file.tensors.get(name)!.shape;
    if (String(found) !== String(shape)) {
      const problem = `${name} has the shape (${found}): expected (${shape})`;
      throw new SafetensorsError(file.path, problem);
    }
    return { data, values };
  });
  for (const { data, values } of filled) data.set(values);
}

/** Fills parameters and optimiser with what a file holds; returns the run's history. */
export function loadCheckpoint(
  path: string,
  parameters: Parameters,
  optimiser: AdamW,
  settings: Settings,
): Record[] {
  const file = new SafetensorsFile(path);
  try {
    const found = file.metadata.get('settings');
    if (found !== JSON.stringify(settings)) {
      throw new Error(`${path} is of another run: ${found ?? 'no run of this program'}`);
    }
    fill(stored(parameters, optimiser), file);
    optimiser.step = Number(file.metadata.get('step'));
    return JSON.parse(file.metadata.get('history') ?? '[]') as Record[];
  } finally {
    file.close();
  }
}
